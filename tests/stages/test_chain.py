"""From a finished store to the page, on tiny data: probe, retrieve, train, evaluate, report."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from askance.eval.metrics import human_correlation, r_auroc
from askance.features.store import FeatureStore
from askance.heads.checkpoint import load
from askance.stages import evaluate, mix, prepare, probe, report, retrieve, train

HEADS = ["ranking", "squared", "entropy", "maxprob", "norm", "infonce"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, make_set, extract):
    """Run everything once: 60 upstream images of 4 classes, 24 others of them, 30 of new ones."""
    root = tmp_path_factory.mktemp("chain")
    sets = {"upstream": (60, 4), "seen": (24, 4), "new": (30, 5)}
    (root / "data").mkdir()
    for name, (n, classes) in sets.items():
        make_set(root / name, n=n, classes=classes).rename(root / "data" / name)
        views = ["plain", "augment"] if name == "upstream" else ["plain", "crop"]
        extract(root / "data" / name, root / "stores" / f"{name}.zarr", views=views)
    run_from_probe(root)
    return root


def run_from_probe(root, folds=3, heads=HEADS, **options):
    stores = root / "stores"
    probe.run(stores / "upstream.zarr", stores / "upstream.probe.zarr", folds=folds, iterations=20)
    for name in ("seen", "new"):
        retrieve.run(stores / f"{name}.zarr", root / "neighbours" / f"{name}.parquet")
    mixed = root / "neighbours" / "mixed" / "new.parquet"
    mix.run(stores / "new.zarr", stores / "seen.zarr", mixed)
    options = {"heads": heads, "seeds": [0, 1], "steps": 5, "batch": 16, "width": 8} | options
    train.run(
        stores / "upstream.zarr",
        stores / "upstream.probe.zarr",
        root / "models",
        root / "results" / "training",
        **options,
    )
    run_evaluate(root)


def run_evaluate(
    root,
    sets=("seen", "new"),
    upstream=("seen",),
    models=None,
    results=None,
    stores=None,
    neighbours=None,
    mixed=("new",),
):
    evaluate.run(
        models or root / "models",
        root / "stores" / "upstream.probe.zarr",
        stores or root / "stores",
        neighbours or root / "neighbours",
        results or root / "results",
        sets=list(sets),
        upstream=list(upstream),
        mixed=list(mixed),
    )


def rows(results):
    table = pq.read_table(results / "table.parquet").to_pylist()
    return {(r["metric"], r["head"], r["set"], r["seed"]): r for r in table}


def test_probe_gives_each_row_the_loss_of_a_probe_that_never_saw_it(chain):
    store = FeatureStore.open(chain / "stores" / "upstream.probe.zarr")
    upstream = FeatureStore.open(chain / "stores" / "upstream.zarr")
    assert store.read("loss").shape == (60, 2)
    np.testing.assert_array_equal(store.array("classifier/label")[:], [0, 1, 2, 3])
    # The pictures are noise: in sample a probe learns them by heart, cross-fitted it can't.
    assert store.read("loss_in_sample").mean() < np.log(4) < store.read("loss").mean()
    weight, bias = (store.array(f"classifier/{n}")[:] for n in ("weight", "bias"))
    logits = torch.from_numpy(upstream.embedding("plain") @ weight.T + bias)
    loss = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(upstream.labels).long(), reduction="none"
    )
    np.testing.assert_allclose(store.read("loss_in_sample")[:, 0], loss, rtol=1e-3, atol=1e-5)


def test_a_backbones_own_classifier_is_kept_and_can_be_restricted(
    tmp_path, make_set, extract, checkpoint
):
    data = make_set(tmp_path, n=20, classes=3)
    weights = str(checkpoint(classes=9, img_size=32))
    store = extract(data, tmp_path / "u.zarr", classifier="own", weights=weights)
    probe.run(store, tmp_path / "all.zarr", columns="all")
    probe.run(store, tmp_path / "present.zarr", columns="present")
    own, whole, present = (
        FeatureStore.open(tmp_path / f"{n}.zarr") for n in ("u", "all", "present")
    )
    np.testing.assert_allclose(whole.read("loss"), own.read("loss"), rtol=1e-5)
    np.testing.assert_array_equal(present.array("classifier/label")[:], [0, 1, 2])
    logits = (
        own.read("embedding") @ own.array("classifier/weight")[:][:3].T
        + own.array("classifier/bias")[:][:3]
    )
    label = own.labels[:, None, None].repeat(2, axis=1)
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, label, -1)[..., 0]
    np.testing.assert_allclose(present.read("loss"), expected, rtol=1e-4)


def test_every_head_and_seed_is_saved_with_its_scale(chain):
    names = sorted(path.stem for path in (chain / "models").iterdir())
    assert names == [
        "entropy-0",
        "infonce-0",
        "infonce-1",
        "maxprob-0",
        "norm-0",
        "ranking-0",
        "ranking-1",
        "squared-0",
        "squared-1",
    ]
    saved = load(chain / "models" / "ranking-1.safetensors")
    assert saved.backbone["backbone"] == "test_vit"
    upstream = FeatureStore.open(chain / "stores" / "upstream.zarr")
    plain = saved.head.uncertainty(torch.from_numpy(upstream.embedding("plain"))).numpy()
    np.testing.assert_allclose(np.median(saved.percentile(plain)), 0.5, atol=0.02)


def test_training_twice_gives_the_same_heads(chain, tmp_path):
    first = {path.name: path.read_bytes() for path in (chain / "models").iterdir()}
    run_from_probe(chain)
    assert {path.name: path.read_bytes() for path in (chain / "models").iterdir()} == first


def test_the_table_holds_what_the_definitions_say(chain):
    table = rows(chain / "results")
    queries = pq.read_table(chain / "results" / "queries" / "new.parquet")
    u, hit = queries["uncertainty/ranking/1"].to_numpy(), queries["hit"].to_numpy()
    pairs = [(a > b) + (a == b) / 2 for a in u[~hit] for b in u[hit]]
    assert table["r_auroc", "ranking", "new", 1]["value"] == pytest.approx(np.mean(pairs))
    mean = table["r_auroc", "ranking", "new", -1]
    seeds = [table["r_auroc", "ranking", "new", s]["value"] for s in (0, 1)]
    assert mean["value"] == pytest.approx(np.mean(seeds))
    assert mean["sd"] == pytest.approx(np.std(seeds, ddof=1))
    assert mean["lower"] <= mean["value"] <= mean["upper"]
    assert table["r1", "", "new", -1]["value"] == pytest.approx(hit.mean())
    assert ("spearman_loss", "ranking", "seen", -1) in table
    assert ("spearman_loss", "ranking", "new", -1) not in table
    # One zero-shot set: the average is that set.
    assert table["r_auroc", "ranking", "average", -1]["value"] == pytest.approx(mean["value"])
    distance = queries["uncertainty/neighbour-distance/0"].to_numpy()
    np.testing.assert_allclose(distance, 1 - queries["similarity"].to_numpy())


def hits_of(store, embedding):
    unit = torch.nn.functional.normalize(torch.from_numpy(embedding).double(), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1).numpy()
    return store.labels == store.labels[nearest]


def remapped(root, folder, maps):
    """Return the results with the maps of infonce changed, seed by seed."""
    (folder / "models").mkdir(parents=True)
    for path in (root / "models").iterdir():
        tensors = load_file(path)
        if path.stem.startswith("infonce"):
            tensors["head.map.weight"] = maps[int(path.stem[-1])]
        with safe_open(path, "pt") as file:
            save_file(tensors, folder / "models" / path.name, file.metadata())
    run_evaluate(root, models=folder / "models", results=folder / "results")
    return folder / "results"


def test_a_head_that_maps_answers_for_the_neighbours_of_its_own_map(chain, tmp_path):
    maps = {seed: torch.randn(64, 64, generator=torch.manual_seed(seed)) for seed in (0, 1)}
    results = remapped(chain, tmp_path, maps)
    table, store = rows(results), FeatureStore.open(chain / "stores" / "new.zarr")
    queries = pq.read_table(results / "queries" / "new.parquet")
    frozen, recalls = queries["hit"].to_numpy(), []
    for seed, weight in maps.items():
        hit = hits_of(store, store.embedding("plain") @ weight.numpy().T)
        np.testing.assert_array_equal(queries[f"hit/infonce/{seed}"].to_numpy(), hit)
        assert (hit != frozen).any()
        u = queries[f"uncertainty/infonce/{seed}"].to_numpy()
        assert table["r_auroc", "infonce", "new", seed]["value"] == r_auroc(u, hit)
        assert table["r_auroc", "infonce", "new", seed]["value"] != r_auroc(u, frozen)
        assert table["r1", "infonce", "new", seed]["value"] == hit.mean()
        recalls.append(hit.mean())
    mean = table["r1", "infonce", "new", -1]
    assert (mean["value"], mean["sd"]) == (np.mean(recalls), np.std(recalls, ddof=1))
    assert table["r1", "infonce", "average", -1]["value"] == mean["value"]
    assert table["r1", "", "new", -1]["value"] == frozen.mean()
    assert "hit/ranking/0" not in queries.column_names


def test_a_map_that_keeps_angles_keeps_the_numbers_of_the_frozen_embedding(chain, tmp_path):
    turn, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.manual_seed(0)))
    results = remapped(chain, tmp_path, [3 * turn.contiguous()] * 2)
    queries = pq.read_table(results / "queries" / "new.parquet")
    assert queries["hit/infonce/1"].to_pylist() == queries["hit"].to_pylist()
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["r1"]["infonce"] == metrics["r1"]["backbone"]
    # Of a third the lengths; two that are nearly equal may change places in the product's rounding,
    # which turns one of the set's 144 pairs.
    norm = metrics["r_auroc"]["norm"]
    assert metrics["r_auroc"]["infonce"] == pytest.approx(norm, abs=1.01 / 144)


def test_bars_have_the_numbers_of_the_table(chain):
    table = rows(chain / "results")
    found = json.loads((chain / "results" / "r_auroc.json").read_text())
    assert {(bar["set"], bar["head"]) for bar in found} == {
        (name, head)
        for name in ("seen", "new", "average")
        for head in (*HEADS, evaluate.NEIGHBOUR_DISTANCE)
    }
    for bar in found:
        row = table["r_auroc", bar["head"], bar["set"], -1]
        numbers = [bar["r_auroc"], bar["lower"], bar["upper"]]
        np.testing.assert_array_equal(
            np.array(numbers, float), [row["value"], row["lower"], row["upper"]]
        )


def test_bins_of_the_percentile_have_the_share_of_wrong_neighbours(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "FEW", 3)
    run_evaluate(chain, results=tmp_path)
    queries = pq.read_table(tmp_path / "queries" / "new.parquet")
    bins = json.loads((tmp_path / "calibration.json").read_text())
    for head, own in (("ranking", ["hit"]), ("infonce", ["hit/infonce/0", "hit/infonce/1"])):
        wrong = 1 - np.mean([queries[name].to_numpy() for name in own], axis=0)
        tenth = np.minimum(queries[f"percentile/{head}"].to_numpy() * 10, 9).astype(int)
        found = [each for each in bins if (each["set"], each["head"]) == ("new", head)]
        assert [each["images"] for each in found] == np.bincount(tenth, minlength=10).tolist()
        assert any(each["wrong"] is not None for each in found)
        for i, each in enumerate(found):
            assert each["percentile"] == pytest.approx(0.05 + i / 10)
            here = wrong[tenth == i]
            assert each["wrong"] == (pytest.approx(here.mean()) if len(here) >= 3 else None)


def test_the_run_says_which_heads_are_variants_and_which_map(chain):
    heads = {
        h["name"]: h for h in json.loads((chain / "results" / "run.json").read_text())["heads"]
    }
    assert [name for name, head in heads.items() if head["of_backbone"]] == [
        "squared",
        "entropy",
        "infonce",
    ]
    assert [name for name, head in heads.items() if head["mapped"]] == ["infonce"]


def test_the_printed_averages_are_marked(chain, capsys):
    run_evaluate(chain)
    printed = capsys.readouterr()
    lines = {line.split("  R-AUROC")[0].strip(): line for line in printed.out.splitlines()}
    assert [*lines][1:8] == [
        "ranking",
        "squared †",
        "entropy †",
        "maxprob",
        "norm",
        "infonce †‡",
        "neighbour-distance",
    ]
    own = rows(chain / "results")["r1", "infonce", "average", -1]["value"]
    assert lines["infonce †‡"].endswith(f"  R@1 {own:.3f}")
    assert "R@1" not in lines["squared †"]
    assert "\n† frozen-backbone variant: " in printed.out
    assert (
        "\n‡ its neighbours, and so hits, R@1, R-AUROC and AURC, are those of its own"
        in printed.out
    )
    assert "evaluate: 12/12 head-sets" in printed.err


def test_without_a_zero_shot_set_there_is_no_average(chain, tmp_path, capsys):
    run_evaluate(chain, sets=["seen"], mixed=[], results=tmp_path)
    assert capsys.readouterr().out == "no average: no set is zero-shot\n"


def test_metrics_are_plain_nested_json(chain):
    metrics = json.loads((chain / "results" / "metrics.json").read_text())
    plain = {"r1", "r_auroc", "aurc", "excess_aurc", "augrc", "crop_win", "crop_correlation"}
    plain |= {"mixed_r_auroc", "ood_auroc", "auroc_classification", "spearman_loss"}
    assert set(metrics) == plain | {f"{name}_sd" for name in plain} | {"r_auroc_difference"}
    assert set(metrics["r_auroc"]) == {*HEADS, "neighbour-distance"}
    assert set(metrics["r1"]) == {"backbone", "infonce"}
    assert set(metrics["r1_sd"]) == {"infonce"}
    assert set(metrics["r_auroc"]["ranking"]) == {"seen", "new", "average"}


def test_a_mixture_has_as_many_images_of_either_store_with_their_true_neighbours(chain):
    table = pq.read_table(chain / "neighbours" / "mixed" / "new.parquet")
    seen, new = (FeatureStore.open(chain / "stores" / f"{n}.zarr") for n in ("seen", "new"))
    known, row = table["upstream"].to_numpy(), table["row"].to_numpy()
    assert known.tolist() == [True] * 24 + [False] * 24  # the smaller store has 24
    assert all(len(set(rows)) == 24 for rows in (row[known], row[~known]))
    embedding = np.concatenate(
        [seen.embedding("plain")[row[known]], new.embedding("plain")[row[~known]]]
    )
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(48)
    label = np.concatenate([seen.labels[row[known]], new.labels[row[~known]] + 100])
    np.testing.assert_array_equal(table["hit"], label == label[similarity.argmax(1)])


def test_a_mixture_is_scored_by_its_own_hits_and_those_of_a_head_that_maps(chain):
    mixed = pq.read_table(chain / "results" / "queries" / "new.mixed.parquet")
    queries = {
        name: pq.read_table(chain / "results" / "queries" / f"{name}.parquet")
        for name in ("seen", "new")
    }
    known = mixed["upstream"].to_numpy()
    for name, half in (("seen", known), ("new", ~known)):
        column = queries[name]["uncertainty/ranking/1"].to_numpy()
        found = mixed["uncertainty/ranking/1"].to_numpy()[half]
        np.testing.assert_allclose(found, column[mixed["row"].to_numpy()[half]], rtol=1e-5)
    cell = rows(chain / "results")["mixed_r_auroc", "infonce", "new", 1]
    own = mixed["hit/infonce/1"].to_numpy()
    assert cell["value"] == r_auroc(mixed["uncertainty/infonce/1"].to_numpy(), own)
    ood = rows(chain / "results")["ood_auroc", "ranking", "new", 0]["value"]
    assert ood == r_auroc(mixed["uncertainty/ranking/0"].to_numpy(), known)


def test_a_mixture_that_was_not_made_is_asked_of_mix(chain, tmp_path):
    with pytest.raises(FileNotFoundError, match="got no such file: run mix"):
        run_evaluate(chain, results=tmp_path, mixed=["seen"])
    with pytest.raises(ValueError, match=r"expected evaluate.mixed among .* got \['other'\]"):
        run_evaluate(chain, results=tmp_path, mixed=["other"])
    run_evaluate(chain, results=tmp_path, mixed=[])
    assert not (tmp_path / "queries" / "new.mixed.parquet").exists()


def test_queries_drawn_by_lot_search_the_whole_set(chain, tmp_path):
    shutil.copytree(chain / "neighbours", tmp_path / "neighbours")
    whole = pq.read_table(chain / "neighbours" / "new.parquet")
    some = tmp_path / "neighbours" / "new.parquet"
    retrieve.run(chain / "stores" / "new.zarr", some, queries=11)
    table = pq.read_table(some)
    assert len(table) == 11
    assert table.to_pylist() == whole.take(table["row"]).to_pylist()
    run_evaluate(chain, results=tmp_path / "results", neighbours=tmp_path / "neighbours")
    queries = pq.read_table(tmp_path / "results" / "queries" / "new.parquet")
    every = pq.read_table(chain / "results" / "queries" / "new.parquet").take(table["row"])
    for name in ("uncertainty/ranking/0", "cropped/ranking/0", "hit/infonce/1", "fraction"):
        np.testing.assert_allclose(queries[name], every[name], rtol=1e-5)
    value = rows(tmp_path / "results")["r_auroc", "ranking", "new", 0]["value"]
    assert value == r_auroc(queries["uncertainty/ranking/0"].to_numpy(), queries["hit"].to_numpy())


def test_votes_are_compared_with_the_uncertainty_where_people_voted(
    chain, tmp_path, extract, write_tar, encode
):
    votes = np.random.default_rng(0).integers(0, 4, (12, 3))
    votes[:, 0] += 1
    members = {}
    for i, row in enumerate(votes.tolist()):
        members |= {f"v{i}.png": encode(700 + i), f"v{i}.cls": str(i % 3).encode()}
        members |= {f"v{i}.votes": json.dumps(row).encode()} if i else {}
    tar = write_tar(tmp_path / "voted.tar", members)
    prepare.run(tmp_path / "voted", [f"shards 'path={tar}' votes=votes"])
    store = extract(tmp_path / "voted", tmp_path / "stores" / "voted.zarr", views=["plain", "crop"])
    retrieve.run(store, tmp_path / "neighbours" / "voted.parquet")
    where = {"results": tmp_path / "results", "neighbours": tmp_path / "neighbours"}
    run_evaluate(chain, ["voted"], [], stores=tmp_path / "stores", mixed=[], **where)
    queries = pq.read_table(tmp_path / "results" / "queries" / "voted.parquet")
    uncertainty = queries["uncertainty/ranking/0"].to_numpy()[1:]
    cell = rows(tmp_path / "results")["human_correlation", "ranking", "voted", 0]
    assert cell["value"] == human_correlation(uncertainty, votes[1:])


def test_the_page_is_written(chain):
    report.run(chain / "results", chain / "data")
    page = (chain / "results" / "report.html").read_text()
    table = rows(chain / "results")
    assert f"{table['r_auroc', 'ranking', 'new', -1]['value']:.2f}" in page
    assert f"R@1 {table['r1', 'infonce', 'new', -1]['value']:.2f}" in page


def test_a_store_of_another_backbone_is_refused_by_the_heads(chain, tmp_path, extract, checkpoint):
    stores = tmp_path / "stores"
    other = str(checkpoint(seed=1, img_size=32))
    extract(chain / "data" / "new", stores / "new.zarr", views=["plain", "crop"], weights=other)
    retrieve.run(stores / "new.zarr", tmp_path / "new.parquet")
    with pytest.raises(ValueError, match="expected embeddings of the backbone that head ranking"):
        evaluate.run(
            chain / "models",
            chain / "stores" / "upstream.probe.zarr",
            stores,
            tmp_path,
            tmp_path,
            sets=["new"],
            upstream=[],
        )


def test_a_set_of_other_classes_is_not_taken_for_upstream(chain):
    with pytest.raises(
        ValueError, match=r"expected the classes of the upstream store .*\[4\].*leave new out"
    ):
        run_evaluate(chain, upstream=["seen", "new"])
    run_evaluate(chain)


def test_losses_of_another_store_are_refused(chain, tmp_path, make_set, extract):
    store = extract(make_set(tmp_path), tmp_path / "u.zarr")
    with pytest.raises(
        ValueError, match="expected the losses of .*u.zarr, got .*made from another"
    ):
        train.run(
            store,
            chain / "stores" / "upstream.probe.zarr",
            tmp_path / "m",
            tmp_path / "curves",
            heads=["ranking"],
            seeds=[0],
        )


def test_an_odd_batch_and_an_unknown_head_leave_the_old_heads_alone(chain):
    before = sorted(path.name for path in (chain / "models").iterdir())
    with pytest.raises(ValueError, match="expected an even batch"):
        run_from_probe(chain, batch=15)
    with pytest.raises(ValueError, match="expected a head among"):
        run_from_probe(chain, heads=["rank"])
    assert sorted(path.name for path in (chain / "models").iterdir()) == before


def test_what_was_not_run_yet_is_named(chain, tmp_path):
    losses = chain / "stores" / "upstream.probe.zarr"
    with pytest.raises(FileNotFoundError, match="expected heads in .*models, got none: run train"):
        evaluate.run(tmp_path / "models", losses, tmp_path, tmp_path, tmp_path, sets=["a"])
    with pytest.raises(ValueError, match="expected a store of format .*run extract"):
        probe.run(tmp_path / "a.zarr", tmp_path / "b.zarr")


def test_two_lines_score_a_picture(chain, checkpoint):
    import askance

    model = askance.load(
        chain / "models" / "ranking-0.safetensors", weights=str(checkpoint(img_size=32))
    )
    pictures = [Image.new("RGB", (50, 40), colour) for colour in ("red", "green")]
    embedding, uncertainty = model(pictures)
    assert embedding.shape == (2, 64)
    torch.testing.assert_close(uncertainty, model.head.uncertainty(embedding))
    assert ((model.percentile(uncertainty) >= 0) & (model.percentile(uncertainty) <= 1)).all()
    assert not any(p.requires_grad for p in model.parameters())


def test_the_model_equals_the_store(chain, checkpoint, encode):
    import askance
    from askance.features.views import decode

    model = askance.load(
        chain / "models" / "norm-0.safetensors", weights=str(checkpoint(img_size=32))
    )
    store = askance.open_store(chain / "stores" / "new.zarr")
    embedding, _ = model([decode(encode(i)) for i in range(5)])
    np.testing.assert_allclose(
        embedding.numpy(), store.embedding("plain")[:5], rtol=1e-4, atol=1e-5
    )


def test_a_model_with_other_weights_is_refused(chain, checkpoint):
    import askance

    with pytest.raises(ValueError, match="expected the weights .* of test_vit, which"):
        askance.load(
            chain / "models" / "norm-0.safetensors", weights=str(checkpoint(seed=1, img_size=32))
        )


def test_a_misspelt_upstream_set_is_named(chain):
    with pytest.raises(ValueError, match=r"expected evaluate.upstream among .* got \['sen'\]"):
        run_evaluate(chain, upstream=["sen"])


def test_neighbours_of_another_store_are_refused(chain, tmp_path, extract):
    extract(chain / "data" / "new", tmp_path / "new.zarr", views=["plain", "crop"], seed=9)
    retrieve.run(tmp_path / "new.zarr", chain / "neighbours" / "new.parquet")
    with pytest.raises(ValueError, match="got those of another: run retrieve"):
        run_evaluate(chain)
    retrieve.run(chain / "stores" / "new.zarr", chain / "neighbours" / "new.parquet")
    run_evaluate(chain)


def test_heads_of_other_losses_are_refused(chain):
    stores = chain / "stores"
    probe.run(stores / "upstream.zarr", stores / "upstream.probe.zarr", folds=2, iterations=20)
    with pytest.raises(ValueError, match="expected heads trained on .*run train again"):
        run_evaluate(chain)
    run_from_probe(chain)


def test_refused_images_leave_every_row_with_its_own_label(tmp_path, make_set, extract, encode):
    """With refusals, rows, keys, labels, losses and neighbours still belong together."""
    samples = {f"k{i:02}": (encode(i), i % 3) for i in range(30)}
    bad = {"k04", "k05", "k17"}
    samples |= {key: (b"no image", samples[key][1]) for key in bad}
    store = extract(make_set(tmp_path, samples), tmp_path / "u.zarr", refusals=0.2)
    probe.run(store, tmp_path / "u.probe.zarr", folds=2, iterations=5)
    retrieve.run(store, tmp_path / "u.parquet")
    features, losses = FeatureStore.open(store), FeatureStore.open(tmp_path / "u.probe.zarr")
    assert features.keys == [key for key in samples if key not in bad]
    np.testing.assert_array_equal(features.labels, [samples[key][1] for key in features.keys])
    assert np.isfinite(losses.read("loss")).all()
    table = pq.read_table(tmp_path / "u.parquet").to_pydict()
    assert table["key"] == features.keys
    assert not bad & set(table["neighbour_key"])
    assert [samples[key][1] == samples[other][1] for key, other in
            zip(table["key"], table["neighbour_key"], strict=True)] == table["hit"]  # fmt: skip


def test_a_class_of_the_upstream_set_is_not_zero_shot(tmp_path, make_set, extract, encode):
    """Only names can tell: one set's class 1 need not be another's."""
    for name in ("up", "new"):
        for label in ("dog", f"{name}-only"):
            for i in range(4):
                path = tmp_path / name / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(i))
        prepare.run(tmp_path / "data" / name, [f"folder 'path={tmp_path / name}'"])
        views = ["plain", "crop"] if name == "new" else ["plain"]
        extract(tmp_path / "data" / name, tmp_path / "stores" / f"{name}.zarr", views=views)
    stores = tmp_path / "stores"
    probe.run(stores / "up.zarr", stores / "p.zarr", folds=2)
    retrieve.run(stores / "new.zarr", tmp_path / "new.parquet")
    train.run(
        stores / "up.zarr",
        stores / "p.zarr",
        tmp_path / "m",
        tmp_path / "curves",
        heads=["norm"],
        seeds=[0],
    )
    with pytest.raises(ValueError, match="never trained on in new, got 1 .* such as 'dog'"):
        evaluate.run(
            tmp_path / "m", stores / "p.zarr", stores, tmp_path, tmp_path / "r", sets=["new"]
        )
