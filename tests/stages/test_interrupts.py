"""Ctrl-C in every stage: exit code 130, and what was there before is still there, unchanged."""

import importlib

import pytest
import typer
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_set, extract):
    """Run every stage once, through its command; return the root folder."""
    root = tmp_path_factory.mktemp("finished")
    for name in ("up", "new"):
        make_set(root / "made" / name, n=16, classes=2)
        (root / "data").mkdir(exist_ok=True)
        (root / "made" / name / "set").rename(root / "data" / name)
        views = ["plain", "crop"] if name == "new" else ["plain", "augment"]
        extract(root / "data" / name, root / "stores" / f"{name}.zarr", views=views)
    for stage in ("probe", "retrieve", "train", "evaluate", "report"):
        assert start(root, stage).exit_code == 0, stage
    return root


def commands(root):
    stores, results = root / "stores", root / "results"
    up, losses = stores / "up.zarr", stores / "up.probe.zarr"
    heads = [
        "--heads",
        "norm",
        "--heads",
        "ranking",
        "--seeds",
        "0",
        "--steps",
        "2",
        "--batch",
        "4",
    ]
    sets = ["--sets", "new"]
    shards = f"shards 'path={root}/made/new/shards/*.tar'"
    return {
        "prepare": [root / "data" / "up", "--source", shards],
        "extract": [root / "data" / "up", up, "--views", "plain", "--backbone", "test_vit"],
        "probe": [up, losses, "--folds", "2"],
        "retrieve": [stores / "new.zarr", root / "neighbours" / "new.parquet"],
        "train": [up, losses, root / "models", results / "training", *heads],
        "evaluate": [root / "models", losses, stores, root / "neighbours", results, *sets],
        "report": [results, root / "data"],
    }


def start(root, stage):
    app = typer.Typer()
    app.command()(importlib.import_module(f"askance.stages.{stage}").main)
    return CliRunner().invoke(app, [str(word) for word in commands(root)[stage]])


def content(root):
    """Return all files but the curves, which a training writes as it goes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if "training" not in path.parts}


@pytest.mark.parametrize(
    ("stage", "inside"),
    [
        ("prepare", "askance.features.sources.sets.unite"),
        ("extract", "askance.features.embed.load_backbone"),
        ("probe", "askance.heads.probe.fit_probe"),
        ("retrieve", "askance.eval.retrieval.neighbours"),
        ("train", "askance.heads.fit.Training.step"),
        ("evaluate", "askance.eval.summary.summarise"),
        ("report", "askance.stages.report.page"),
    ],
)
def test_an_interrupt_changes_nothing(finished, monkeypatch, stage, inside):
    reached = []

    def interrupt(*_, **__):
        reached.append(inside)
        raise KeyboardInterrupt

    before = content(finished)
    monkeypatch.setattr(inside, interrupt)
    monkeypatch.setattr(
        f"askance.stages.{stage}.{inside.rpartition('.')[2]}", interrupt, raising=False
    )
    result = start(finished, stage)
    assert reached, result.output
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    assert content(finished) == before
