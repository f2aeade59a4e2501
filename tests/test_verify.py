"""verify: one flipped bit anywhere is found, named and mended; wrong numbers are found by value."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
import zarr
from typer.testing import CliRunner
from upath import UPath

from askance.features.engine import Engine
from askance.pipeline.artifacts import read_sealed, sha256, write_sealed
from askance.stages import probe
from askance.verify import main, run

CREATED = [
    "zarr.json",
    "embedding/zarr.json",
    "classifier/zarr.json",
    "classifier/weight/zarr.json",
    "classifier/weight/c/0/0",
    "classifier/bias/c/0",
    "label/c/1",
    "crop/c/3",
    "status/zarr.json",
    "status/index.parquet",
    "status/manifest.json",
]
OF_BLOCKS = {
    "embedding/c/0/1/0": (0, " (embedding, block 0, rows 0 to 7, view crop)"),
    "loss/c/1/0": (1, " (loss, block 1, rows 8 to 15)"),
    "logsumexp/c/2/0": (2, " (logsumexp, block 2, rows 16 to 23)"),
    "entropy/c/3/0": (3, " (entropy, block 3, rows 24 to 24)"),
    "logits_top/c/1/0/0": (1, " (logits_top, block 1, rows 8 to 15, view plain)"),
    "logits_top_index/c/2/0/0": (2, " (logits_top_index, block 2, rows 16 to 23, view plain)"),
    "status/c/3": (3, " (status, block 3, rows 24 to 24)"),
    "status/blocks/00002.json": (2, ""),
}
AT_THE_END = ["status/refused.parquet", "status/account.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_set, extract, encode):
    """Return a folder with a set and its store, of which the row 5 is refused."""
    folder = tmp_path_factory.mktemp("verify")
    samples = {f"k{i:03}": (encode(i), i % 3) for i in range(25)}
    samples["k005"] = (b"no image", 2)
    data = make_set(folder, samples)
    extract(data, folder / "a.zarr", refusals=1.0, **OPTIONS)
    return folder


OPTIONS = {"views": ["plain", "crop"], "classifier": "own", "logits": "top", "dtype": "float16"}


@pytest.fixture
def without_shards(made):
    shards = (made / "shards").rename(made / "elsewhere")
    (made / "shards").mkdir()  # the disk is there, the shards are not
    yield
    (made / "shards").rmdir()
    shards.rename(made / "shards")


@pytest.fixture
def without_disk(made):
    shards = (made / "shards").rename(made / "elsewhere")
    yield
    shards.rename(made / "shards")


@pytest.fixture
def store(made, tmp_path):
    return shutil.copytree(made / "a.zarr", tmp_path / "a.zarr")


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def flip(file, seed=0):
    data = bytearray(file.read_bytes())
    bit = int(np.random.default_rng(seed).integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def found(capsys, store, **options):
    """Return what verify prints of a store that it must find wrong."""
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"expected a whole store, got \d+ findings in"):
        run(store, **{"sample": 0.0} | options)
    return capsys.readouterr().out


def reseal(store, sealed, *files):
    """Make a sealed file tell of files as they are now."""
    told = read_sealed(store / sealed)
    told["files"] |= {file: sha256(store / file) for file in files}
    write_sealed(store / sealed, told)


def edit(store, name, rows, values):
    """Change values of an array so that all hashes fit."""
    zarr.open_group(str(store))[name][rows] = values
    for block in range(4):
        files = [f"{p.relative_to(store)}" for p in (store / name / "c" / str(block)).rglob("*")]
        files = [file for file in files if (store / file).is_file()]
        reseal(store, f"status/blocks/{block:05}.json", *files)


def test_a_whole_store_is_ok_in_one_line(store, capsys):
    capsys.readouterr()
    run(store, sample=1.0)
    [line] = capsys.readouterr().out.splitlines()
    size = sum(len(data) for data in content(store).values())
    assert line == (
        f"{store}: {len(content(store))} files, {size:,} bytes, 25 rows, losses of 25 rows computed"
        " again, 24 rows embedded again, 24 of them equal to the last bit"
    )


def test_a_store_without_refusals_or_losses_is_ok_too(made, tmp_path, make_set, extract, capsys):
    store = extract(make_set(tmp_path, n=5), tmp_path / "a.zarr")
    capsys.readouterr()
    run(store)
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("5 rows, 5 rows embedded again, 5 of them equal to the last bit")


@pytest.mark.parametrize("name", [*CREATED, *OF_BLOCKS, *AT_THE_END])
def test_a_flipped_bit_is_named_and_repaired(store, made, capsys, name):
    """To the very bytes, and no other block is written."""
    flip(store / name, seed=len(name))
    before = {file: (store / file).stat().st_mtime_ns for file in content(store)}
    number, where = OF_BLOCKS.get(name, (None, ""))
    [line, *_] = found(capsys, store).splitlines()
    assert line.startswith(f"wrong: {name}: other bytes than were written{where}")
    run(store, sample=0.0, repair=True)
    assert content(store) == content(made / "a.zarr")
    changed = {file for file, time in before.items() if (store / file).stat().st_mtime_ns != time}
    of_block = re.compile(rf".+/c/{number}(/.+)?|status/blocks/0000{number}.json")
    assert all(of_block.fullmatch(file) for file in changed - {name, *AT_THE_END})


def test_a_bit_in_every_file_is_told_at_once_and_repaired(store, made, capsys):
    """All but the manifest, without which none of the others can be told of.

    That a record is missing shows only once the index is mended.
    """
    names = content(store).keys() - {"status/manifest.json"}
    for seed, name in enumerate(sorted(names)):
        flip(store / name, seed)
    (store / "status/blocks/00003.json").unlink()
    told = found(capsys, store)
    names -= {"status/blocks/00003.json"}
    by_records = {name for name in names if re.search(r"(embedding|loss|top.*|exp|py|us)/c/", name)}
    for name in names - by_records - {"status/refused.parquet"}:
        assert f"wrong: {name}: other bytes" in told
    run(store, sample=0.0, repair=True)
    assert content(store) == content(made / "a.zarr")


def test_a_repair_that_lacks_what_it_takes_says_so(store, tmp_path, make_set):
    flip(store / "status/index.parquet")
    for data in (tmp_path, make_set(tmp_path, n=5)):
        with pytest.raises(ValueError, match="expected the index that .* name the set's folder"):
            run(store, sample=0.0, repair=True, data=data)
    flip(store / "label/c/0")
    reseal(store, "status/manifest.json", "label/c/0", "status/index.parquet")
    flip(store / "label/c/0")
    with pytest.raises(ValueError, match=r"got others for label/c/0: repair with the versions .*2"):
        run(store, sample=0.0, repair=True)
    for name in ("status/manifest.json", "zarr.json"):
        (store / name).write_bytes((store / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"expected status/manifest.json or .* both damaged"):
        run(store, sample=0.0, repair=True)


def test_a_truncated_a_missing_and_a_foreign_file_and_litter_are_named(store, made, capsys):
    cut = store / "embedding/c/3/0/0"
    cut.write_bytes(cut.read_bytes()[:-1])
    (store / "loss/c/0/0").unlink()
    (store / "label/c/2").unlink()
    for name in ("notes.txt", "label/c/9", "embedding/c/9/0/0", "status/blocks/00009.txt"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"1")
    (store / "embedding/c/0/0/0.partial").write_bytes(b"1")
    told = found(capsys, store)
    assert "wrong: embedding/c/3/0/0: other bytes than were written (embedding, block 3" in told
    assert "wrong: loss/c/0/0: missing (loss, block 0, rows 0 to 7)" in told
    assert "wrong: label/c/2: missing (label, block 2, rows 16 to 23)" in told
    for name in ("notes.txt", "label/c/9", "status/blocks/00009.txt", "embedding/c/0/0/0.partial"):
        assert f"wrong: {name}: foreign" in told
    after = found(capsys, store, repair=True).partition("after the repair:")[2]
    assert "notes.txt: foreign" in after
    assert "missing" not in after
    for name in ("notes.txt", "label/c/9", "embedding/c/9/0/0", "status/blocks/00009.txt"):
        (store / name).unlink()
    assert content(store) == content(made / "a.zarr")


def test_two_chunks_swapped_are_both_named(store, capsys):
    a, b = (store / f"embedding/c/{n}/0/0" for n in (0, 1))
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)
    told = found(capsys, store)
    assert "embedding/c/0/0/0: other bytes" in told
    assert "embedding/c/1/0/0: other bytes" in told


def test_records_swapped_or_missing_are_named_and_the_blocks_made_again(store, made, capsys):
    a, b, c = (store / f"status/blocks/0000{n}.json" for n in (0, 1, 3))
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(kept)
    c.unlink()
    told = found(capsys, store)
    assert "wrong: status/blocks/00000.json: tells of rows [8, 16], not [0, 8]" in told
    assert "wrong: status/blocks/00001.json: tells of rows [0, 8], not [8, 16]" in told
    assert "wrong: status/blocks/00003.json: missing" in told
    run(store, sample=0.0, repair=True)
    assert content(store) == content(made / "a.zarr")


def test_accounts_that_do_not_add_up_are_told(store, made, capsys):
    told = read_sealed(store / "status/account.json")
    shards = {"s0.tar": [8, 2]}
    write_sealed(store / "status/account.json", told | {"refused": 2, "shards": shards})
    lines = found(capsys, store)
    assert "wrong: status/account.json: other refused than the records add up to" in lines
    assert "wrong: status/account.json: other shards than the records add up to" in lines
    assert "other rows" not in lines
    run(store, sample=0.0, repair=True)
    assert content(store) == content(made / "a.zarr")


def test_an_unfinished_store_says_so_and_what_is_finished_is_checked(store, capsys):
    (store / "status/blocks/00001.json").unlink()
    for name in AT_THE_END:
        (store / name).unlink()
    told = found(capsys, store, sample=1.0)
    line = "wrong: unfinished: 1 of 4 blocks (8 of 25 rows) are not done: run extract again"
    assert [line in told, told.count("wrong:")] == [True, 1]
    flip(store / "loss/c/2/0")
    flip(store / "loss/c/1/0")  # of no finished block
    assert "wrong: loss/c/2/0: other bytes" in (told := found(capsys, store))
    assert "loss/c/1/0" not in told


def test_a_loss_that_is_not_the_embeddings_is_found_though_all_hashes_fit(store, capsys):
    loss = zarr.open_group(str(store))["loss"][12]
    edit(store, "loss", 12, loss + np.float32(0.1))
    told = found(capsys, store)
    assert told.count("wrong:") == 1
    assert "wrong: loss: block 1, row 12 ('k012'), view plain:" in told
    assert "computed" in told


@pytest.mark.parametrize("name", ["entropy", "logsumexp", "logits_top", "logits_top_index"])
def test_every_score_is_computed_again(store, capsys, name):
    kept = zarr.open_group(str(store))[name][20]
    edit(store, name, 20, kept[..., ::-1] if kept.ndim > 1 else kept + np.float32(0.1))
    assert f"wrong: {name}: block 2, row 20 ('k020'), view plain:" in found(capsys, store)


def test_an_embedding_that_is_not_its_pictures_is_found_though_all_hashes_fit(store, capsys):
    """The rows of two pictures exchanged, and a last bit: the scores are exchanged as well."""
    group = zarr.open_group(str(store))
    for name in ("embedding", "loss", "logsumexp", "entropy", "logits_top", "logits_top_index"):
        kept = group[name][:]
        edit(store, name, slice(9, 10), kept[12:13])
        edit(store, name, slice(12, 13), kept[9:10])
    bits = group["embedding"][24].view(np.uint16)
    bits[1, 7] ^= 1
    edit(store, "embedding", 24, bits.view(np.float16))
    told = found(capsys, store, sample=1.0)
    assert "wrong: embedding: block 1, row 9 ('k009'), view plain:" in told
    assert "; and 1 more rows of the block" in told
    assert "wrong: embedding: block 3, row 24 ('k024'), view crop:" in told
    assert "(another processor would explain it)" in told.splitlines()[-1]
    run(store, sample=1.0, repair=True)


def test_other_rounding_is_a_hint_where_it_may_be_other(store, capsys):
    """The store says that it comes from other versions; one last bit differs."""
    group = zarr.open_group(str(store))
    versions = group.attrs["made"]["versions"] | {"torch": "2.0"}
    group.attrs["made"] = group.attrs["made"] | {"versions": versions}
    reseal(store, "status/manifest.json", "zarr.json")
    bits = group["embedding"][24].view(np.uint16)
    bits[1, 7] ^= 1
    edit(store, "embedding", 24, bits.view(np.float16))
    capsys.readouterr()
    run(store, sample=1.0)
    hint, summary = capsys.readouterr().out.splitlines()
    assert hint.startswith("hint: other rounding, as another processor, thread count or version")
    assert "23 of them equal to the last bit" in summary


def test_another_number_of_threads_is_no_damage(made, tmp_path, extract, monkeypatch, capsys):
    """A network that rounds otherwise on one thread than on more, as convolutions may."""
    real, before = Engine._padded, torch.get_num_threads()

    def padded(self, pixels):
        return real(self, pixels) * (1 + 1e-6 * (torch.get_num_threads() > 1))

    monkeypatch.setattr(Engine, "_padded", padded)
    try:
        torch.set_num_threads(1)
        store = extract(made / "set", tmp_path / "a.zarr", refusals=1.0)
        torch.set_num_threads(2)
        capsys.readouterr()
        run(store, sample=1.0)
    finally:
        torch.set_num_threads(before)
    assert "24 of them equal to the last bit" in capsys.readouterr().out


def test_without_shards_nothing_passes_for_checked(store, without_shards, capsys):
    told = found(capsys, store, sample=1.0)
    assert "not checked: 24 rows, which can't be read now: expected a shard that can be" in told


def test_a_lost_disk_is_told(store, without_disk, capsys):
    assert "not checked: embeddings: [Errno 2]" in found(capsys, store, sample=1.0)


def test_without_weights_nothing_passes_for_checked_unless_asked_for(store, capsys):
    told = found(capsys, store, sample=1.0, weights="/nothing.pth")
    assert "not checked: embeddings: expected a checkpoint or 'pretrained' as weights" in told
    run(store, sample=0.0, weights="/nothing.pth")


def test_what_was_known_beforehand_is_compared_too(store, capsys):
    """A label edited so that its hash fits: it is not the index's, nor the losses'."""
    zarr.open_group(str(store))["label"][3] = 1
    reseal(store, "status/manifest.json", "label/c/0")
    told = found(capsys, store, sample=1.0)
    assert "wrong: label: other values than extract gives it" in told
    assert "wrong: loss: block 0, row 3" in told


def test_other_weights_are_told(store, checkpoint, capsys):
    other = str(checkpoint(seed=1, img_size=32))
    told = found(capsys, store, sample=1.0, weights=other)
    assert "wrong: other weights than the store was made with" in told


def test_a_repair_without_shards_loses_nothing(store, without_shards, capsys):
    flip(store / "embedding/c/1/0/0")
    before = content(store)
    told = found(capsys, store, repair=True)
    assert "block 1: left as it is, 8 rows can't be read: expected a shard" in told
    assert content(store) == before


def test_a_repair_with_other_weights_changes_nothing(store, checkpoint, capsys):
    flip(store / "embedding/c/1/0/0")
    before = content(store)
    with pytest.raises(ValueError, match="got other weights: repair with the same device, weights"):
        run(store, sample=0.0, repair=True, weights=str(checkpoint(seed=1, img_size=32)))
    assert content(store) == before


def test_refused_images_that_can_be_embedded_now_are_a_hint(tmp_path, make_set, extract, capsys):
    data = make_set(tmp_path)
    (tmp_path / "shards" / "s2.tar").rename(tmp_path / "kept")
    store = extract(data, tmp_path / "a.zarr", refusals=1.0)
    (tmp_path / "kept").rename(tmp_path / "shards" / "s2.tar")
    capsys.readouterr()
    run(store)
    hint, summary = capsys.readouterr().out.splitlines()
    assert hint == "hint: 5 refused images can be embedded now: extract --retry"
    assert "20 of them equal to the last bit" in summary


def test_a_probes_store_has_files_only(store, tmp_path, capsys):
    probe.run(store, tmp_path / "a.probe.zarr", columns="all")
    capsys.readouterr()
    run(tmp_path / "a.probe.zarr")
    assert "25 rows, a probe's store: no embeddings to check" in capsys.readouterr().out
    flip(tmp_path / "a.probe.zarr" / "loss/c/1/0")
    assert "wrong: loss/c/1/0: other" in found(capsys, tmp_path / "a.probe.zarr")
    with pytest.raises(ValueError, match="expected a store of embeddings, got .*run probe again"):
        run(tmp_path / "a.probe.zarr", repair=True)


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "text").write_text("1")
    with pytest.raises(ValueError, match="expected a store at .*, got none: run extract"):
        run(tmp_path)


def test_a_store_in_an_object_store_is_checked_and_repaired(store, s3, capsys):
    there, whole = UPath(f"{s3}/a.zarr"), content(store)
    there.fs.put(str(store), there.path, recursive=True)
    names = ["embedding/c/1/0/0", "label/c/0"]
    for name in names:
        flip(there / name)
    run(there, sample=0.0, repair=True)
    told = capsys.readouterr().out
    for name in names:
        assert f"wrong: {name}: other bytes than were written" in told
        assert (there / name).read_bytes() == whole[name]


def test_the_files_are_checked_without_torch(store):
    code = (
        "import sys; from pathlib import Path; from askance.verify import main, run\n"
        f"run(Path({str(store)!r}), sample=0.0)\n"
        "print([m for m in ('torch', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_exit_code_tells_the_truth(store):
    app = typer.Typer()
    app.command()(main)
    assert CliRunner().invoke(app, [str(store), "--sample", "0"]).exit_code == 0
    flip(store / "loss/c/0/0")
    done = CliRunner().invoke(app, [str(store), "--sample", "0"])
    assert done.exit_code == 1
    assert "askance: expected a whole store, got 1 findings in" in done.stderr
    assert done.stderr.rstrip().endswith("--repair makes again what is damaged")
