"""Shards: tar files of samples, in the webdataset convention.

A sample is the run of members that share a key (the name up to the first dot of its last part);
its image is the member with an image's extension. Images are read by byte range, so no shard is
ever unpacked or read twice.

A shard may be hostile: its headers are walked here, as tarfile.TarFile takes a damaged one for the
end, follows extended ones to any size and depth, and keeps all of them in memory.
"""

import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from askance.features.places import check_place
from askance.pipeline.artifacts import sha256

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"})
# webdataset's rule, but for hidden files: key, extension; in linear time.
NAME = re.compile(r"((?s:.*/|)[^./]+)[.]([^/]*)")
# Leaves its folder, on whatever system, or is no file's name.
UNSAFE = re.compile(
    r"\A(?:/|[A-Za-z]:|\Z)|(?:\A|/)[.][.](?:/|\Z)|/\Z|[\\\x00-\x1f\x7f\ud800-\udfff]"
)
# webdataset's decoder unpickles these, also compressed (.pkl.gz), and .pth by torch.load.
PICKLE = re.compile(r"[.](?:pkl|pickle|pyd|pth)(?:[.]|\Z)", re.IGNORECASE)
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)  # say more of the next
RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=")  # of a pax header: its length and keyword
MAX_MEMBERS = 500_000  # of a shard
MAX_SAMPLE = 64  # members of a sample
MAX_CHAIN = 4  # headers of a member
MAX_NAME = 4096  # characters: what most systems allow a path
MAX_TEXT = 1 << 20  # bytes of a label, of votes, of an extended header, of zeros at the end
BLOCK = 512  # bytes: a tar's unit
AHEAD = 4 << 20  # bytes asked of a server at a time: about what comes while one waits for them
MAX_SAMPLES, MAX_BYTES = 10_000, 512 << 20  # of a shard that we write


@dataclass(frozen=True)
class Member:
    """One file of a sample: its extension (lower case) and where its bytes lie in the shard.

    `content` is there where the scan was asked to read that extension.
    """

    extension: str
    offset: int
    size: int
    content: bytes = b""


def content(shard: str) -> str:
    """Return what tells a shard's bytes from others: the SHA-256 of a local file.

    A remote shard is not read through; its file system's checksum (size and etag, or date) counts.

    Raises:
        ValueError: a place that `check_place` refuses.
    """
    check_place(shard)
    if "://" not in shard:
        return sha256(Path(shard))
    system, path = fsspec.core.url_to_fs(shard)
    return str(system.checksum(path))


def scan(shard: str, read: Collection[str] = ()) -> Iterator[tuple[str, list[Member]]]:
    """Yield each sample's key and members, in the order of the shard (a path or an fsspec URL).

    Only headers are read, and the content of members with an extension in `read`; of a remote
    shard, pieces of `AHEAD` bytes that begin with them. Memory doesn't grow with the shard. Files
    without an extension, and hidden ones, belong to no sample. Neither the content nor the size of
    an image is judged: one that is too large is refused alone, when it is read.

    Raises:
        ValueError: not a tar; cut short, also on the border of a block; damaged; with more behind
            its end; with a member that is a link, a device or sparse, leaves its folder, or is a
            pickle; with too many members, or two of a sample with one extension; at a place that
            `check_place` refuses, or on a server that knows no byte ranges.
        OSError: it can't be read.
    """
    key, members = "", list[Member]()
    with _open(shard) as file:
        for number, entry in enumerate(_entries(shard, file)):
            if number == MAX_MEMBERS:
                raise ValueError(
                    f"expected at most {MAX_MEMBERS:,} members, got more in {shard}: pack them into"
                    " smaller shards"
                )
            name = NAME.fullmatch(entry.name)
            if name is None or entry.isdir():
                continue
            if name[1] != key and members:
                yield key, members
                members = []
            key, extension = name[1], name[2].lower()
            if len(members) == MAX_SAMPLE or any(m.extension == extension for m in members):
                raise ValueError(
                    f"expected at most {MAX_SAMPLE} members, each with its own extension, in the"
                    f" sample {key!r} of {shard}, got another {extension!r}: pack it again"
                )
            content = _text(shard, file, entry) if extension in read else b""
            members.append(Member(extension, entry.offset_data, entry.size, content))
    if members:
        yield key, members


def _entries(shard: str, file: Any) -> Iterator[tarfile.TarInfo]:  # noqa: ANN401 - fsspec's files
    """Yield the headers of a tar's files and folders, and check that it is whole."""
    length, at, last = file.seek(0, os.SEEK_END), 0, ""
    try:
        while entry := _next(file, at):
            _check(shard, entry)
            stop = entry.offset_data + (entry.size if entry.isreg() else 0)
            if stop > length:
                raise tarfile.ReadError(f"cut within the member {entry.name[:80]!r}")
            yield entry
            at, last = stop + -stop % BLOCK, f" (behind {entry.name[:80]!r})"
        if length - at > MAX_TEXT or _read(file, at, length - at).strip(b"\0"):
            raise tarfile.ReadError("an end mark with more than zeros behind it")
    except tarfile.TarError as error:
        raise ValueError(
            f"expected a whole, uncompressed tar, got {shard}: {error} at byte {at:,}{last}; copy"
            " or pack it again"
        ) from error


def _next(file: Any, at: int) -> tarfile.TarInfo | None:  # noqa: ANN401
    """Return the header at a byte, with what extended headers before it say; None: the end mark."""
    records: dict[str, str] = {}
    for _ in range(MAX_CHAIN):
        block = _read(file, at, BLOCK)
        if block == bytes(BLOCK) and not records:
            return None
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} in {block[:16]!r}...") from error
        entry.offset_data = at + BLOCK
        if entry.type not in EXTENDED:
            return _extended(entry, records) if records else entry
        found = _records(file, entry)
        if found and (records or entry.type == tarfile.XGLTYPE):
            raise tarfile.ReadError("a second, or a global, header that sets a name or size")
        records |= found
        at = entry.offset_data + entry.size + -entry.size % BLOCK
    raise tarfile.ReadError(f"a chain of {MAX_CHAIN} extended headers")


def _read(file: Any, at: int, size: int) -> bytes:  # noqa: ANN401
    file.seek(at)
    content: bytes = file.read(size)
    if len(content) < size:
        raise tarfile.ReadError("the end of the file, and no end mark,")
    return content


def _records(file: Any, entry: tarfile.TarInfo) -> dict[str, str]:  # noqa: ANN401
    """Return what an extended header, GNU's or pax, says about the next member's name and size."""
    if not 0 < entry.size <= MAX_TEXT:
        raise tarfile.ReadError(f"an extended header of {entry.size:,} bytes")
    text = _read(file, entry.offset_data, entry.size)
    if entry.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": text.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    records, at = {}, 0
    while at < len(text):
        record = RECORD.match(text, at)
        stop = at + int(record[1]) if record else 0
        if not record or stop <= record.end() or text[stop - 1 : stop] != b"\n":
            raise tarfile.ReadError("a damaged extended header")
        if record[2] in (b"path", b"size") or record[2].startswith(b"GNU.sparse."):
            value = text[record.end() : stop - 1]
            records[record[2].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at = stop
    return records


def _extended(entry: tarfile.TarInfo, records: dict[str, str]) -> tarfile.TarInfo:
    """Apply what extended headers say to a member's own."""
    name, size = records.get("path", entry.name), records.get("size", str(entry.size))
    if not re.fullmatch("-?[0-9]{1,30}", size, re.ASCII):
        raise tarfile.ReadError(f"a size of {size[:40]!r}")
    entry.name, entry.size = name.rstrip("/") if entry.isdir() else name, int(size)
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        entry.type = tarfile.GNUTYPE_SPARSE
    return entry


def _check(shard: str, entry: tarfile.TarInfo) -> None:
    name, plain = entry.name, entry.type in PLAIN and entry.size >= 0
    if not plain or len(name) > MAX_NAME or UNSAFE.search(name):
        raise ValueError(
            f"expected plain files inside their own folder, got the member {name[:80]!r} of"
            f" {shard} (type {entry.type!r}, {entry.size} bytes, a name of {len(name)} characters):"
            " the shard is refused"
        )
    if PICKLE.search(name.rpartition("/")[2]):
        raise ValueError(
            f"expected no pickle, got the member {name[:80]!r} in {shard}, which would run code in"
            " other readers: pack the shard again without it"
        )


def _text(shard: str, file: Any, entry: tarfile.TarInfo) -> bytes:  # noqa: ANN401
    if entry.size > MAX_TEXT:
        raise ValueError(
            f"expected at most {MAX_TEXT:,} bytes of text in {entry.name!r} of {shard}, got"
            f" {entry.size:,}"
        )
    return _read(file, entry.offset_data, entry.size)


@contextmanager
def _open(shard: str) -> Iterator[IO[bytes]]:
    check_place(shard)
    if "://" not in shard:
        with Path(shard).open("rb") as file:
            yield file
        return
    system, path = fsspec.core.url_to_fs(shard)
    with system.open(path, "rb", block_size=AHEAD) as file:
        try:  # a server without ranges would give the beginning, and stop there
            file.seek(-1, os.SEEK_END)
            file.read(1)
        except ValueError as error:
            raise ValueError(
                f"expected a server that gives ranges of bytes, and a file with some, got {error}"
                f" for {shard}: copy the shards to another"
            ) from error
        yield file


def write_shards(folder: Path, name: str, samples: Iterable[dict[str, str | bytes]]) -> list[str]:
    """Write samples into shards `<name>-000000.tar`, ...; return their paths in order.

    A sample is webdataset's: its `__key__`, and its content by extension. Equal samples give equal
    bytes: times and owners are left out.
    """
    from webdataset.writer import ShardWriter  # imports torch

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[str] = []
    with ShardWriter(
        f"{folder}/{name}-".replace("%", "%%") + "%06d.tar",
        maxcount=MAX_SAMPLES,
        maxsize=MAX_BYTES,
        verbose=0,
        post=shards.append,
        encoder=False,
        mtime=0,
        user="",
        group="",
    ) as writer:
        for sample in samples:
            writer.write(sample)
    return shards
