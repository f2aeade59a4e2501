"""What runs took: what is logged, what of it counts, and that no hash ever sees it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from askance.pipeline.runs import Run, read_costs, read_log

ROOT = Path(__file__).parents[2]
MEBI = 2**20


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "emoji.parquet"
    path.write_bytes(b"12345")
    return path


def test_a_run_is_a_line_beside_its_output(output):
    Run("retrieve", time.monotonic() - 5).log(output, 100, "queries", device="cpu")
    [line] = (output.parent / "emoji.parquet.runs.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert logged["device"] == "cpu"
    [cost] = read_costs(output.parent)
    assert (cost.stage, cost.output, cost.name) == ("retrieve", output, "emoji")
    assert (cost.count, cost.unit, cost.bytes, cost.runs) == (100, "queries", 5, 1)
    assert 5 <= cost.seconds < 60
    assert cost.rate == 100 / cost.seconds
    assert (cost.ended, cost.machine) == (logged["ended"], logged["machine"])


def test_runs_that_went_on_add_up_and_any_other_counts_alone(output):
    def count(*lines):
        for done, about in lines:
            Run("extract").log(output, done, "pictures", **about)
        [cost] = read_costs(output.parent)
        return cost.count, cost.runs

    first, second = {"fingerprint": "a"}, {"fingerprint": "b"}
    on = {"begun": False}
    assert count((10, first), (5, second), (7, first | on)) == (17, 2)
    assert count((1, {})) == (1, 1)
    assert count((2, {})) == (2, 1)
    assert count((4, second | on)) == (9, 2)
    assert count((8, second)) == (8, 1)  # anew, after somebody had removed the output


def test_bytes_of_a_folder_are_those_of_all_its_files(tmp_path):
    (tmp_path / "set" / "deep").mkdir(parents=True)
    for name, size in (("a", 3), ("deep/b", 4)):
        (tmp_path / "set" / name).write_bytes(bytes(size))
    Run("prepare").log(tmp_path / "set", 2, "images")
    assert [cost.bytes for cost in read_costs(tmp_path)] == [7]


def test_what_is_not_there_is_passed_over(output):
    folder = output.parent
    assert read_costs(folder, folder / "nowhere") == []
    Run("map").log(folder / "gone", 1, "images")
    assert read_costs(folder) == []


def test_lines_that_were_cut_or_are_of_another_version_are_left_out(output):
    log = output.with_name("emoji.parquet.runs.jsonl")
    log.write_text('{"images": 9, "views": 2, "seconds": 3}\n')
    Run("map").log(output, 1, "images")
    log.write_text(log.read_text() + '{"stage": "map", "coun')
    assert [run["count"] for run in read_log(output)] == [1]
    Run("map").log(output, 2, "images")  # on a line of its own
    assert [run["count"] for run in read_log(output)] == [1, 2]
    [cost] = read_costs(output.parent)
    assert cost.count == 2


def test_a_log_that_cannot_be_written_is_said_and_no_failure(output, capsys):
    output.with_name("emoji.parquet.runs.jsonl").mkdir()
    Run("map").log(output, 1, "images")
    assert "no record of this run beside" in capsys.readouterr().err
    assert output.read_bytes() == b"12345"


@pytest.mark.parametrize(
    ("work", "least"),
    [
        ("bytearray(b'1') * (200 << 20)", 200),
        ("subprocess.run([sys.executable, '-c', 'bytearray(b\"1\") * (150 << 20)'])", 150),
        ("0", 5),
    ],
    ids=["its own", "a child's", "not a parent's"],
)
def test_the_peak_is_that_of_the_largest_process(output, work, least):
    held = bytearray(b"1") * (400 * MEBI)  # by this process, which starts the one that logs
    code = f"""
import subprocess, sys
from pathlib import Path
from askance.pipeline.runs import Run
run = Run("map")
{work}
run.log(Path(sys.argv[1]), 1, "images")
"""
    subprocess.run([sys.executable, "-c", code, str(output)], cwd=ROOT, check=True)
    del held
    [cost] = read_costs(output.parent)
    assert least * MEBI < cost.memory < (least + 100) * MEBI


@pytest.mark.parametrize("command", [["git"], [sys.executable, "-P", "-m", "dvc"]])
def test_neither_git_nor_dvc_sees_a_log(command):
    folders = ["data", "stores", "neighbours", "neighbours/mixed", "results", "results/maps", "."]
    logs = [f"{folder}/any.runs.jsonl" for folder in folders]
    seen = subprocess.run(
        [*command, "check-ignore", *logs], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert len(seen.stdout.splitlines()) == len(logs)
