"""Training as a stage: killed and gone on with, watched, and refused what it can't learn from."""

import multiprocessing
import shutil

import numpy as np
import pytest
import zarr

from askance.heads import resume
from askance.heads.checkpoint import load
from askance.stages import probe, train

HEADS = ["ranking", "infonce", "ensemble", "ensemble-jsd", "norm"]
STEPS = 40


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_set, extract):
    """Return a folder with an upstream store of 60 images in two views, and its losses."""
    root = tmp_path_factory.mktemp("stores")
    extract(make_set(root / "made", n=60, classes=4), root / "up.zarr")
    probe.run(root / "up.zarr", root / "up.probe.zarr", folds=3, iterations=10)
    return root


@pytest.fixture
def copied(stores, tmp_path):
    """Return a copy of the stores, to be damaged."""
    return shutil.copytree(stores, tmp_path / "stores")


OPTIONS = {"heads": HEADS, "seeds": [0, 1], "steps": STEPS, "batch": 16, "width": 8}
SAVING_OFTEN = """
from askance.heads import resume
from askance.stages.train import run
resume.SAVE_EVERY = 0
run(*places, **options)
"""


def places(stores, out, probe="up.probe.zarr"):
    return stores / "up.zarr", stores / probe, out / "models", out / "curves"


def fit(stores, out, probe="up.probe.zarr", **options):
    train.run(*places(stores, out, probe), **OPTIONS | options)


def heads(out):
    return {path.name: path.read_bytes() for path in (out / "models").iterdir()}


def curves(out):
    return {
        path.relative_to(out): [line.split("\t") for line in path.read_text().splitlines()]
        for path in out.rglob("*.tsv")
    }


@pytest.fixture(scope="module")
def whole(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    fit(stores, out)
    return out


@pytest.fixture(scope="module")
def context():
    """Start processes from one that has torch imported already: in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["askance.features.batches", "askance.heads.catalogue"])
    return context


def test_a_training_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path, stores, whole, context
):
    random, killed = np.random.default_rng(0), 0
    while killed < 5 or not (tmp_path / "models").exists():
        names = {"places": places(stores, tmp_path), "options": OPTIONS}
        process = context.Process(target=exec, args=(SAVING_OFTEN, names))
        process.start()
        process.join(random.uniform(0, 3) if killed < 5 else None)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert process.exitcode in (0, -9)
        if process.exitcode == 0 and killed < 5:
            assert heads(tmp_path) == heads(whole)
            shutil.rmtree(tmp_path / "models")
    assert heads(tmp_path) == heads(whole)
    assert curves(tmp_path) == curves(whole)
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".partial"}
    assert left == {"models", "models.runs.jsonl", "curves"}


def test_a_state_of_other_parameters_is_not_gone_on_with(tmp_path, stores, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_EVERY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(resume.State, "clear", lambda self: None)
        fit(stores, tmp_path / "a", lr=1e-2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fit(stores, tmp_path / "b")
    fit(stores, tmp_path / "c")
    assert heads(tmp_path / "b") == heads(tmp_path / "c")


def test_curves_have_every_trained_head_and_twenty_points(whole):
    found = curves(whole)
    names = {(path.parent.name, path.stem) for path in found}
    scored = {"ranking", "infonce", "ensemble", "ensemble-jsd"}
    assert names == {("objective", name) for name in scored - {"ensemble-jsd"}} | {
        ("r_auroc", name) for name in scored
    }
    for rows in found.values():
        assert [int(row[0]) for row in rows[1:]] == list(range(2, STEPS + 1, 2))


def test_each_head_tells_how_it_was_chosen(whole):
    for name in ("ranking-1", "ensemble-jsd-0"):
        note = load(whole / "models" / f"{name}.safetensors").note
        assert 0 < note["step"] <= STEPS
        assert 0 <= note["r_auroc"] <= 1
        assert (note["keep"], note["holdout"], note["loss"]) == ("best", 0.1, "cross-fitted")


def test_the_last_checkpoint_can_be_kept(tmp_path, stores):
    fit(stores, tmp_path, keep="last", heads=["ranking"])
    assert load(tmp_path / "models" / "ranking-0.safetensors").note["step"] == STEPS


def test_without_images_held_out_the_last_checkpoint_is_kept(tmp_path, stores):
    fit(stores, tmp_path, holdout=0.0, heads=["ranking"])
    note = load(tmp_path / "models" / "ranking-0.safetensors").note
    assert (note["step"], note["r_auroc"]) == (STEPS, None)


def test_seeds_are_the_same_whatever_others_are_trained(tmp_path, stores, whole):
    fit(stores, tmp_path, heads=["ranking"], seeds=[1])
    one = load(tmp_path / "models" / "ranking-1.safetensors").head.state_dict()
    fit(stores, tmp_path, heads=["infonce", "ranking"], seeds=[2, 1])
    other = load(tmp_path / "models" / "ranking-1.safetensors").head.state_dict()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_seeds_draw_differently(tmp_path, stores):
    """Dropout starts from the upstream classifier, so that its draws are all that differs."""
    fit(stores, tmp_path, heads=["dropout"], keep="last")
    zero, one = (load(tmp_path / "models" / f"dropout-{s}.safetensors").head for s in (0, 1))
    assert not np.array_equal(zero.state_dict()["weight"], one.state_dict()["weight"])


def test_heads_that_need_no_training_leave_an_empty_folder_of_curves(tmp_path, stores):
    fit(stores, tmp_path, heads=["norm"])
    assert list((tmp_path / "curves").iterdir()) == []


def test_in_sample_losses_train_another_head(tmp_path, stores):
    fit(stores, tmp_path / "a", heads=["squared"], loss="in-sample")
    fit(stores, tmp_path / "b", heads=["squared"])
    assert heads(tmp_path / "a") != heads(tmp_path / "b")


def overwrite(path, name, value, where=...):
    zarr.open_group(path, mode="r+")[name][where] = value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["rank"]}, "expected a head among ranking, .* got 'rank'"),
        ({"batch": 15}, "expected an even batch"),
        ({"batch": 256}, "expected at least .*256 rows"),
        ({"probe": "up.zarr"}, "run probe"),
    ],
)
def test_what_it_cannot_learn_from_is_refused_at_once(tmp_path, stores, options, message):
    with pytest.raises(ValueError, match=message):
        fit(stores, tmp_path, **options)
    assert not (tmp_path / "models").exists()


def test_one_view_is_too_few_for_pairs(tmp_path, make_set, extract):
    extract(make_set(tmp_path / "made", n=30), tmp_path / "up.zarr", views=["plain"])
    probe.run(tmp_path / "up.zarr", tmp_path / "up.probe.zarr", folds=2, iterations=5)
    with pytest.raises(ValueError, match="expected two views"):
        fit(tmp_path, tmp_path, heads=["ranking", "hib"])
    fit(tmp_path, tmp_path, heads=["ranking"])


def test_equal_losses_are_refused(tmp_path, copied):
    overwrite(copied / "up.probe.zarr", "loss", 1.5)
    with pytest.raises(ValueError, match="expected losses that differ, got 1.5"):
        fit(copied, tmp_path)


@pytest.mark.parametrize(("store", "name"), [("up.zarr", "embedding"), ("up.probe.zarr", "loss")])
def test_a_number_that_is_none_is_found_with_its_block(tmp_path, copied, store, name):
    overwrite(copied / store, name, np.nan, 17)
    with pytest.raises(ValueError, match="block 2.*verify"):
        fit(copied, tmp_path)
