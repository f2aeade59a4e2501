"""The threshold command: what it finds, what it promises, and when it has nothing to promise."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import typer
from typer.testing import CliRunner

from askance import threshold
from askance.eval.guarantee import at_threshold, guaranteed

app = typer.Typer()
app.command()(threshold.main)


def ask(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=200)


def say(*arguments):
    """Return what the command prints."""
    result = ask(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def complain(*arguments, code=1):
    """Return what the command says as it fails, its frame and line breaks left out."""
    result = ask(*arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.replace("│", " ").split())


def sample(n=1000, worst=0.2):
    rng = np.random.default_rng(0)
    uncertainty = rng.random(n)
    return uncertainty, rng.random(n) > worst * uncertainty**2


@pytest.fixture
def table(tmp_path):
    """Return a table of queries, as evaluate writes it: `mapped` has hits of its own."""
    uncertainty, hit = sample()
    path = tmp_path / "queries.parquet"
    columns = {
        "hit": hit,
        "uncertainty/ranking/3": uncertainty,
        "uncertainty/mapped/0": uncertainty,
        "hit/mapped/0": np.ones(len(hit), bool),
        "percentile/ranking": uncertainty,
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def model(tmp_path):
    """Return a head, ranking with seed 3, whose upstream uncertainties are 0 to 2 evenly."""
    from askance.heads.catalogue import HEADS
    from askance.heads.checkpoint import SavedHead, save
    from askance.heads.head import Setup

    setup = Setup(8, 8, 2, torch.zeros(3, 8), torch.zeros(3))
    scale = np.linspace(0, 2, 1001)
    saved = SavedHead("ranking", 3, HEADS["ranking"](setup), scale, setup.sizes, {}, {})
    save(tmp_path / "ranking-3.safetensors", saved)
    return tmp_path / "ranking-3.safetensors"


def test_it_prints_the_guaranteed_threshold_and_its_conditions(table):
    told = say(table, "--head", "ranking", "--seed", 3, "--alpha", 0.05, "--delta", 0.2)
    found = guaranteed(*sample(), 0.05, 0.2)
    lines = told.splitlines()
    assert lines[0] == f"guaranteed: uncertainty {found.uncertainty!r}"
    assert lines[1] == (
        f"accepted  {found.accepted} of 1,000 queries here ({found.coverage:.1%}),"
        f" {found.misses} of them misses ({found.error:.1%})"
    )
    assert "with probability 0.8, at most 5.0% of the further queries" in lines[2]
    assert "other classes, cameras or galleries void it" in lines[3]


def test_the_printed_threshold_accepts_what_it_says(table):
    told = say(table, "--head", "ranking", "--seed", 3, "--alpha", 0.05)
    value = float(told.split()[2])
    accepted = at_threshold(*sample(), value).accepted
    assert f"accepted  {accepted} of 1,000" in told
    assert 0 < accepted < 1000


def test_a_head_with_neighbours_of_its_own_is_asked_about_its_own_hits(table):
    assert ", 0 of them misses" in say(table, "--head", "mapped")
    told = say(table, "--head", "mapped", "--hit", "hit", "--alpha", 0.2)
    assert ", 0 of them misses" not in told


def test_a_table_of_ones_own_names_its_columns(tmp_path):
    uncertainty, hit = sample()
    path = tmp_path / "mine.csv"
    pa.csv.write_csv(pa.table({"doubt": uncertainty, "right": hit.astype(int)}), path)
    told = say(path, "--uncertainty", "doubt", "--hit", "right", "--alpha", 0.2)
    assert f"{guaranteed(uncertainty, hit, 0.2, 0.05).uncertainty!r}" in told


def test_a_percentile_needs_no_label_and_promises_nothing_about_errors(model):
    told = say("--model", model, "--percentile", 0.9)
    assert told == (
        "percentile 0.9: uncertainty 1.8\n"
        "promised  90.0% of the head's upstream images are more certain; nothing about errors\n"
    )


def test_with_both_the_percentile_is_measured_on_the_queries_too(model, table):
    told = say(table, "--model", model, "--percentile", 0.25, "--alpha", 0.2).splitlines()
    found = at_threshold(*sample(), 0.5)
    assert told[0] == "percentile 0.25: uncertainty 0.5"
    assert f"accepted  {found.accepted} of 1,000 queries" in told[1]
    assert "with probability 0.95 each: " in told[2]
    assert told[4].startswith("guaranteed: uncertainty 0.999")
    assert told[4].endswith(", percentile 0.500")


def test_when_nothing_can_be_guaranteed_it_fails_and_says_what_is_needed(table, tmp_path):
    told = complain(table, "--head", "ranking", "--seed", 3, "--alpha", 0.001)
    assert "expected a threshold whose error is at most 0.1% with probability 0.95, got" in told
    assert "none: 1000 queries are too few: about 31" in told
    uncertainty, _ = sample()
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"u": uncertainty, "hit": np.zeros(1000, bool)}), path)
    told = complain(path, "--uncertainty", "u")
    assert "the error is too large, or the uncertainty too weak" in told
    assert "it is 1.000 at best" in told


def test_a_head_or_seed_that_is_not_there_names_those_that_are(table):
    assert "got the heads ranking, mapped" in complain(table, "--head", "rankin")
    assert "got uncertainty/ranking/3" in complain(table, "--head", "ranking")
    told = complain(table, "--uncertainty", "doubt")
    assert "expected column doubt in" in told
    assert "got hit, uncertainty/ranking/3" in told


def test_a_model_of_another_head_is_refused(table, model):
    told = complain(table, "--model", model, "--head", "mapped", "--percentile", 0.5)
    assert "expected head mapped, seed 3, got ranking, seed 3, in" in told
    told = complain("--model", model, "--seed", 4, "--percentile", 0.5)
    assert "expected head ranking, seed 4, got ranking, seed 3, in" in told


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"u": [0.1, float("nan")], "hit": [True, False]}, "expected finite values, got 1 of 2"),
        ({"u": [0.1, None], "hit": [True, False]}, "expected a value in every row of column u"),
        ({"u": ["a", "b"], "hit": [True, False]}, "expected numbers in column u"),
        ({"u": [0.1, 0.2], "hit": [0.5, 1.0]}, "expected hits that are true or false"),
        ({"u": [0.1, 0.2]}, "expected column hit in"),
        ({"u": [0.1, 0.2], "hit": [True, True]}, "2 queries are too few: about 42 are needed"),
    ],
)
def test_columns_that_are_no_sample_are_refused(tmp_path, columns, message):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)
    assert message in complain(path, "--uncertainty", "u")


def test_what_is_no_table_is_told(tmp_path):
    assert "expected a table of queries, got no" in complain(tmp_path / "none", "--head", "a")
    (tmp_path / "text.parquet").write_text("no table")
    assert "expected a Parquet or .csv table in" in complain(
        tmp_path / "text.parquet", "--head", "a"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a TABLE of queries, or --percentile and --model"),
        (["t.parquet"], "expected whose uncertainty: --head, --model or --uncertainty"),
        (["t.parquet", "--head", "a", "--uncertainty", "b"], "expected --head or --uncertainty"),
        (["--percentile", "0.5"], "expected --model, whose upstream images"),
        (["t.parquet", "--head", "a", "--alpha", "1.5"], "expected a number between 0 and 1"),
        (["t.parquet", "--head", "a", "--delta", "0"], "expected a number between 0 and 1"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(arguments, message):
    assert message in complain(*arguments, code=2)


def test_help_needs_no_torch():
    code = (
        "import sys, askance.threshold as t, typer; from typer.testing import CliRunner\n"
        "app = typer.Typer(); app.command()(t.main)\n"
        "assert '--alpha' in CliRunner().invoke(app, ['--help'], terminal_width=200).stdout\n"
        "print([m for m in ('torch', 'scipy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
