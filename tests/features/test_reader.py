"""Reading by range: the bytes that tarfile finds, few reads, a reason for whatever is missing."""

import io
import os
import tarfile

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.features import reader
from askance.features.reader import EXTENT, GAP, MAX_IMAGE, extents, images
from askance.features.shards import scan
from askance.pipeline import retries


def table(shard, members):
    """Return the samples of {key: Member}, as `task` gives them."""
    columns = {"offset": [m.offset for m in members.values()]}
    columns |= {"size": [m.size for m in members.values()]}
    n = len(members)
    return pa.table({"row": range(n), "key": list(members), "shard": [str(shard)] * n} | columns)


def samples(path):
    return table(path, {key: members[0] for key, members in scan(str(path))})


@pytest.fixture
def shard(tmp_path, write_tar):
    contents = {f"a/k{i}": os.urandom(700 * i) for i in range(9)}
    contents["a/" + "long" * 60] = b"a name that needs a header of its own"
    contents["a/žluť"] = b"and one that is not ASCII"
    path = write_tar(tmp_path / "x.tar", {f"{key}.jpg": data for key, data in contents.items()})
    return path, contents


def test_every_image_is_the_one_that_tarfile_finds(shard):
    path, contents = shard
    assert dict(images([samples(path)])) == contents


def test_any_rows_in_any_order_and_over_several_tables(shard):
    path, contents = shard
    whole = samples(path)
    tables = [whole.take(places) for places in ([7, 2, 2], [10, 0])]
    keys = [whole["key"][place].as_py() for place in (7, 2, 2, 10, 0)]
    assert list(images(tables)) == [(key, contents[key]) for key in keys]


def test_object_stores_are_read_by_range(shard):
    path, contents = shard
    with fsspec.open("memory://bucket/x.tar", "wb") as remote:
        remote.write(path.read_bytes())
    assert dict(images([samples("memory://bucket/x.tar")])) == contents


def test_a_set_may_prefix_its_keys(shard):
    path, contents = shard
    found = samples(path)
    keys = pa.array([f"photos/{key}" for key in found["key"].to_pylist()])
    prefixed = found.set_column(1, "key", keys)
    assert [content for _, content in images([prefixed])] == list(contents.values())


@given(st.lists(st.tuples(st.integers(0, 3 * EXTENT // 2), st.integers(0, 200_000)), max_size=30))
def test_extents_hold_every_image_once_and_stay_small(steps):
    """Laws of any run of offsets (from 512, rising) and sizes."""
    offset, rows = 512, []
    for gap, size in steps:
        rows.append({"shard": "x", "offset": offset, "size": size})
        offset += size + 512 + gap
    found = extents(
        pa.Table.from_pylist(
            rows, pa.schema([("shard", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
        )
    )
    assert [place for extent in found for place in extent.samples] == list(range(len(rows)))
    for extent in found:
        assert extent.stop - extent.start <= EXTENT or len(extent.samples) == 1
        for place in extent.samples:
            row = rows[place]
            assert extent.start <= row["offset"] - 512
            assert row["offset"] + row["size"] <= extent.stop
        inside = [rows[place] for place in extent.samples]
        ends = [row["offset"] + row["size"] for row in inside]
        starts = [row["offset"] - 512 for row in inside]
        assert all(0 <= b - a <= GAP for a, b in zip(ends, starts[1:], strict=False))


def test_neighbouring_images_are_read_at_once(shard):
    path, contents = shard
    assert len(extents(samples(path))) == 1
    assert len(contents) > 1


def test_a_cut_shard_gives_what_it_has_and_a_reason_for_the_rest(shard):
    path, contents = shard
    found = samples(path)
    os.truncate(path, found["offset"][5].as_py() + 10)
    got = dict(images([found]))
    assert [got[key] for key in list(contents)[:5]] == list(contents.values())[:5]
    assert all("which ends before: mend it" in got[key] for key in list(contents)[5:])


def test_a_missing_or_forbidden_shard_is_a_reason(tmp_path, shard):
    path, _ = shard
    found = samples(path)
    path.unlink()
    assert all("No such file" in reason for _, reason in images([found]))
    path.mkdir()
    assert all("got a folder" in reason for _, reason in images([found]))


def test_another_file_in_the_place_of_a_sample_is_a_reason(shard, write_tar):
    path, contents = shard
    found = samples(path)
    others = {f"b/k{i}.jpg": data for i, data in enumerate(contents.values())}
    write_tar(path, others)
    reason = dict(images([found]))["a/k3"]
    assert reason.startswith("expected the sample 'a/k3' of 2100 bytes at")
    assert "got 'b/k3.jpg' of 2100 bytes: the shard changed" in reason


def test_another_size_in_the_place_of_a_sample_is_a_reason(shard, write_tar):
    path, contents = shard
    found = samples(path)
    others = {f"{key}.jpg": data + b"x" * (key == "a/k3") for key, data in contents.items()}
    write_tar(path, others)
    got = dict(images([found]))
    assert "got 'a/k3.jpg' of 2101 bytes: the shard changed" in got.pop("a/k3")
    assert got == {key: data for key, data in contents.items() if key != "a/k3"}


def test_an_image_that_claims_too_much_is_never_read(tmp_path):
    path = tmp_path / "x.tar"
    entry = tarfile.TarInfo("k.jpg")
    entry.size = 20 << 30
    path.write_bytes(entry.tobuf())
    os.truncate(path, 21 << 30)  # without taking any disk
    row = {"key": "k", "shard": str(path), "offset": 512, "size": 20 << 30}
    [(_, reason)] = images([pa.Table.from_pylist([row])])
    assert reason == f"expected an image of at most {MAX_IMAGE:,} bytes, got 21,474,836,480"


def test_too_many_open_files_stop_the_run_and_refuse_nothing(shard, monkeypatch):
    def fail(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reader, "_pread", fail)
    with pytest.raises(OSError, match="Too many open files"):
        list(images([samples(shard[0])]))


class Flaky:
    """A file system that fails, or cuts bodies, `times` times."""

    def __init__(self, content, times, kind):
        self.content, self.times, self.kind = content, times, kind

    def cat_file(self, path, start, end):
        self.times -= 1
        if self.times >= 0 and self.kind == "error":
            raise OSError(5, "503 Slow Down")
        if self.times >= 0:
            return self.content[start : (start + end) // 2]
        return self.content[start:end]


@pytest.mark.parametrize("kind", ["error", "cut"])
def test_a_server_that_fails_is_asked_again_but_not_for_ever(shard, monkeypatch, kind):
    path, contents = shard
    local = samples(path)
    remote = local.set_column(2, "shard", pa.array(["s3://bucket/x.tar"] * len(local)))
    monkeypatch.setattr(retries, "LONGEST", 0)
    flaky = Flaky(path.read_bytes(), retries.ATTEMPTS - 1, kind)
    monkeypatch.setattr(reader.fsspec.core, "url_to_fs", lambda _: (flaky, "bucket/x.tar"))
    assert dict(images([remote])) == contents
    flaky.times = retries.ATTEMPTS
    if kind == "error":
        with pytest.raises(OSError, match=r"an answer about s3://bucket/x.tar, got .* 3 times"):
            list(images([remote]))
    else:  # it may really end there
        assert "which ends before" in dict(images([remote]))["a/k8"]


def test_memory_stays_within_the_extents_ahead(tmp_path):
    """300 MB of images pass through in the memory of a few extents."""
    import tracemalloc

    path, size = tmp_path / "x.tar", 1 << 20
    with tarfile.open(path, "w") as tar:
        for i in range(300):
            entry = tarfile.TarInfo(f"{i}.jpg")
            entry.size = size
            tar.addfile(entry, io.BytesIO(bytes(size)))
    found = samples(path)
    tracemalloc.start()
    count = sum(len(content) for _, content in images([found]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300 * size
    assert peak < 1.5 * reader.READERS * EXTENT
