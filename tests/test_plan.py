"""The plan command: on a set, on the paper's schedule, and on a store that is there."""

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner
from upath import UPath

from askance import plan
from askance.features import forecast, speed
from askance.stages import extract

app = typer.Typer()
app.command()(plan.main)
Disk = namedtuple("Disk", "total used free")


def say(*arguments):
    """Return what the command prints."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def tiny(tmp_path, make_set, checkpoint):
    """Return a set of 25 images, and the options of a tiny backbone with 3 classes on it."""
    options = ["--views", "plain", "--views", "augment", "--backbone", "test_vit"]
    options += ["--weights", checkpoint(img_size=32), "--size", 32, "--block", 8, "--batch", 8]
    return make_set(tmp_path), [*options, "--dtype", "float32", "--device", "cpu"]


def options_of(function):
    """Return type, bounds and help of each option, and its default, by name."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind == parameter.KEYWORD_ONLY:
            [about] = parameter.annotation.__metadata__
            type_ = parameter.annotation.__origin__
            found[name] = (type_, about.min, about.max, about.help), parameter.default
    return found


def test_it_takes_every_option_of_extract_with_the_same_default_and_meaning():
    ours, theirs = options_of(plan.main), options_of(extract.main)
    assert len(theirs) > 15
    for name, (about, default) in theirs.items():
        assert ours[name][0] == about, name
        if name not in ("views", "backbone"):  # not needed with --imagenet21k
            assert ours[name][1] == default, name


def test_help_needs_no_torch():
    code = (
        "import sys, askance.plan as p, typer; from typer.testing import CliRunner\n"
        "app = typer.Typer(); app.command()(p.main)\n"
        "assert '--imagenet21k' in CliRunner().invoke(app, ['--help'], terminal_width=200).stdout\n"
        "print([m for m in ('torch', 'timm', 'distributed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_set_or_the_papers_it_is_wrong_usage():
    result = CliRunner().invoke(app, ["data", "--views", "plain"])
    assert result.exit_code == 2
    assert "expected DATA, --views and --backbone, or" in result.stderr.replace("\n", " ")


def test_hours_are_pictures_by_the_rate_of_all_workers(tiny):
    data, options = tiny
    found = json.loads(say(data, *options, "--rate", 0.01, "--json"))
    assert found["hours"] == 25 * 2 / 0.01 / 3600
    assert found["measured"] is None
    assert f"{50 / 36:.1f} h for 50 img at 0.0 img/s" in say(data, *options, "--rate", 0.01)


def test_the_rate_is_measured_where_none_is_given(tiny):
    data, options = tiny
    found = json.loads(say(data, *options, "--seconds", 0.1, "--json"))
    measured = found["measured"]
    assert found["rate"] == measured["rate"]
    # Each of two threads may decode at its rate; the network sees no more than both give.
    assert 0 < measured["rate"] < 3 * measured["decode"]
    assert measured["forward"] > 0
    assert measured["pictures"] >= 8
    assert measured["conditions"].startswith("CPU, float32, batch 8, 2 decoding threads; ")
    assert re.search(r"load \d+[.]\d of others and ours", measured["conditions"])


@pytest.mark.parametrize(
    ("scheduler", "workers", "times"),
    [("none", 3, 1), ("local", 3, 1), ("tcp://scheduler:8786", 3, 3)],
)
def test_local_workers_share_a_processor_and_remote_ones_have_their_own(
    tiny, monkeypatch, scheduler, workers, times
):
    fake = forecast.Measured(10.0, 20.0, 30.0, 8, "fake")
    monkeypatch.setattr(forecast, "measure", lambda *_: fake)
    data, options = tiny
    asked = ["--scheduler", scheduler, "--workers", workers]
    assert json.loads(say(data, *options, *asked, "--json"))["rate"] == 10.0 * times


def test_images_that_cannot_be_read_are_no_rate(tmp_path, make_set, tiny):
    data = make_set(tmp_path / "bad", {f"k{i}": (b"no image", 0) for i in range(4)})
    result = CliRunner().invoke(app, [str(a) for a in (data, *tiny[1], "--seconds", 0)])
    assert result.exit_code == 1
    assert "expected images to measure on, got" in result.stderr
    assert "or give --rate" in result.stderr


def rows_of(table):
    """Return the cells of each printed line by its first."""
    return {x[0]: x[1:] for x in (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())}


def test_a_finished_store_is_compared_with_its_plan(tiny, tmp_path, extract):
    data, options = tiny
    store = extract(data, tmp_path / "a.zarr")
    table = rows_of(say(data, store, *options, "--rate", 100))
    assert table["rows written"] == ["25", "25", "+0.0%"]
    assert table["rows refused"] == ["0", "0"]
    files = str(len([p for p in store.rglob("*") if p.is_file()]))
    assert table["files"] == [files, files, "+0.0%"]
    assert abs(float(table["bytes"][2].rstrip("%"))) < 5
    assert table["seconds"][0] == "0.5"
    logged = json.loads(store.with_name("a.zarr.runs.jsonl").read_text())
    assert table["img/s"][1] == f"{50 / logged['seconds']:,.1f}"
    assert "0.0 min for 0 img" in say(data, store, *options, "--rate", 100)


def test_a_store_of_other_parameters_is_no_actual(tiny, tmp_path, extract):
    data, options = tiny
    store = extract(data, tmp_path / "a.zarr", seed=1)
    found = json.loads(say(data, store, *options, "--rate", 100, "--json"))
    assert found["actual"] is None
    assert "has other parameters: extract sets it aside" in found["warnings"][-1]


def test_a_full_disk_is_warned_of(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, 1000))
    data, options = tiny
    told = say(data, tmp_path / "new" / "a.zarr", *options, "--rate", 100)
    assert "warning: 0.0 GB are needed at" in told
    assert "1.0 kB free" in told


def test_an_object_store_is_not_asked_for_free_space(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: pytest.fail("asked"))
    data, options = tiny
    told = say(data, "memory://bucket/none.zarr", *options, "--rate", 100)
    assert "; not asked (no local place)" in told


def test_a_store_on_an_object_store_is_counted(tiny, extract):
    data, options = tiny
    store = extract(data, UPath("memory://plan/a.zarr"))
    found = json.loads(say(data, store, *options, "--rate", 100, "--json"))
    assert found["actual"]["written"] == 25
    assert found["actual"]["files"] == found["store"]["files"]


def test_all_logits_are_named_with_their_factor(tiny):
    """3 classes in float16 beside 64 values in float32."""
    data, options = tiny
    told = say(data, *options, "--rate", 1)
    assert "full is 0.0 times the embedding" in told
    assert "the classifier, stored too, gives all 3 back" in told


def test_the_papers_schedule_takes_what_a_hand_computes():
    """13.15 million images in 7 views; the last block's chunks are whole: at most 0.05 % more."""
    found = {x["backbone"]: x for x in json.loads(say("--imagenet21k", "--json"))}
    for name, width in (("ViT-Ti", 192), ("ViT-S", 384), ("ViT-B", 768), ("ViT-L", 1024)):
        arrays = {array["name"]: array for array in found[name]["store"]["arrays"]}
        assert arrays["embedding"]["bytes"] == pytest.approx(13.15e6 * 7 * width * 2, rel=5e-4)
        assert arrays["embedding"]["chunk"] == [8192, 1, width]
        assert arrays["embedding"]["files"] == 7 * 1606
        losses = sum(arrays[x]["bytes"] for x in ("loss", "logsumexp", "entropy"))
        assert losses == pytest.approx(1.1046e9, rel=5e-4)
    base = found["ViT-B"]
    assert base["store"]["arrays"][0]["bytes"] == pytest.approx(141.4e9, rel=1e-3)
    assert base["logits"]["full"] == pytest.approx(4021e9, rel=1e-3)
    assert base["logits"]["top"] == pytest.approx(17.67e9, rel=1e-3)
    assert base["hours"]["RTX 4090"] == pytest.approx(92.05e6 / 2787 / 3600)
    assert base["cores"]["RTX 4090"] == 5
    assert "H100 NVL" not in found["ViT-Ti"]["hours"]


def test_the_papers_schedule_is_told_with_its_sources_and_limits():
    told = say("--imagenet21k", "--rate", 1000)
    assert "91,970,560 views, 6.99 passes" in told
    assert "RTX 4090: timm, results/benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv" in told
    assert "The first run saves nothing" in told
    assert rows_of(told)["--rate: time"] == ["25.6 h"] * 4
    assert rows_of(told)["times embeddings"] == ["113.8", "56.9", "28.4", "21.3"]
    assert "20,894 files, more than 10,000: --block 17408 stays below" in told


PEAK = """
import sys, json
from pathlib import Path
from askance.features.embed import Embedder
from askance.features.views import View
import askance.features.speed, askance.stages.extract, torch, scipy.special

def peak():  # resource's would hold the parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

before = peak()
data, out, options = sys.argv[1:]
views = [View.PLAIN, View.AUGMENT]
askance.stages.extract.run(Path(data), Path(out), views=views, **json.loads(options))
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_memory_is_within_half_of_a_real_runs_peak(tmp_path, make_set, checkpoint):
    """Logits of 96 rows, 2 views and 21,843 classes, and pictures of 224 pixels."""
    data = make_set(tmp_path, n=96)
    options = {"backbone": "test_vit", "weights": str(checkpoint(classes=21_843)), "size": 224}
    options |= {"classifier": "own", "block": 96, "batch": 96, "device": "cpu"}
    command = [sys.executable, "-c", PEAK, data, tmp_path / "a.zarr", json.dumps(options)]
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True, check=True)
    asked = [f"--{name}={value}" for name, value in options.items()]
    asked += ["--views", "plain", "--views", "augment", "--rate", "1", "--json"]
    parts = json.loads(say(data, *asked))["memory"]["worker"]
    assert sum(parts.values()) == pytest.approx(float(done.stdout.split()[-1]), rel=0.5)


def test_measuring_takes_the_seconds_it_is_given(tmp_path, make_set, tiny, monkeypatch):
    """A clock of a second a look: of five seconds three are the whole way's, three batches of 8."""
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=itertools.count(1.0).__next__))
    data = make_set(tmp_path / "even", n=24)
    measured = json.loads(say(data, *tiny[1], "--seconds", 5, "--json"))["measured"]
    assert (measured["pictures"], measured["rate"]) == (24, 8.0)
    assert measured["forward"] == 8.0
    assert measured["decode"] == 2.0  # both views of an image


def test_the_first_batch_is_slow_only_once_and_not_counted(monkeypatch):
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=itertools.count(1.0).__next__))
    assert speed._rate(iter([1000, 1, 1, 1, 1]), 3.0) == (1.0, 3)
