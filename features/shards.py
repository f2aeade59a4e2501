"""Shards: tar files of samples, in the webdataset convention.

A sample is the run of members that share a key (the name up to the first dot of its last part);
its image is the member with an image's extension. Images are read by byte range, so no shard is
ever unpacked or read twice.
"""

import os
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec

from askance.features.index import Index
from askance.pipeline.artifacts import sha256

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"})
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's rule: key, extension
MAX_TEXT = 1 << 20  # bytes of a label or of votes
BLOCK = 512  # bytes: a tar's unit
MAX_SAMPLES, MAX_BYTES = 10_000, 512 << 20  # of a shard that we write
OPEN_SHARDS = 64


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
    """
    if "://" not in shard:
        return sha256(Path(shard))
    system, path = fsspec.core.url_to_fs(shard)
    return str(system.checksum(path))


def scan(shard: str, read: Collection[str] = ()) -> Iterator[tuple[str, list[Member]]]:
    """Yield each sample's key and members, in the order of the shard (a path or an fsspec URL).

    Only headers are read, and the content of members with an extension in `read`. Files without
    an extension belong to no sample. Anything but a regular file with a safe name ends the scan.

    Raises:
        ValueError: not a tar; cut short, also on the border of a block; damaged; or with a member
            that is a link or a device, or leaves its folder.
    """
    key, members = "", list[Member]()
    with _open(shard) as file:
        for entry in _entries(shard, file):
            if entry.isdir():
                continue
            _check(shard, entry)
            name = NAME.fullmatch(entry.name)
            if name is None:
                continue
            if name[1] != key and members:
                yield key, members
                members = []
            key, extension = name[1], name[2].lower()
            content = _text(shard, file, entry) if extension in read else b""
            members.append(Member(extension, entry.offset_data, entry.size, content))
    if members:
        yield key, members


def _entries(shard: str, file: Any) -> Iterator[tarfile.TarInfo]:  # noqa: ANN401 - fsspec's files
    """Yield the headers of a tar, and check that it is whole.

    tarfile takes the end of the file, and a damaged header, for the end of the tar: the samples
    behind would be lost in silence (test_a_tar_cut_on_the_border_of_a_block_is_refused).
    """
    last = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                last = f" (behind {entry.name!r})"
                yield entry
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValueError(
            f"expected a whole, uncompressed tar, got {shard}: {error}{last}; copy or pack it again"
        ) from error
    file.seek(end)
    rest = file.read(MAX_TEXT)
    if len(rest) < BLOCK or rest.strip(b"\0"):
        got = "damaged or foreign bytes" if rest.strip(b"\0") else "the end of the file"
        raise ValueError(
            f"expected a whole tar, got {shard}: no end mark but {got} at byte {end:,}{last}; copy"
            " or pack it again"
        )


def _check(shard: str, entry: tarfile.TarInfo) -> None:
    plain = entry.isreg() and not entry.issparse() and entry.size >= 0
    if not plain or entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise ValueError(
            f"expected plain files inside their own folder, got the member {entry.name!r} of"
            f" {shard} (type {entry.type!r}): the shard is refused"
        )


def _text(shard: str, file: Any, entry: tarfile.TarInfo) -> bytes:  # noqa: ANN401
    if entry.size > MAX_TEXT:
        raise ValueError(
            f"expected at most {MAX_TEXT:,} bytes of text in {entry.name!r} of {shard}, got"
            f" {entry.size:,}"
        )
    file.seek(entry.offset_data)
    return bytes(file.read(entry.size))


@contextmanager
def _open(shard: str) -> Iterator[IO[bytes]]:
    with fsspec.open(shard, "rb") if "://" in shard else Path(shard).open("rb") as file:
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


class _File:
    """An open file that is closed when the last one to use it lets go."""

    descriptor = -1

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass
class ImageReader:
    """Reads a set's images by row; safe to use from several threads."""

    index: Index

    def __post_init__(self) -> None:
        table = self.index.table
        shards = table["shard"].dictionary_encode().combine_chunks()
        self._shards = [self.index.location(shard) for shard in shards.dictionary.to_pylist()]
        self._shard = shards.indices.to_numpy()
        self._offset, self._size = table["offset"].to_numpy(), table["size"].to_numpy()
        # A file that falls out while another thread reads it stays open until that read is done.
        self._file = lru_cache(OPEN_SHARDS)(_File)

    def read(self, row: int) -> bytes:
        """Return the encoded image of `row`.

        Raises:
            ValueError: the shard ends before the image does.
            OSError: the shard can't be read.
        """
        shard = self._shards[self._shard[row]]
        offset, size = int(self._offset[row]), int(self._size[row])
        if "://" in shard:
            system, path = fsspec.core.url_to_fs(shard)
            content = bytes(system.cat_file(path, start=offset, end=offset + size))
        else:
            content = self._file(shard).read(offset, size)
        if len(content) != size:
            raise ValueError(f"expected {size} bytes at {offset} of {shard}, got {len(content)}")
        return content

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.cache_clear()
