"""Scanning finds what tarfile and webdataset find, in whole tars at places that only give bytes."""

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from askance.features import shards
from askance.features.index import SCHEMA, Index
from askance.features.places import PROTOCOLS, check_place
from askance.features.shards import NAME, content, scan, write_shards
from askance.features.sources.shards import Shards, expand
from askance.pipeline import retries

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


TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\:"))
NAMES = st.builds(
    lambda n, text: "fold/" * n + f"k{text.replace('..', '')}x.jpg", st.integers(0, 60), TEXTS
)


@given(
    st.dictionaries(NAMES, st.binary(max_size=1100)),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_and_sizes_are_found_as_tarfile_finds_them(tmp_path_factory, files, kind):
    """Long names, and others than ASCII, stand in headers of their own."""
    path = tmp_path_factory.getbasetemp() / "names.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if NAME.fullmatch(m.name)]
    with path.open("rb") as file:
        found = list(shards._entries("x", file))
    assert [(m.name, m.offset_data, m.size) for m in found if NAME.fullmatch(m.name)] == expected


@given(st.text("ab./", max_size=12))
def test_keys_and_extensions_are_those_of_webdataset(name):
    """Hidden files belong to no sample; webdataset takes their folder for the key."""
    found = NAME.fullmatch(name)
    hidden = name.rpartition("/")[2].startswith(".")
    expected = (None, None) if hidden else base_plus_ext(name)
    assert (found.groups() if found else (None, None)) == expected


def test_a_remote_shard_is_scanned_as_a_local_one(tmp_path, write_tar):
    content = write_tar(tmp_path / "x.tar", SAMPLES).read_bytes()
    with fsspec.open("memory://bucket/x.tar", "wb") as file:
        file.write(content)
    assert list(scan("memory://bucket/x.tar", {"cls"})) == list(
        scan(str(tmp_path / "x.tar"), {"cls"})
    )


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
    with pytest.raises(ValueError, match=r"expected a whole.* tar, got .*x.tar.* 'a/1"):
        list(scan(str(path)))


def test_a_damaged_header_in_the_middle_is_refused(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[512 * 4] ^= 1  # the name of a/1.cls
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad checksum .* at byte 2,048 \(behind 'a/1.jpg'\)"):
        list(scan(str(path)))


def test_a_header_lost_to_zeros_is_no_end(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[512 * 4 : 512 * 5] = bytes(512)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"an end mark with more .* at byte 2,048 \(behind 'a/1.j"):
        list(scan(str(path)))


@pytest.mark.parametrize("more", [b"x", b"\0" * shards.MAX_TEXT, b"two tars"])
def test_more_than_some_zeros_behind_the_end_is_refused(tmp_path, write_tar, more):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    content = path.read_bytes()
    path.write_bytes(content + (content if more == b"two tars" else more))
    with pytest.raises(ValueError, match="an end mark with more than zeros behind it"):
        list(scan(str(path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the end of the file, and no end mark, at byte 0"),
        (b"no tar" * 200, "bad checksum|invalid header"),
        (b"\x1f\x8b" + bytes(600), r"in b'\\x1f\\x8b"),
        (b"<!DOCTYPE html><html><body>404 Not Found".ljust(600), "in b'<!DOCTYPE html>"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path, content, message):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a whole, uncompressed tar, got .*x.tar: .*({message})"):
        list(scan(str(path)))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_are_no_samples(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        for name in ("./", "a.jpg", "long" * 60 + ".jpg", "a/1.jpg"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.REGTYPE if name == "a/1.jpg" else tarfile.DIRTYPE
            tar.addfile(entry)
    assert [key for key, _ in scan(str(tmp_path / "x.tar"))] == ["a/1"]


def test_equal_samples_give_equal_shards_that_webdataset_reads(tmp_path):
    samples = [{"__key__": f"a/{n}", "png": bytes([n]), "cls": b"%d" % n} for n in range(5)]
    first = write_shards(tmp_path / "a", "50%", samples)
    second = write_shards(tmp_path / "b", "50%", iter(samples))
    assert first == [str(tmp_path / "a" / "50%-000000.tar")]
    assert Path(first[0]).read_bytes() == Path(second[0]).read_bytes()
    assert read_with_webdataset(Path(first[0])) == samples
    with tarfile.open(first[0]) as tar:  # nobody's, of no time: the same wherever it is made
        assert {(m.mtime, m.uname, m.gname) for m in tar} == {(0, "", "")}


def test_shards_are_split_by_number_of_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SAMPLES", 2)
    written = write_shards(tmp_path, "x", [{"__key__": str(n), "png": b"1"} for n in range(5)])
    assert [[key for key, _ in scan(path)] for path in written] == [["0", "1"], ["2", "3"], ["4"]]


# ---- places

COMMANDS = ["pipe:cat x.tar", " pipe: cat x.tar", "PIPE:cat x.tar", "pipe:cat {000..002}.tar"]


@pytest.mark.parametrize("path", [*COMMANDS, "{pipe:cat,x} y.tar"])
def test_a_command_is_never_run(path):
    with pytest.raises(ValueError, match="commands are never run"):
        expand(path)


CHAINS = [
    "shell::x.tar", "python::print(1)", "simplecache::s3://b/x.tar", "filecache::file:///x.tar",
    "dir::memory://x", "http://h/x::file:///etc/passwd", "tar://x.jpg::file:///x", "/data/a::b.tar",
]  # fmt: skip
OTHERS = [
    "dask://x", "reference://x", "dir://x", "ftp://h/x.tar", "ssh://h/x.tar", "data:,x",
    "S3://b/x.tar", " s3://b/x.tar", "train:1.tar", "/data/a://x.tar", "://x.tar",
]  # fmt: skip


@pytest.mark.parametrize("url", CHAINS + OTHERS)
def test_a_place_that_is_not_allowed_is_named(url):
    for function in (check_place, content, expand, lambda url: list(scan(url))):
        with pytest.raises(ValueError, match="expected a path, or a URL of abfs, .*, got '"):
            function(url)


ALLOWED = [
    "x.tar", "./train:1.tar", "/a/b:c@d.tar", "C:\\x.tar", "https://h:8080/a@b.tar",
    "abfss://container@account.dfs.core.windows.net/x.tar",
]  # fmt: skip


@pytest.mark.parametrize("url", ALLOWED + [f"{name}://x/y.tar" for name in sorted(PROTOCOLS)])
def test_a_place_that_is_allowed_passes(url):
    check_place(url)


SECRETS = [
    "https://user:hunter2@host/x.tar", "https://hunter2@host/x.tar", "s3://key:hunter2@b/x.tar",
    "https://user:hunter2@host:80/x.tar", "HTTPS://user:hunter2@host/x.tar", "ftp://u:hunter2@h/x",
    "s3://key:hunter2/with/slashes@b/x.tar", "abfs://container:hunter2@account/x.tar",
    "simplecache::https://user:hunter2@host/x.tar", "https://h/x.tar?X-Amz-Signature=hunter2",
]  # fmt: skip


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_are_refused_and_not_repeated(url):
    for function in (check_place, content, expand, lambda url: list(scan(url))):
        with pytest.raises(ValueError, match="credentials come from the environment") as refusal:
            function(url)
        assert "hunter2" not in str(refusal.value)


def test_folders_and_devices_are_no_shards(tmp_path):
    """A pipe would keep its reader waiting for ever, and a device may never end."""
    os.mkfifo(tmp_path / "pipe.tar")
    for place in (tmp_path, tmp_path / "pipe.tar", "/dev/zero"):
        for function in (content, expand, lambda url: list(scan(url))):
            with pytest.raises(ValueError, match="expected a tar, got a folder or device at"):
                function(str(place))


def test_an_index_can_not_name_a_command(tmp_path):
    """What an index holds is resolved against its folder, and opened: never run."""
    index = Index(tmp_path, SCHEMA.empty_table(), {}, {})
    with pytest.raises(FileNotFoundError):
        list(scan(index.location("pipe:touch pwned")))


# ---- servers


@pytest.fixture
def large(http_server, write_tar):
    """A server of a shard of four images of 256 KiB."""
    files = {"jpg": bytes(1 << 18), "cls": b"1"}
    members = {f"{key}.{kind}": data for key in "abcd" for kind, data in files.items()}
    write_tar(http_server.folder / "x.tar", members)
    return http_server


def test_a_server_is_asked_for_headers_only(large, monkeypatch):
    monkeypatch.setattr(shards, "AHEAD", 4096)
    local = list(scan(str(large.folder / "x.tar"), {"cls"}))
    assert list(scan(f"{large.url}/x.tar", {"cls"})) == local
    ranges = [r.headers["range"][6:].split("-") for r in large.log if r.method == "GET"]
    assert sum(int(stop) - int(start) + 1 for start, stop in ranges) < 50_000


def test_a_server_without_ranges_is_named(large):
    large.ranges = False
    with pytest.raises(
        ValueError, match=r"a server that gives ranges of bytes, .* http://.*/x.tar"
    ):
        list(scan(f"{large.url}/x.tar"))


def test_an_empty_or_missing_file_on_a_server_is_named(large):
    (large.folder / "empty.tar").touch()
    with pytest.raises(ValueError, match=r"and a file with some, got .* http://.*/empty.tar"):
        list(scan(f"{large.url}/empty.tar"))
    with pytest.raises(FileNotFoundError, match=r"http://.*/none.tar"):
        list(scan(f"{large.url}/none.tar"))


def test_a_server_that_fails_for_a_moment_is_asked_again(large, monkeypatch):
    monkeypatch.setattr(retries, "LONGEST", 0.0)
    large.faults(["error", "drop"], only="GET")
    assert len(Shards(f"{large.url}/x.tar").samples()) == 4
    assert large.injected == {"error": 1, "drop": 1}
    large.faults(rate=1.0, kinds=("error",), only="GET")
    with pytest.raises(OSError, match=r"expected an answer about http://.*/x.tar, got"):
        Shards(f"{large.url}/x.tar").samples()
