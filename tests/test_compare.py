"""The comparison of experiments: real ones of a tiny graph, its numbers, its page, its messages."""

import contextlib
import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from askance import compare, differences, experiments
from askance.differences import Cell, Contrast
from askance.eval.estimates import Estimate
from askance.experiments import code_changes, read
from askance.pipeline.seeding import generator

app = typer.Typer()
app.command()(compare.main)

GRAPH = {
    "params.yaml": """
train: {lr: 0.1, heads: [ranking, infonce]}
data: {images: 300}
""",
    "dvc.yaml": """
stages:
  evaluate:
    cmd: PYTHON -P evaluate.py ${train.lr} ${data.images}
    deps: [evaluate.py]
    outs:
      - results/queries
      - results/run.json
      - results/metrics.json: {cache: false}
metrics: [results/metrics.json]
""",
    # In the format of the evaluate stage. The larger the rate, the more trained heads know; the
    # hits of infonce are its own; above 0.1 the queries come in another order.
    "evaluate.py": """
import json, pathlib, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq

rate, images = float(sys.argv[1]), int(sys.argv[2])
heads = {"ranking": [0, 1], "infonce": [0, 1], "norm": [0], "neighbour-distance": [0]}
sets = {"seen": "upstream", "birds": "zero-shot", "far": "zero-shot"}
queries = pathlib.Path("results/queries")
queries.mkdir(parents=True, exist_ok=True)
for number, name in enumerate(sets):
    n = images if name == "far" else 200
    row, rng = np.arange(n), np.random.default_rng(number)
    hit = rng.random(n) < 0.6
    table = {"row": row, "key": [f"{name}/{i:03}" for i in row], "label": row % 5}
    table |= {"neighbour": (row + 1) % n, "hit": hit}
    for head, seeds in heads.items():
        for seed in seeds:
            rng, own = np.random.default_rng([number, len(head), seed]), hit
            if head == "infonce":
                own = hit ^ (rng.random(n) < 0.1 + rate / 5)
                table[f"hit/{head}/{seed}"] = own
                table[f"neighbour/{head}/{seed}"] = (row + 2 + seed) % n
            use = 5 * rate if len(seeds) > 1 else 0.3
            noise = rng.normal(size=n)
            table[f"uncertainty/{head}/{seed}"] = (noise + use * ~own).astype(np.float32)
    order = np.random.default_rng(0).permutation(n) if rate > 0.1 else row
    pq.write_table(pa.table(table).take(pa.array(order)), queries / f"{name}.parquet")
entries = [
    {"name": head, "seeds": seeds, "trained": len(seeds) > 1, "mapped": head == "infonce",
     "of_backbone": head == "infonce", "reference": head == "neighbour-distance"}
    for head, seeds in heads.items()
]
run = {"backbone": "tiny", "weights": "0" * 64, "machine": "one core", "versions": {"numpy": "2"}}
run |= {"sets": [{"name": name, "kind": kind} for name, kind in sets.items()], "heads": entries}
pathlib.Path("results/run.json").write_text(json.dumps(run))
metrics = {"crop_win": {"ranking": {"average": rate}}}
pathlib.Path("results/metrics.json").write_text(json.dumps(metrics))
""",
}
# All in one process: DVC takes longer to import than for any of these.
SETUP = """
import pathlib, subprocess
from dvc.cli import main


def git(*arguments):
    subprocess.run(["git", *arguments], check=True)


def dvc(*arguments):
    assert main([*arguments, "-q"]) == 0, arguments


git("init", "-b", "main")
dvc("init")
dvc("config", "core.autostage", "true")
dvc("repro")
git("add", "-A")
git("commit", "-m", "first")
code = pathlib.Path("evaluate.py")
code.write_text(code.read_text() + "# as before\\n")
dvc("exp", "run", "-n", "fast", "-S", "train.lr=0.3")
git("checkout", ".")
dvc("exp", "run", "-n", "small", "-S", "data.images=250")
dvc("exp", "run", "--queue", "-n", "waiting", "-S", "train.lr=0.2")
git("checkout", ".")
dvc("checkout")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Return a repository: `main`, the workspace equal to it, `fast`, `small`, and `waiting`."""
    root = tmp_path_factory.mktemp("experiments")
    for name, text in GRAPH.items():
        (root / name).write_text(text.replace("PYTHON", sys.executable))
    who = {f"GIT_{a}_{b}": "a@b" for a in ("AUTHOR", "COMMITTER") for b in ("NAME", "EMAIL")}
    command = [sys.executable, "-P", "-c", SETUP]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, env=os.environ | who)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="module")
def known(repository):
    """Return the finished experiments, by name."""
    with contextlib.chdir(repository):
        return {each.name: each for each in read(["main", "workspace", "fast", "small"])}


def against(known, *names):
    """Return the comparison of the last experiment with the first."""
    chosen = [known[name] for name in names]
    return differences.compare(chosen, compare.heads(chosen, []))[-1]


def ask(folder, *arguments):
    """Return what the command says in a folder, and its exit code."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, list(arguments), terminal_width=200)
    return " ".join(result.output.replace("│", " ").split()), result.exit_code


def test_the_command_prints_differences_and_writes_a_page(repository, tmp_path):
    out = tmp_path / "page.html"
    told, code = ask(repository, "fast", "--baseline", "main", "--head", "norm", "--out", str(out))
    assert code == 0, told
    assert re.fullmatch(
        r"fast \(\w{8}, 2\S+ \S+\) against main \(\w{8}, 2\S+ \S+\)"
        rf" train.lr 0.1 > 0.3 evaluate.py \+1 -0 R-AUROC equal: norm R@1 equal: frozen embedding"
        rf" {re.escape(str(out))}",
        told,
    )
    assert out.read_text().startswith("<!doctype html>")
    assert not subprocess.check_output(["git", "status", "--short"], cwd=repository)


def test_experiments_are_read_as_of_their_own_commits(repository, known):
    main, fast, small = (known[name] for name in ("main", "fast", "small"))
    assert [each.params["train.lr"] for each in (main, fast, small)] == [0.1, 0.3, 0.1]
    assert [len(each.queries["far"]) for each in (main, fast, small)] == [300, 300, 250]
    assert fast.metrics == {"crop_win": {"ranking": {"average": 0.3}}}
    assert list(main.code) == ["evaluate.py"]
    assert known["workspace"].queries == main.queries
    with contextlib.chdir(repository):
        assert code_changes(main, fast) == {"evaluate.py": "+1 -0"}
        assert code_changes(fast, known["workspace"]) == {"evaluate.py": "+0 -1"}
        assert code_changes(known["workspace"], fast) == {"evaluate.py": "+1 -0"}
        assert code_changes(main, small) == {}


def test_differences_are_those_of_the_paired_bootstrap(known):
    """By a loop from the definition: on each set, and their average, set by set independent."""
    drawn = {}
    for name in ("birds", "far"):
        tables = [known[each].queries[name].sort_by("key") for each in ("main", "fast")]
        rng, n = generator("bootstrap", name), len(tables[0])
        draws = [np.arange(n), *(rng.integers(n, size=n) for _ in range(1000))]
        values = np.zeros((2, len(draws)))
        for each, table in zip(values, tables, strict=True):
            for seed in (0, 1):
                u, hit = (table[f"{x}/infonce/{seed}"].to_numpy() for x in ("uncertainty", "hit"))
                each += [np.mean(u[x][~hit[x], None] > u[x][hit[x]]) / 2 for x in draws]
        drawn[name] = values[1] - values[0]
    drawn["average"] = (drawn["birds"] + drawn["far"]) / 2
    comparison = against(known, "main", "fast")
    for name, values in drawn.items():
        found = comparison.found[Cell("infonce", "r_auroc", name)]
        assert found.difference == pytest.approx(values[0])
        ends = [found.difference.lower, found.difference.upper]
        np.testing.assert_allclose(ends, np.quantile(values[1:], [0.025, 0.975]))
        assert found.verdict == "better"


def test_heads_with_their_own_neighbours_differ_in_recall(known):
    comparison = against(known, "main", "fast")
    found = comparison.found[Cell("infonce", "r1", "seen")]
    for estimate, name in ((found.before, "main"), (found.after, "fast")):
        table = known[name].queries["seen"]
        hit = [table[f"hit/infonce/{seed}"].to_numpy() for seed in (0, 1)]
        assert estimate == pytest.approx(np.mean(hit))
    assert found.difference.lower < found.after - found.before < found.difference.upper
    assert comparison.same("r1") == ["frozen embedding"]


def test_equal_experiments_are_said_to_be_equal(repository, known):
    comparison = against(known, "main", "workspace")
    assert {each.verdict for each in comparison.found.values()} == {"equal"}
    with contextlib.chdir(repository):
        told = list(compare.lines(comparison))
    assert told[1:] == [
        "  no parameter and no code differs",
        "  R-AUROC  equal: ranking, infonce †‡, norm, neighbour-distance",
        "  R@1      equal: frozen embedding, infonce †‡",
    ]


def test_other_queries_are_measured_but_not_compared(known):
    comparison = against(known, "main", "small")
    found = comparison.found[Cell("ranking", "r_auroc", "far")]
    reason = "far: expected the same 300 keys, got 250, 0 of them new"
    assert (found.verdict, found.difference.reason) == ("not compared", reason)
    assert 0.5 < found.after.lower < found.after < found.after.upper
    assert comparison.found[Cell("ranking", "r_auroc", "average")].verdict == "not compared"
    assert comparison.found[Cell("ranking", "r_auroc", "birds")].verdict == "equal"
    assert comparison.notes() == [f"not compared: {reason}"]


def test_other_labels_are_other_queries(known):
    table = known["main"].queries["far"]
    label = table["label"].to_numpy().copy()
    label[:3] += 1
    other = table.set_column(2, "label", pa.array(label))
    said = differences.apart(table, other.take(pa.array(np.arange(300)[::-1])))
    assert said == "expected the same labels, got others for 3 of 300 keys"


@pytest.mark.parametrize(
    ("metric", "difference", "over_seeds", "marked"),
    [
        ("r_auroc", Estimate(0.02, 0.01, 0.03), 0.0, "better"),
        ("r_auroc", Estimate(-0.02, -0.03, -0.01), 0.0, "worse"),
        ("aurc", Estimate(0.02, 0.01, 0.03), 0.0, "worse"),
        ("aurc", Estimate(-0.02, -0.03, -0.01), 0.009, "better"),
        ("r1", Estimate(0.02, 0.01, 0.03), 0.011, "better *"),
        ("r1", Estimate(0.02, 0.01, 0.03), math.nan, "better *"),
        ("r1", Estimate(0.02, 0.0, 0.04), 0.0, "not told apart"),
        ("r1", Estimate(math.nan, reason="no query"), 0.0, "not compared"),
    ],
)
def test_verdicts(metric, difference, over_seeds, marked):
    cell, value = Cell("ranking", metric, "birds"), Estimate(0.6)
    assert Contrast(cell, value, value, difference, False, over_seeds).marked == marked


def test_the_page_needs_nothing_and_escapes_every_text(known):
    hostile = '<img src="http://x/y">'
    main = known["main"]
    run = main.run | {"backbone": hostile, "machine": hostile, "versions": {hostile: hostile}}
    other = dataclasses.replace(
        known["small"],
        name=hostile,
        params=main.params | {hostile: hostile},
        code=main.code,
        run=run,
    )
    chosen = [main, known["fast"], other]
    pages = differences.compare(chosen, compare.heads(chosen, []))
    for each in chosen:  # no git is asked for lines of code
        each.code.clear()
    text = compare.page(chosen, pages)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import|<script", text)
    assert "default-src 'none'" in text
    assert text.count("&lt;img src=") >= 8
    assert text.count('class="plot"') > 20
    assert not re.search(r"[^-\w]nan[^-\w]", text)


def test_no_dvc_repository(tmp_path):
    told, code = ask(tmp_path, "HEAD", "workspace")
    assert code == 1
    assert told.startswith(
        "askance: expected a DVC repository, in git, around the current folder, got"
    )


def test_results_that_are_nowhere(repository, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    told, code = ask(copy, "workspace", "fast")
    assert code == 1
    assert told == (
        "askance: expected results/run.json of fast in the DVC cache or its remote, got neither:"
        " dvc fetch --all-commits, dvc exp pull, or run it again: dvc exp apply fast && dvc repro"
    )


def test_an_unknown_name_and_an_unfinished_experiment(repository, monkeypatch):
    with contextlib.chdir(repository):
        shown = experiments._shown(experiments._show())
        shown[1]["experiments"].append({"name": "broken", "executor": {"state": "failed"}})
        monkeypatch.setattr(experiments, "_shown", lambda _: shown)
        monkeypatch.setattr(experiments, "_show", lambda *_: None)
        unknown, waiting, broken = map(experiments._not_found, ("nonesuch", "waiting", "broken"))
    assert unknown == (
        "expected an experiment, a git revision or workspace, got nonesuch; the experiments of HEAD"
        " are small, fast; dvc exp list --all-commits tells all"
    )
    finished = "expected a finished experiment, got"
    assert waiting == f"{finished} waiting, which is queued: dvc exp run --run-all runs it"
    assert broken == f"{finished} broken, which failed: dvc queue logs broken tells why"


def test_two_names_of_one_experiment(repository, monkeypatch):
    monkeypatch.setattr(experiments, "_show", lambda *_: None)  # what it tells isn't needed
    monkeypatch.setattr(experiments, "_shown", lambda _: [])
    said = r"got main and HEAD, which are both \w{8}: leave one out"
    with contextlib.chdir(repository), pytest.raises(ValueError, match=said):
        read(["main", "HEAD"])


def test_one_experiment_is_no_comparison(tmp_path):
    told, code = ask(tmp_path, "fast", "fast")
    assert code == 2
    assert "expected two experiments or more, got fast alone: name another, or a --baseline" in told


def test_nothing_in_common(known):
    main = known["main"]
    heads = [entry | {"name": f"{entry['name']}2"} for entry in main.run["heads"]]
    other = dataclasses.replace(main, name="other", run=main.run | {"heads": heads})
    with pytest.raises(
        ValueError, match="expected a head that both have, got ranking, infonce, norm"
    ):
        compare.heads([main, other], [])
    with pytest.raises(ValueError, match="expected head ranking in other, got ranking2, infonce2"):
        compare.heads([main, other], ["ranking"])
    other = dataclasses.replace(main, name="other", queries={"cats": main.queries["far"]})
    with pytest.raises(
        ValueError, match="expected a data set that both have, got seen, birds, far in"
    ):
        differences.compare([main, other], ["ranking"])
