"""The score command with a tiny ViT: whom it scores, what it refuses, and what a kill leaves."""

import errno
import io
import json
import multiprocessing
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import typer
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from s3fs import S3FileSystem
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import askance
from askance import score, sheet
from askance.features import embed
from askance.features.store import FeatureStore
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, load, quantiles, save
from askance.heads.head import Setup
from askance.pipeline import retries
from askance.pipeline.artifacts import place
from askance.sheet import ends
from tests.stages.test_kills import kill_at_random, timed

KILLS = 4
app = typer.Typer()
app.command()(score.main)


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_set, extract, checkpoint):
    """Return the file of a head for the tiny ViT, and the weights of that."""
    root = tmp_path_factory.mktemp("model")
    store = FeatureStore.open(extract(make_set(root), root / "a.zarr", views=["plain"]))
    rows = torch.from_numpy(store.embedding("plain"))
    torch.manual_seed(0)
    setup = Setup(rows.shape[1], 8, 2, torch.randn(3, rows.shape[1]), torch.zeros(3))
    head = HEADS["ranking"](setup)
    scale = quantiles(head.uncertainty(rows))
    saved = SavedHead("ranking", 0, head, scale, setup.sizes, store.backbone, {})
    save(root / "ranking-0.safetensors", saved)
    return str(root / "ranking-0.safetensors"), str(checkpoint(img_size=32))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retries, "LONGEST", 0)
    return tmp_path


@pytest.fixture
def pictures(here, encode, write_tar):
    """Return the folder `x` of nine images, three of them in a tar: {key: encoded}."""
    found = {f"x/{number}.png": encode(number) for number in range(6)}
    for key, content in found.items():
        Path(key).parent.mkdir(exist_ok=True)
        Path(key).write_bytes(content)
    samples = {f"{number}": encode(number) for number in (6, 7, 8)}
    write_tar(here / "x" / "s.tar", {f"{key}.png": content for key, content in samples.items()})
    return found | {f"x/s.tar/{key}": content for key, content in samples.items()}


@pytest.fixture
def ask(model):
    """Return a function that runs the command."""

    def ask(*words, out="out.parquet"):
        options = ["--out", out, "--model", model[0], "--weights", model[1], "--device", "cpu"]
        return CliRunner().invoke(app, [str(word) for word in [*options, *words]])

    return ask


def scored(ask, *words, out="out.parquet"):
    result = ask(*words, out=out)
    assert result.exit_code == 0, result.output
    return pq.read_table(out).to_pydict() if str(out).endswith(".parquet") else None


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def png(width, height):
    """Return the header of a grey picture, and no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1) + b"IDAT"


def test_every_image_is_scored_as_the_model_scores_it(ask, model, pictures):
    pq.write_table(pa.table({"key": ["k"], "path": ["x/3.png"]}), "t.parquet")
    table = scored(ask, "x", "t.parquet", "x/[01].png", "--embedding")
    assert table["key"] == [*pictures, "k", "x/0.png", "x/1.png"]
    loaded = askance.load(*model)
    again = [pictures[name] for name in ("x/3.png", "x/0.png", "x/1.png")]
    images = [Image.open(io.BytesIO(data)) for data in [*pictures.values(), *again]]
    embedding, uncertainty = loaded(images)
    np.testing.assert_allclose(table["embedding"], embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["uncertainty"], uncertainty, rtol=1e-4)
    np.testing.assert_allclose(table["percentile"], loaded.percentile(uncertainty), atol=2e-4)
    assert table["refused"] == [None] * 12


def test_folders_that_are_missing_are_made(ask, pictures):
    scored(ask, "x", "--html", "pages/sheet.html", out="new/tables/out.csv")
    assert {p.name for p in Path("new/tables").iterdir()} == {"out.csv"}
    assert Path("pages/sheet.html").is_file()


def test_csv_and_json_lines_say_what_parquet_says(ask, pictures):
    Path("x/2.png").write_bytes(b"text")
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        scored(ask, "x", "--refusals", "0.2", out=name)
    expected = pq.read_table("out.parquet")
    text = pa.csv.ConvertOptions(column_types=expected.schema, strings_can_be_null=True)
    assert pa.csv.read_csv("out.csv", convert_options=text).equals(expected)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert lines == expected.to_pylist()
    scored(ask, "x/1.png", "--embedding", out="out.jsonl")
    assert np.shape(json.loads(Path("out.jsonl").read_text())["embedding"]) == (64,)
    assert not list(Path().glob(".*"))


def test_a_parquet_file_says_what_it_was_made_with(ask, model, pictures):
    scored(ask, "x")
    about = {k.decode(): v.decode() for k, v in pq.read_schema("out.parquet").metadata.items()}
    saved = askance.load(*model).saved
    assert about["backbone"] == "test_vit"
    assert about["weights"] == saved.backbone["weights"]
    assert about["head"] == "ranking-0"
    assert json.loads(about["versions"])["torch"] == torch.__version__


def test_images_that_can_not_be_had_are_refused_and_all_others_scored(ask, here, encode):
    (here / "x").mkdir()
    whole = encode(1)
    bad = {
        "cut.png": (whole[:-200], "expected a whole image, got a damaged one"),
        "large.png": (png(20_000, 20_000), "got 400,000,000 in one of 20000 x 20000"),
        "none.png": (b"", "expected an image, got 0 bytes of something else"),
        "text.jpg": (b"a text file", "expected an image, got 11 bytes of something else"),
    }
    good = {"one.png": encode(size=(1, 1)), "wide.png": encode(Image.new("RGB", (20_000, 300)))}
    for name, data in [*good.items(), *((name, data) for name, (data, _) in bad.items())]:
        (here / "x" / name).write_bytes(data)
    result = ask("x", "--embedding")
    table = pq.read_table("out.parquet").to_pydict()
    assert result.exit_code == 3
    assert "expected at most 0.00% of 6 images refused, got 4; the first: 'x/cut.png' (" in (
        result.stderr
    )
    assert "all are told in the column refused of out.parquet" in result.stderr
    for key, uncertainty, percentile, reason, row in zip(*table.values(), strict=True):
        if (name := key.removeprefix("x/")) in bad:
            assert bad[name][1] in reason
            assert (uncertainty, percentile, row) == (None, None, None)
        else:
            assert name in good
            assert reason is None
            assert np.isfinite([uncertainty, percentile, *row]).all()
    assert ask("x", "--embedding").exit_code == 3  # done, and still no success
    assert ask("x", "--embedding", "--refusals", "0.7").exit_code == 0


def test_an_uncertainty_that_is_not_finite_is_refused(ask, pictures, monkeypatch):
    finite = HEADS["ranking"].forward

    def infinite(self, rows):
        return torch.where(torch.arange(len(rows)) == 4, torch.inf, finite(self, rows))

    monkeypatch.setattr(HEADS["ranking"], "forward", infinite)
    scored(ask, "x", "--refusals", "0.2")
    table = pq.read_table("out.parquet").to_pydict()
    assert table["refused"] == [None] * 4 + [score.NOT_FINITE] + [None] * 4
    assert [x is None for x in table["uncertainty"]] == [n == 4 for n in range(9)]
    assert [x is None for x in table["percentile"]] == [n == 4 for n in range(9)]


def test_finished_work_is_not_done_again_unless_something_changed(ask, pictures, monkeypatch):
    scored(ask, "x")
    before, embedder = Path("out.parquet").read_bytes(), embed.Embedder.embed
    monkeypatch.setattr(embed.Embedder, "embed", None)
    result = ask("x", "--html", "sheet.html")
    assert (result.exit_code, "out.parquet: complete" in result.output) == (0, True)
    assert Path("out.parquet").read_bytes() == before
    assert Path("sheet.html").exists()
    monkeypatch.setattr(embed.Embedder, "embed", embedder)
    Path("x/0.png").write_bytes(Path("x/1.png").read_bytes())
    result = ask("x")
    assert "out.parquet: images changed; begun anew" in result.output
    uncertainty = pq.read_table("out.parquet")["uncertainty"].to_pylist()
    assert uncertainty[0] == uncertainty[1]
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_run_cut_short_goes_on_to_the_same_bytes(ask, pictures, monkeypatch, kind):
    monkeypatch.setattr(score, "ROWS", 2)
    scored(ask, "x", out=f"whole.{kind}")
    written = interrupt(monkeypatch, 3)
    assert ask("x", out=f"out.{kind}").exit_code == 130
    result = ask("x", out=f"out.{kind}")
    assert f"out.{kind}: continuing" in result.output
    assert written == [0, 1, 2, 2, 3, 4]
    assert Path(f"out.{kind}").read_bytes() == Path(f"whole.{kind}").read_bytes()
    assert not list(Path().glob(".*"))


def test_what_was_begun_with_other_options_is_begun_anew_and_that_is_said(
    ask, pictures, monkeypatch
):
    monkeypatch.setattr(score, "ROWS", 2)
    written = interrupt(monkeypatch, 3)
    assert ask("x").exit_code == 130
    result = ask("x", "--embedding", "--batch", "8")
    assert "out.parquet: embedding, batch changed; begun anew" in result.output
    assert written == [0, 1, 2, 0, 1, 2, 3, 4]
    assert not list(Path().glob(".*"))


def test_parts_of_a_head_of_the_same_name_and_seed_are_not_mixed(
    ask, model, pictures, here, monkeypatch
):
    monkeypatch.setattr(score, "ROWS", 2)
    written = interrupt(monkeypatch, 3)
    assert ask("x").exit_code == 130
    saved = load(Path(model[0]))
    with torch.no_grad():
        next(saved.head.parameters()).mul_(2)
    save(here / "ranking-0.safetensors", saved)
    result = ask("x", "--model", str(here / "ranking-0.safetensors"))
    assert "out.parquet: tensors changed; begun anew" in result.output
    assert written == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu(ask, pictures):
    on_cpu, on_gpu = scored(ask, "x"), scored(ask, "x", "--device", "cuda", out="gpu.parquet")
    np.testing.assert_allclose(on_gpu["uncertainty"], on_cpu["uncertainty"], rtol=2e-3)


def interrupt(monkeypatch, number):
    """Press Ctrl-C at the part of that number; return the numbers of the parts begun, from now."""
    make, begun = score._scores, []

    def interrupted(model, part, *rest):
        begun.append(part.block.number)
        if len(begun) == number:
            raise KeyboardInterrupt
        return make(model, part, *rest)

    monkeypatch.setattr(score, "_scores", interrupted)
    return begun


def test_any_number_of_kills_leaves_the_bytes_of_an_unbroken_run(here, model, encode):
    """SIGKILL at random points of real processes, which fork from one that has torch."""
    (here / "x").mkdir()
    for number in range(24):
        (here / "x" / f"{number:02}.png").write_bytes(encode(number) if number % 9 else b"")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["askance.model", "askance.features.embed", "askance.sheet"])
    code = (
        "from askance import score; score.ROWS = 3; from pathlib import Path;"
        f"score.run(['x'], out=Path({{!r}}), model={model[0]!r}, weights={model[1]!r},"
        " embedding=True, refusals=1.0, device='cpu', threads=1)"
    )

    def start(path):
        process = context.Process(target=exec, args=(code.format(str(path)),))
        process.start()
        return process

    for folder in ("whole", "killed"):
        (here / folder).mkdir()
    timed(start("whole/out.parquet"))  # starts the fork server, too
    (here / "whole" / "out.parquet").unlink()
    whole = timed(start("whole/out.parquet"))
    killed = here / "killed" / "out.parquet"

    def finished():
        assert content(killed.parent) == content(here / "whole")
        killed.unlink()

    kill_at_random(lambda: start("killed/out.parquet"), finished, whole, KILLS, seed=1)
    timed(start("killed/out.parquet"))
    finished()
    assert not list(killed.parent.iterdir())


def test_two_runs_do_not_write_one_table(ask, pictures, here):
    (here / ".out.parquet.state").mkdir()
    with FileLock(here / ".out.parquet.state" / "lock"):
        result = ask("x")
    assert result.exit_code == 1
    assert "expected to be the only writer of out.parquet, got another one" in result.stderr


def test_the_web_s_failures_are_refused_and_a_store_s_outage_stops(
    ask, here, http_server, s3, flaky_s3, encode, monkeypatch
):
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (http_server.folder / "a.png").write_bytes(encode(0))
    place(f"{s3}/b.png").write_bytes(encode(1))
    urls = [f"{http_server.url}/a.png", f"{http_server.url}/none.png", f"{s3}/b.png"]
    Path("t.csv").write_text("\n".join(["url", *urls]))
    flaky_s3.faults(rate=1.0, kinds=("throttle",), only="GET .*b.png")
    result = ask("t.csv")
    assert result.exit_code == 1
    assert "b.png, got" in result.stderr
    assert "run the same command again: what is finished is kept" in result.stderr
    flaky_s3.faults()
    result = ask("t.csv")
    table = pq.read_table("out.parquet").to_pydict()
    assert (result.exit_code, table["key"]) == (3, urls)
    assert [reason is None for reason in table["refused"]] == [True, False, True]


class Tiles(HTMLParser):
    """The keys and addresses of a sheet, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.keys, self.addresses, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        if tag == "li":
            self.keys.append(found["data-key"])
        if tag == "img":
            self.addresses.append(found["src"])


def test_the_sheet_shows_the_most_uncertain_first_and_needs_nothing_beside_it(ask, pictures):
    hostile = "x/<script>alert(1)</script>'\"&\u202e.png".replace("</", "<")
    Path(hostile).write_bytes(pictures["x/0.png"])
    Path("x/text.jpg").write_bytes(b"text")
    table = scored(ask, "x", "--refusals", "1", "--html", "sheet.html")
    text = Path("sheet.html").read_text()
    tiles = Tiles(text)
    known = [(-u, row) for row, u in enumerate(table["uncertainty"]) if u is not None]
    assert tiles.keys == [table["key"][row] for _, row in sorted(known)]
    assert hostile in tiles.keys
    assert "<script>alert" not in text
    assert all(address.startswith("data:image/png;base64,") for address in tiles.addresses)
    assert len(tiles.addresses) == 10
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|fetch\(", text)
    assert "1 could not be scored." in re.sub(r"\s+", " ", text)


def test_of_many_images_the_sheet_shows_both_ends(ask, pictures, monkeypatch):
    monkeypatch.setattr(sheet, "SHOWN", 4)
    table = scored(ask, "x", "--html", "sheet.html")
    Path("x/5.png").unlink()
    text = Path("sheet.html").read_text()
    order = np.argsort(-np.array(table["uncertainty"]))[[0, 1, -2, -1]]
    assert Tiles(text).keys == [table["key"][row] for row in order]
    assert "Shown are the 2 most and the 2 least uncertain." in text


def test_an_image_that_is_gone_has_its_place_on_the_sheet(ask, pictures, monkeypatch):
    monkeypatch.setattr(
        sheet, "images", lambda tables: ((k, "gone") for t in tables for k in t["key"])
    )
    scored(ask, "x", "--html", "sheet.html")
    text = Path("sheet.html").read_text()
    assert len(Tiles(text).keys) == 9
    assert not Tiles(text).addresses
    assert text.count("be read any more") == 9


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), max_size=12), st.integers(1, 5))
def test_the_ends_are_the_largest_and_smallest_without_nan(values, half):
    uncertainty = np.array(values)
    order = sorted((row for row, x in enumerate(values) if x == x), key=lambda row: -values[row])
    expected = order if len(order) <= 2 * half else order[:half] + order[-half:]
    assert ends(uncertainty, 2 * half).tolist() == expected


@pytest.mark.parametrize(
    ("words", "out", "code", "message"),
    [
        (["x"], "out.txt", 2, "expected --out to end in .parquet, .csv, .jsonl, got out.txt"),
        (
            ["x"],
            "s3://b/out.csv",
            2,
            "expected a path on this machine as --out, got s3://b/out.csv",
        ),
        (["x", "--embedding"], "out.csv", 2, "with --embedding, got .csv, which has no"),
        (["x"], "folder.csv", 1, "expected a file to write, got the folder folder.csv: name a"),
        (["x", "--html", "folder.csv"], "out.csv", 1, "got the folder folder.csv: name a file"),
        (["x", "--html", "out.csv"], "out.csv", 2, "--html to be new files, got out.csv for some"),
        (["x/l.csv"], "x/l.csv", 2, "expected --out and --html to be new files, got x/l.csv for"),
        (["none"], "out.csv", 1, "expected images at none, got no such file"),
        (["folder.csv"], "out.csv", 1, "in folder.csv, got none"),
        (["x", "--device", "cuda:99"], "out.csv", 1, "expected the device 'cuda:99'"),
        (
            ["x", "--weights", "x/0.png"],
            "out.csv",
            1,
            "a checkpoint that fits, got x/0.png",
        ),
        (
            ["x", "--model", "none"],
            "out.csv",
            1,
            "released model at none, got nothing there: check",
        ),
    ],
)
def test_what_can_not_be_done_is_said_and_nothing_is_written(
    ask, pictures, here, words, out, code, message
):
    (here / "folder.csv").mkdir()
    before = sorted(here.iterdir())
    result = ask(*words, out=out)
    text = re.sub(r"[\s│]+", " ", result.output)
    assert (result.exit_code, message in text) == (code, True), text
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", "expected finite weights, got NaN or infinity in head."),
        ("cut", "a damaged file: Error while deserializing header"),
    ],
)
def test_a_head_that_is_damaged_is_told_and_nothing_is_written(
    ask, model, pictures, spoil, message
):
    """Others of its kind: tests/heads/test_checkpoint.py."""
    path = Path("spoilt-0.safetensors")
    if spoil == "cut":
        path.write_bytes(Path(model[0]).read_bytes()[:-10])
    else:
        with safe_open(model[0], framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        name = next(name for name in tensors if name.startswith("head."))
        tensors[name].view(-1)[0] = torch.nan
        save_file(tensors, path, about)
    before = sorted(Path().iterdir())
    result = ask("x", "--model", path)
    assert (result.exit_code, message in result.stderr) == (1, True), result.output
    assert sorted(Path().iterdir()) == before


def test_a_folder_that_can_not_be_written_is_told_before_the_work(ask, pictures, monkeypatch):
    """Root may write all: the error is made where the system makes it."""

    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.mkdir", refused)
    monkeypatch.setattr(embed.Embedder, "embed", None)
    result = ask("x")
    assert result.exit_code == 1
    assert "Permission denied: '.out.parquet.state'" in result.stderr


def test_help_needs_no_torch():
    code = "import sys, askance.score; print([m for m in ('torch', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
