import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from askance.features import shards
from askance.features.index import SCHEMA, Index
from askance.features.shards import ImageReader, Member, scan, write_shards

SAMPLES = {
    "a/1.jpg": b"one" * 400,
    "a/1.cls": b"7",
    "a/2.tar.gz": b"no image",
    "README": b"in no sample",
    "b.c/3.PNG": b"three",
    "b.c/3.cls": b"",
}


def read_with_webdataset(path):
    with path.open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    return [{k: v for k, v in s.items() if k not in ("__url__", "__local_path__")} for s in samples]


def index_of(shard, members):
    rows = [
        {"key": str(n), "shard": str(shard), "position": n, "offset": m.offset, "size": m.size}
        | {"label": 0, "split": "", "votes": None}
        for n, m in enumerate(members)
    ]
    return Index(shard.parent, pa.Table.from_pylist(rows, SCHEMA), {}, {})


def test_a_scan_finds_the_bytes_that_tarfile_finds(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    content = path.read_bytes()
    found = {
        f"{key}.{member.extension}": content[member.offset : member.offset + member.size]
        for key, members in scan(str(path))
        for member in members
    }
    with tarfile.open(path) as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar if m.name != "README"}
    assert found == {name.replace("PNG", "png"): data for name, data in expected.items()}


def test_a_scan_groups_as_webdataset_does(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    expected = [(s.pop("__key__"), set(s)) for s in read_with_webdataset(path)]
    assert [(key, {m.extension for m in members}) for key, members in scan(str(path))] == expected


def test_a_scan_reads_what_it_is_asked_to(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    _, members = next(scan(str(path), {"cls"}))
    assert [(m.extension, m.content) for m in members] == [("jpg", b""), ("cls", b"7")]


def test_a_text_that_is_too_long_is_not_read(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", {"a.cls": b"1" * (shards.MAX_TEXT + 1)})
    with pytest.raises(ValueError, match=r"at most 1,048,576 bytes of text in 'a.cls' of .*x.tar"):
        list(scan(str(path), {"cls"}))


def test_a_remote_shard_is_scanned_and_read(tmp_path, write_tar):
    content = write_tar(tmp_path / "x.tar", SAMPLES).read_bytes()
    with fsspec.open("memory://bucket/x.tar", "wb") as file:
        file.write(content)
    url = "memory://bucket/x.tar"
    assert list(scan(url)) == list(scan(str(tmp_path / "x.tar")))
    members = [members[0] for _, members in scan(url)]
    index = index_of(tmp_path / "x.tar", members)
    remote = index.table.set_column(1, "shard", pa.array([url] * len(index)))
    with ImageReader(Index(tmp_path, remote, {}, {})) as reader:
        assert reader.read(0) == SAMPLES["a/1.jpg"]


@given(cut=st.integers(min_value=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_tar_that_lacks_bytes_before_its_end_mark_is_refused(tmp_path, write_tar, cut):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset + 512  # the last member is empty
    path.write_bytes(path.read_bytes()[: cut % end])
    with pytest.raises(ValueError, match=r"expected a whole.* tar, got .*x.tar"):
        list(scan(str(path)))


@pytest.mark.parametrize("blocks", [1, 2, 4, 5, 6])
def test_a_tar_cut_on_the_border_of_a_block_is_refused(tmp_path, write_tar, blocks):
    path = write_tar(tmp_path / "x.tar", SAMPLES)  # a/1.jpg has blocks 1 to 3, a/1.cls 5
    path.write_bytes(path.read_bytes()[: 512 * blocks])
    with pytest.raises(ValueError, match=r"expected a whole.* tar, got .*x.tar.*behind 'a/1"):
        list(scan(str(path)))


def test_a_damaged_header_in_the_middle_is_refused(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[512 * 4] ^= 1  # the name of a/1.cls
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"foreign bytes at byte 2,048 \(behind 'a/1.jpg'\)"):
        list(scan(str(path)))


def test_two_tars_in_one_file_are_refused(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="no end mark but damaged or foreign bytes"):
        list(scan(str(path)))


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_refused(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a whole, uncompressed tar, got .*x.tar"):
        list(scan(str(path)))


def hostile(name="a.jpg", kind=tarfile.REGTYPE, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        hostile("../x.jpg"),
        hostile("a/../../x.jpg"),
        hostile("/etc/x.jpg"),
        hostile(kind=tarfile.SYMTYPE, target="/etc/passwd"),
        hostile(kind=tarfile.LNKTYPE, target="b.jpg"),
        hostile(kind=tarfile.CHRTYPE),
        hostile(kind=tarfile.FIFOTYPE),
    ],
    ids=lambda entry: f"{entry.name}-{entry.type.decode()}",
)
def test_a_hostile_member_ends_the_scan(tmp_path, write_tar, entry):
    path = write_tar(tmp_path / "x.tar", {"ok.jpg": b"1", entry: b""})
    with pytest.raises(ValueError, match=r"plain files inside their own folder, got the member"):
        list(scan(str(path)))


def test_folders_are_no_samples(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", {hostile("a", tarfile.DIRTYPE): b"", "a/1.jpg": b"1"})
    assert [key for key, _ in scan(str(path))] == ["a/1"]


def test_equal_samples_give_equal_shards_that_webdataset_reads(tmp_path):
    samples = [{"__key__": f"a/{n}", "png": bytes([n]), "cls": b"%d" % n} for n in range(5)]
    first = write_shards(tmp_path / "a", "50%", samples)
    second = write_shards(tmp_path / "b", "50%", iter(samples))
    assert first == [str(tmp_path / "a" / "50%-000000.tar")]
    assert Path(first[0]).read_bytes() == Path(second[0]).read_bytes()
    assert read_with_webdataset(Path(first[0])) == samples


def test_shards_are_split_by_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SAMPLES", 2)
    written = write_shards(tmp_path, "x", [{"__key__": str(n), "png": b"1"} for n in range(5)])
    assert [[key for key, _ in scan(path)] for path in written] == [["0", "1"], ["2", "3"], ["4"]]


def test_many_threads_and_more_shards_than_open_files(tmp_path, write_tar, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    rows = []
    for number in range(6):
        path = write_tar(tmp_path / f"{number}.tar", {f"{number}.png": bytes([number]) * 9})
        ((_, (member,)),) = scan(str(path))
        rows.append(index_of(path, [member]).table)
    index = Index(tmp_path, pa.concat_tables(rows), {}, {})
    order = np.random.default_rng(0).integers(6, size=400).tolist()
    with ImageReader(index) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.read, order)) == [bytes([row]) * 9 for row in order]


def test_an_image_beyond_the_end_of_its_shard_is_named(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", {"a.png": b"1"})
    with (
        ImageReader(index_of(path, [Member("png", 9_999, 512)])) as reader,
        pytest.raises(ValueError, match=r"expected 512 bytes at 9999 of .*x.tar, got 241"),
    ):
        reader.read(0)


def test_a_shard_that_is_gone_is_named(tmp_path):
    with (
        ImageReader(index_of(tmp_path / "x.tar", [Member("png", 0, 1)])) as reader,
        pytest.raises(FileNotFoundError, match=r"x\.tar"),
    ):
        reader.read(0)
