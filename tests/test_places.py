"""Where a model is loaded from: a run, a head's file, a released folder; and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import askance
from askance import places
from askance.features.store import FeatureStore
from askance.features.views import decode
from askance.heads.checkpoint import load
from askance.pipeline.artifacts import read_json, sha256
from askance.stages import evaluate, probe


@pytest.fixture(scope="module")
def weights(checkpoint):
    return str(checkpoint(img_size=32))


@pytest.fixture(scope="module")
def released(whole_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    askance.load(whole_run).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(released, tmp_path):
    """Return a released folder that a test may change."""
    shutil.copytree(released, tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture
def run(whole_run, tmp_path):
    """Return a run that a test may change, without its data."""
    for name in ("models", "stores", "results"):
        shutil.copytree(whole_run / name, tmp_path / name)
    return tmp_path


def edit(path, **fields):
    path.write_text(json.dumps(read_json(path) | fields))


def rewrite(path, tensors=None, card=None):
    """Change tensors of a head's file, and fields of its own card, as a stranger could."""
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["askance"])
    metadata = {"askance": json.dumps(told | (card or {}))}
    save_file(load_file(path) | (tensors or {}), path, metadata)


def reseal(folder):
    """Give a released folder's card the hash of its tensors, and what these say of themselves."""
    saved = load(folder / places.TENSORS)
    about = places.described(saved) | {"sha256": sha256(folder / places.TENSORS)}
    edit(folder / places.CARD, **about)


def test_a_runs_first_head_is_loaded_with_the_weights_of_the_run(whole_run, encode):
    model = askance.load(whole_run)
    assert (model.saved.name, model.saved.seed) == ("ranking", 0)
    store = FeatureStore.open(whole_run / "stores" / "new.zarr")
    embedding, _ = model([decode(encode(number)) for number in range(5)])
    np.testing.assert_allclose(embedding, store.embedding("plain")[:5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"seed": 1}, ("ranking", 1)),
        ({"head": "norm"}, ("norm", 0)),
        ({"head": "ranking", "seed": 1}, ("ranking", 1)),
    ],
)
def test_another_head_of_a_run_is_named(whole_run, asked, expected):
    saved = places.find(whole_run, asked.get("head", ""), asked.get("seed")).saved
    assert (saved.name, saved.seed) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"head": "rank"}, "expected the head rank in .*models, got ranking, norm: name"),
        (
            {"seed": 7},
            r"expected the head of any name \(seed 7\) in .*models, got ranking, norm: name",
        ),
        ({"head": "norm", "seed": 1}, r"expected the head norm \(seed 1\)"),
    ],
)
def test_a_head_that_a_run_lacks_is_named_beside_those_it_has(whole_run, asked, message):
    with pytest.raises(FileNotFoundError, match=message):
        askance.load(whole_run, **asked)


def test_the_folder_of_heads_is_as_good_as_the_runs(whole_run):
    one, other = places.find(whole_run), places.find(whole_run / "models")
    assert (one.weights, one.about) == (other.weights, other.about)


def test_a_file_is_loaded_without_what_the_run_knows(whole_run, weights):
    model = askance.load(whole_run / "models" / "norm-0.safetensors", weights=weights)
    assert (model.saved.name, model.saved.classifier, model.about) == ("norm", None, {})


def test_another_head_than_that_of_a_file_or_a_release_is_refused(whole_run, folder, weights):
    for place in (whole_run / "models" / "norm-0.safetensors", folder):
        for asked in ({"head": "squared"}, {"seed": 5}):
            with pytest.raises(
                ValueError, match=r"expected the head .* got .* hold one head, name"
            ):
                askance.load(place, weights, **asked)
    name = askance.load(folder, weights).saved.name
    assert askance.load(folder, weights, head=name, seed=0).saved.name == name


def test_a_run_without_heads_and_a_place_without_anything_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="in .*, got none: name one of those, or train"):
        askance.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a head's file, a run's folder or"):
        askance.load(tmp_path / "none")


def test_the_classifier_is_that_of_the_probe_and_its_classes_are_named(whole_run):
    model = askance.load(whole_run)
    store = FeatureStore.open(whole_run / "stores" / "upstream.probe.zarr")
    upstream = FeatureStore.open(whole_run / "stores" / "upstream.zarr")
    embedding = upstream.embedding("plain")
    expected = store.classifier.logits(embedding)
    logits = model.classifier(torch.from_numpy(embedding))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert model.classes == ["0", "1", "2", "3"]


def test_a_backbones_own_classifier_keeps_its_columns(tmp_path, make_set, extract, checkpoint):
    from askance.stages import train

    own = str(checkpoint(classes=9, img_size=32))
    stores = tmp_path / "stores"
    data = make_set(tmp_path, n=12)
    store = extract(data, stores / "up.zarr", views=["plain"], classifier="own", weights=own)
    probe.run(store, stores / "up.probe.zarr", columns="all")
    curves = tmp_path / "curves"
    train.run(
        store, stores / "up.probe.zarr", tmp_path / "models", curves, heads=["norm"], seeds=[0]
    )
    model = askance.load(tmp_path)
    assert len(model.classes) == model.classifier.out_features == 9
    assert model.about.keys() == {"classes"}


def test_without_the_stores_the_head_is_all_that_is_known(run):
    shutil.rmtree(run / "stores")
    found = places.find(run)
    assert (found.weights, found.saved.classifier) == ("pretrained", None)
    assert "classes" not in found.about


def test_another_probe_than_the_heads_is_not_its_classifier(run):
    stores = run / "stores"
    probe.run(stores / "upstream.zarr", stores / "upstream.probe.zarr", folds=3, iterations=5)
    assert places.find(run).saved.classifier is None


def test_what_was_measured_is_the_mean_over_seeds_as_the_run_has_it(whole_run):
    about, metrics = (
        places.find(whole_run).about,
        read_json(whole_run / "results" / "metrics.json"),
    )
    assert about["seeds"] == [0, 1]
    assert about["metrics"]["r_auroc"] == metrics["r_auroc"]["ranking"]
    assert about["metrics"]["r1"] == metrics["r1"]["backbone"]
    assert about["data"]["upstream"]["rows"] == 40
    assert [each["name"] for each in about["data"]["sets"]] == ["new"]


def test_without_results_nothing_was_measured(run):
    shutil.rmtree(run / "results")
    assert places.find(run).about.keys() == {"classes"}


@pytest.mark.parametrize(
    "change",
    [
        {"heads": [{"name": "ranking", "seeds": [0], "tensors": ["of another training"]}]},
        {"heads": [{"name": "ranking", "seeds": [1], "tensors": ["of another seed"]}]},
        {"heads": []},
    ],
)
def test_results_of_other_heads_are_refused(run, change):
    edit(run / "results" / "run.json", **change)
    with pytest.raises(ValueError, match=r"expected results of ranking .seed 0. .*run evaluate ag"):
        askance.load(run)


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.json", "{"), ("run.json", "[]"), ("run.json", "{}"), ("metrics.json", '{"r1": 3}')],
)
def test_damaged_results_are_told(run, name, text):
    (run / "results" / name).write_text(text)
    with pytest.raises(ValueError, match="expected the results of evaluate in .*run evaluate ag"):
        askance.load(run)


def test_a_run_may_be_evaluated_anew_and_moved(run, tmp_path_factory, whole_run):
    """Nothing but the place of a local checkpoint is told by its path."""
    other = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(run, other)
    losses = other / "stores" / "upstream.probe.zarr"
    results = other / "results"
    neighbours = whole_run / "neighbours"
    evaluate.run(other / "models", losses, other / "stores", neighbours, results, sets=["new"])
    assert places.find(other).about["metrics"] == places.find(whole_run).about["metrics"]


def test_a_checkpoint_is_looked_for_from_the_runs_folder(run):
    told = places.find(run).weights
    shutil.copy(told, run / "net.safetensors")  # which is no head, and must not be taken for one
    store = run / "stores" / "upstream.zarr" / "zarr.json"
    store.write_text(store.read_text().replace(told, "net.safetensors"))
    assert places.find(run).weights == str(run / "net.safetensors")


def test_a_store_of_another_backbone_does_not_say_where_the_weights_are(run):
    store = run / "stores" / "upstream.zarr" / "zarr.json"
    store.write_text(store.read_text().replace(places.find(run).saved.backbone["weights"], "x"))
    assert places.find(run).weights == "pretrained"


def test_a_released_folder_gives_what_the_run_gives(released, whole_run, weights):
    run, model = askance.load(whole_run), askance.load(released, weights=weights)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    for one, other in zip(model(pixels), run(pixels), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(model.quantiles, run.quantiles, rtol=0, atol=0)
    torch.testing.assert_close(model.classifier.weight, run.classifier.weight, rtol=0, atol=0)
    assert (model.classes, model.about) == (run.classes, run.about)
    assert sorted(path.name for path in released.iterdir()) == sorted(places.FILES)


def test_releasing_what_was_released_changes_no_byte_of_its_tensors(released, tmp_path, weights):
    askance.load(released, weights=weights).save_pretrained(tmp_path)
    for name in places.FILES:
        assert (tmp_path / name).read_bytes() == (released / name).read_bytes()


def test_a_release_over_another_has_a_readme_of_its_own(folder, whole_run):
    askance.load(whole_run, head="norm").save_pretrained(folder)
    assert "# `norm` on `test_vit`" in (folder / places.README).read_text()
    assert places.find(folder).saved.name == "norm"


def test_a_metric_that_is_undefined_is_null_and_not_a_number_of_a_strangers_dialect(folder):
    rewrite(folder / places.TENSORS, card={"note": {"r_auroc": float("nan")}})
    reseal(folder)
    assert "NaN" not in (folder / places.CARD).read_text()
    assert places.find(folder).saved.name == "ranking"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "expected a card in .*config.json, got Expecting property name.*: pull again"),
        ("\x00\udcff", "expected a card in .*: pull again"),
        ("[" * 100_000, "expected a card in .*, got maximum recursion.*: pull again"),
        ("[1]", "expected a card of format askance-model/1, got list in"),
        ("{}", "expected a card of format askance-model/1, got None in"),
        ('{"format": "askance-model/2"}', "expected a card of format .*, got askance-model/2"),
        ('{"format": "askance-model/1"}', "expected a card with sha256 and about in"),
        ('{"format": "askance-model/1", "sha256": 3, "about": {}}', "with sha256 and about"),
        ('{"format": "askance-model/1", "sha256": "ab", "about": []}', "with sha256 and about"),
        ('{"format": "askance-model/1", "sha256": "ab", "about": {}}', "with the SHA-256 ab... th"),
    ],
)
def test_what_is_no_card_is_refused(folder, card, message):
    (folder / places.CARD).write_bytes(card.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        askance.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head", "norm"),
        ("seed", 5),
        ("dim", 3),
        ("backbone", {"backbone": "resnet50"}),
        ("training", {}),
        ("quantiles", None),
        ("about", {"classes": ["a"]}),
        ("about", {"classes": "abcd"}),
    ],
)
def test_a_card_that_says_another_thing_than_its_tensors_is_refused(folder, field, value):
    edit(folder / places.CARD, **{field: value})
    field = "classes" if field == "about" else field
    message = rf"expected config.json to say what .*model.safetensors does, got another {field}"
    with pytest.raises(ValueError, match=message):
        askance.load(folder)


def test_tensors_that_are_cut_changed_or_missing_are_refused(folder):
    path = folder / places.TENSORS
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="with the SHA-256 .*, got another file: pull the"):
            askance.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match="with the SHA-256 .*, got none: pull the model again"):
        askance.load(folder)


def test_other_weights_of_the_backbone_are_refused_with_the_mend(released, checkpoint):
    with pytest.raises(ValueError, match="expected the weights .* name their checkpoint by `wei"):
        askance.load(released, weights=str(checkpoint(seed=1, img_size=32)))


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/x", "/x/resnet50", "resnet50.hf-hub:a/b", "?"]
)
def test_no_name_in_a_card_makes_timm_look_elsewhere(folder, name, weights, monkeypatch):
    from askance.features import backbone

    def create(*_, **__):
        raise AssertionError("asked timm for a foreign name")

    monkeypatch.setattr(backbone.timm, "create_model", create)
    told = load(folder / places.TENSORS).backbone
    rewrite(folder / places.TENSORS, card={"backbone": told | {"backbone": name}})
    reseal(folder)
    for given in ("", weights):
        with pytest.raises(ValueError, match="expected a timm model, got"):
            askance.load(folder, weights=given)


def test_another_backbone_is_refused(folder, checkpoint):
    told = load(folder / places.TENSORS).backbone
    rewrite(folder / places.TENSORS, card={"backbone": told | {"backbone": "test_resnet"}})
    reseal(folder)
    with pytest.raises(ValueError, match=r"expected the weights \w{12} of test_resnet"):
        askance.load(folder, weights=str(checkpoint("test_resnet")))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", 3),
        ("weights", None),
        ("precision", "float8"),
        ("precision", []),
        ("preprocessing", None),
        ("preprocessing", {}),
        ("size", 10**9),
        ("size", -1),
        ("size", "x"),
        ("size", float("inf")),
        ("crop", 1e-9),
        ("crop", float("nan")),
        ("interpolation", "nearest"),
        ("interpolation", []),
        ("mean", [0, 0]),
        ("mean", ["a", "b", "c"]),
        ("std", [0, 0, 0]),
        ("std", [1, 1, float("inf")]),
    ],
)
def test_a_backbone_that_can_not_be_is_refused_before_it_costs_memory(folder, field, value):
    told = load(folder / places.TENSORS).backbone
    inner = {} if field in told else {"preprocessing": told["preprocessing"] | {field: value}}
    rewrite(folder / places.TENSORS, card={"backbone": told | (inner or {field: value})})
    with pytest.raises(ValueError, match="expected .*model.safetensors to tell (its|a) backbone"):
        askance.load(folder / places.TENSORS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"head.layers.0.weight": torch.full((8, 64), torch.nan)},
            "expected finite weights, got N",
        ),
        (
            {"head.layers.0.weight": torch.zeros(8, 65)},
            "expected tensors of a head ranking of .*'l",
        ),
        (
            {"head.other": torch.zeros(1)},
            "expected tensors of a head ranking of .*got others, such",
        ),
        ({"quantiles": torch.zeros(5).double()}, "expected 1001 rising quantiles, got others"),
        ({"quantiles": torch.zeros(1001)}, "expected 1001 rising quantiles"),
        ({"quantiles": -torch.arange(1001).double()}, "expected 1001 rising quantiles"),
        ({"quantiles": torch.zeros(())}, "expected a whole head in .*safetensors"),
        ({"classifier.weight": torch.zeros(4, 3)}, r"a classifier of 64 columns, got \(4, 3\) and"),
        ({"classifier.bias": torch.zeros(3)}, r"expected a classifier of 64 columns, .* \(3,\)"),
        ({"classifier.bias": torch.full((4,), torch.inf)}, "expected finite weights, got NaN or i"),
    ],
)
def test_tensors_that_are_no_heads_are_refused(folder, tensors, message):
    rewrite(folder / places.TENSORS, tensors)
    with pytest.raises(ValueError, match=message):
        askance.load(folder / places.TENSORS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 10**12),
        ("width", 10**5),
        ("depth", 10**9),
        ("classes", -1),
        ("classes", "4"),
        ("seed", None),
        ("note", []),
        ("head", ["ranking"]),
        ("backbone", "test_vit"),
    ],
)
def test_sizes_and_fields_that_can_not_be_are_refused_before_they_cost_memory(folder, field, value):
    rewrite(folder / places.TENSORS, card={field: value})
    message = "no usable" if field != "width" else "expected tensors of a head ranking of"
    with pytest.raises(ValueError, match=message):
        askance.load(folder / places.TENSORS)


@pytest.mark.parametrize("card", ["[]", "3", "{", "[" * 10_000])
def test_a_head_whose_own_card_is_no_object_is_refused(folder, card):
    path = folder / places.TENSORS
    save_file(load_file(path), path, {"askance": card})
    with pytest.raises(ValueError, match=r"expected a head (of format|in .*, got a damaged file)"):
        askance.load(path)


def test_a_model_that_was_trained_since_is_not_released_and_leaves_what_is_there(folder, weights):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = askance.load(folder, weights)
    with torch.no_grad():
        model.head.layers[0].weight.add_(1)
    with pytest.raises(ValueError, match="expected the head as it was loaded, got one trained sin"):
        model.save_pretrained(folder)
    model = askance.load(folder, weights).bfloat16()
    with pytest.raises(ValueError, match=r"got others .trained since..: train a head on them"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_release_is_never_written_among_other_files(whole_run, tmp_path):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ValueError, match="expected a new folder, or a model's, got"):
        askance.load(whole_run).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
