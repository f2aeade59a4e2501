"""The graph by DVC itself: a whole repro, an unchanged one, variants, experiments' own code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from askance.pipeline.runs import read_costs

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

SET = "folder 'path={}/pictures'"


@pytest.fixture(scope="module")
def repository(tmp_path_factory, checkpoint, encode):
    """Return a copy of this repository as a git repository of its own, with tiny parameters."""
    root = tmp_path_factory.mktemp("graph")
    for number, name in enumerate("abc"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            (root / "pictures" / name / f"{i}.png").write_bytes(encode(100 * number + i))
    copy = root / "copy"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split()
    for name in listed:
        if name not in ("dvc.lock",) and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prepare"] = {
        "upstream": {"source": [SET.format(root) + " limit=6"]},
        "seen": {"source": [SET.format(root)]},
    }
    params["extract"] |= {
        "backbone": "test_vit",
        "weights": str(checkpoint(img_size=32)),
        "size": 32,
        "precision": "float32",
    }
    params["probe"]["folds"] = 2
    params["train"] |= {"seeds": [0], "steps": 3, "batch": 8, "width": 4}
    params["evaluate"] |= {"sets": ["seen"], "mixed": []}
    params["retrieve"]["sets"] = ["seen"]
    params["curate"] |= {"sets": ["seen"], "upstream": ["seen"]}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git = "-c user.name=a -c user.email=a@b"
    run(copy, f"git init -q && git add -A && git {git} commit -qm first")
    run(copy, "dvc repro -q && git add -A")
    run(copy, f"git {git} commit -qm results")
    return copy


def run(folder, command):
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": paths,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled files must not change a stage
    done = subprocess.run(
        command, shell=True, cwd=folder, text=True, capture_output=True, env=environment
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def stages_run(output):
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def metrics(folder):
    return json.loads((folder / "results" / "metrics.json").read_text())


def test_repro_makes_every_result(repository):
    assert (repository / "results" / "report.html").stat().st_size > 10_000
    assert set(metrics(repository)["r_auroc"]["ranking"]) == {"seen"}
    assert not stages_run(run(repository, "dvc repro"))


def test_dvc_reads_metrics_and_plots(repository):
    assert "r_auroc.ranking.seen" in run(repository, "dvc metrics show")
    assert "r_auroc.ranking.seen" in run(repository, "dvc exp show --csv --no-pager")
    drawn = json.loads(run(repository, "dvc plots show --json"))["data"]
    assert {"r-auroc", "risk-coverage", "calibration", "safe-retrieval"} < set(drawn)
    assert any(name.endswith("r_auroc/ranking.tsv") for name in drawn)
    assert all(figure for plot in drawn.values() for figure in plot)
    run(repository, "python -m askance.pipeline.plots results/plots")
    pictures = (repository / "results" / "plots").glob("*.png")
    assert {path.stem for path in pictures} >= {"r-auroc", "safe-retrieval", "r_auroc-ranking"}


def test_what_runs_took_is_known_of_every_stage_and_changes_no_hash(repository):
    folders = ("data", "stores", "neighbours", "results/maps", ".", "results")
    costs = read_costs(*(repository / folder for folder in folders))
    stages = {"prepare", "extract", "probe", "retrieve", "map", "train", "evaluate", "curate"}
    assert {cost.stage for cost in costs} == stages
    for log in repository.rglob("*.runs.jsonl"):
        log.write_text(log.read_text() * 2)
    assert "up to date" in run(repository, "dvc status")
    assert not run(repository, "git status --porcelain")


def test_a_head_variant_never_touches_the_backbone(repository):
    output = run(repository, "dvc exp run -S train.lr=0.5")
    assert stages_run(output) == {"train", "evaluate", "curate", "report"}
    run(repository, "git checkout -q . && dvc checkout -q")


def test_an_experiment_in_a_copy_runs_its_own_code(repository):
    """With one changed line, the copy's heads must be the changed ones, queued or not."""
    norm = repository / "heads" / "norm.py"
    original = norm.read_text()
    assert metrics(repository)["r_auroc"]["norm"]["seen"] != 0.5
    norm.write_text(original.replace("1 / embedding.norm(dim=-1)", "0 * embedding.norm(dim=-1)"))
    run(repository, "dvc exp run --temp -n temp -C stores")
    run(
        repository,
        "dvc exp run --queue -n queued -C stores && dvc exp run --run-all -j 1",
    )
    norm.write_text(original)
    for name in ("temp", "queued"):
        found = json.loads(
            run(repository, f"git show {name_of(repository, name)}:results/metrics.json")
        )
        assert found["r_auroc"]["norm"]["seen"] == 0.5, name
    assert metrics(repository)["r_auroc"]["norm"]["seen"] != 0.5


def name_of(repository, experiment):
    refs = run(repository, "git for-each-ref --format='%(refname)' refs/exps").split()
    return next(ref for ref in refs if ref.endswith(f"/{experiment}"))


def test_a_parameter_that_does_not_exist_is_refused(repository):
    with pytest.raises(AssertionError, match="Could not override 'train.rate'"):
        run(repository, "dvc exp run -S train.rate=1")
    with pytest.raises(AssertionError, match="No such option"):
        run(repository, "dvc exp run -S +train.rate=1")
    run(repository, "git checkout -q . && dvc checkout -q")
