"""Reading images out of shards by byte range: few large reads, whatever a shard lies on.

An image may also be a file of its own, read whole: its offset is `WHOLE`, and its shard the file.
A sample that can't be had (no such shard, cut short, another file in its place) is refused with a
reason. What may pass, a server that fails or throttles, is asked again a bounded number of times
and then stops the run, which goes on later where it stopped; but a file on the web is refused.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa

from askance.features.blocks import Block, task
from askance.features.index import Index
from askance.features.places import check_place
from askance.features.shards import BLOCK, NAME
from askance.pipeline.lanes import ahead
from askance.pipeline.retries import ServerError, patiently

WHOLE = -1  # the offset of an image that is a file of its own
MAX_IMAGE = 64 << 20  # bytes of one encoded image
EXTENT = 8 << 20  # bytes read at a time, unless one image has more
GAP = 64 << 10  # bytes between two images that are read and thrown away rather than skipped
LONG_NAME = 100  # bytes of a name that fit into a tar header
READERS = 8  # extents read at a time: object stores answer late, and many at once
BEYOND = 416  # HTTP: the range begins behind the end
SECONDS = 60.0  # that a web server has for an image
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # this process's own limits, no file's fault


@dataclass(frozen=True)
class Extent:
    """Bytes `start` to `stop` of a shard, and the samples (by their place in a table) in them.

    One that starts at `WHOLE` is a file, of which no more than `stop` bytes are read.
    """

    shard: str
    start: int
    stop: int
    samples: range


def extents(samples: pa.Table) -> list[Extent]:
    """Cut samples, in their order, into extents; each begins with its first image's tar header."""
    found: list[Extent] = []
    columns = (samples[name].to_pylist() for name in ("shard", "offset", "size"))
    for place, (shard, offset, size) in enumerate(zip(*columns, strict=True)):
        if offset == WHOLE:
            found.append(Extent(shard, WHOLE, MAX_IMAGE + 1, range(place, place + 1)))
            continue
        start, stop = max(0, offset - BLOCK), offset + (size if size <= MAX_IMAGE else 0)
        last = found[-1] if found else None
        near = last and last.shard == shard and last.stop <= start <= last.stop + GAP
        if last and near and stop - last.start <= EXTENT:
            found[-1] = Extent(shard, last.start, stop, range(last.samples.start, place + 1))
        else:
            found.append(Extent(shard, start, stop, range(place, place + 1)))
    return found


def images(tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes | str]]:
    """Yield the key of each sample of each table, in order, and its encoded image or a refusal.

    Extents are read ahead by threads, across the tables.

    Raises:
        OSError: an object store, or this process, fails and goes on failing.
    """
    pieces = ((table, extent) for table in tables for extent in extents(table))
    with ThreadPoolExecutor(READERS) as pool:
        for table, extent, content in ahead(pool, _read, pieces, READERS):
            part = table.slice(extent.samples.start, len(extent.samples))
            columns = (part[name].to_pylist() for name in ("key", "offset", "size"))
            for key, offset, size in zip(*columns, strict=True):
                yield key, _image(extent, content, key, offset, size)


def image(index: Index, row: int) -> bytes:
    """Return the encoded image of one row.

    Raises:
        ValueError: it is not where the index says.
        OSError: its server fails.
    """
    [(_, content)] = images([task(index, Block(row, row, row + 1)).samples])
    if isinstance(content, str):
        raise ValueError(content)  # noqa: TRY004 - not a matter of types
    return content


def _read(piece: tuple[pa.Table, Extent]) -> tuple[pa.Table, Extent, bytes | str]:
    """Read an extent: all of its bytes, fewer where the shard ends, or why it can't be read."""
    table, extent = piece
    remote = "://" in extent.shard
    if extent.start == WHOLE and not remote:
        return table, extent, _local(extent)
    try:
        check_place(extent.shard)
    except ValueError as error:
        return table, extent, str(error)
    if extent.start == WHOLE:
        web = extent.shard.startswith(("http://", "https://"))
        return table, extent, _from_web(extent) if web else _from_store(extent)
    try:
        return table, extent, _fetched(extent) if remote else _pread(extent)
    except OSError as error:
        if not _is_of_the_shard(error, extent.shard):
            raise
        return table, extent, f"expected a shard that can be read, got {error}"


def _is_of_the_shard(error: OSError, shard: str) -> bool:
    """Say whether a shard is to blame; else it is this machine, where others may be found."""
    if "://" in shard:
        return isinstance(error, FileNotFoundError)
    if isinstance(error, FileNotFoundError):
        return Path(shard).parent.exists()  # or a whole disk is missing
    return error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EIO)


def _pread(extent: Extent) -> bytes:
    with Path(extent.shard).open("rb") as file:
        return os.pread(file.fileno(), extent.stop - extent.start, extent.start)


def _local(file: Extent) -> bytes | str:
    """Read a file; a device or pipe, which might wait for ever, is not even opened."""
    try:
        about = os.stat(file.shard)  # noqa: PTH116 - a Path per image is slower
        if not stat.S_ISREG(about.st_mode):
            return "expected a file, got a folder or device"
        return _pread(Extent(file.shard, 0, min(about.st_size, file.stop), file.samples))
    except ValueError as error:  # a zero byte in the path
        return f"expected a path, got {error}"
    except OSError as error:
        if error.errno in OURS:
            raise
        return f"expected a file that can be read, got {error}"


def _from_web(file: Extent) -> bytes | str:
    """Fetch a file from a web server, whose failing is that of this image alone."""
    try:
        return patiently(file.shard, _stream, file)
    except Exception as error:  # whatever a server makes the client come up with
        return f"expected a file from the web, got {type(error).__name__}: {error}"


def _stream(file: Extent) -> bytes:
    """Read no more than is wanted, whatever the server sends: it may know no ranges, or no end."""
    from aiohttp import ClientTimeout  # that of fsspec's HTTP

    system, path = fsspec.core.url_to_fs(file.shard)
    content, limit = bytearray(), ClientTimeout(total=SECONDS)
    # A size, of whatever bytes, spares the question for it.
    with system.open(path, block_size=0, size=1, timeout=limit) as stream:
        while piece := stream.read(file.stop - len(content)):
            content += piece
    return bytes(content)


def _from_store(file: Extent) -> bytes | str:
    """Fetch a file from an object store; one that isn't there is a reason, a failure an error."""
    try:
        return patiently(file.shard, _object, file)
    except FileNotFoundError as error:
        return f"expected a file that can be read, got {error!r}"


def _object(file: Extent) -> bytes:
    try:
        return _fetch(Extent(file.shard, 0, file.stop, file.samples))
    except CutBodyError as error:  # no more than `stop` bytes were wanted, however few there are
        return bytes(error.args[0])


class CutBodyError(ConnectionError):
    """A server sent fewer bytes than were asked for."""


def _fetched(extent: Extent) -> bytes:
    """Fetch an extent; the last bytes of a shard that goes on being too short are all it has."""
    try:
        return patiently(extent.shard, _fetch, extent)
    except ServerError as error:
        if isinstance(error.__cause__, CutBodyError):
            return bytes(error.__cause__.args[0])
        raise


def _fetch(extent: Extent) -> bytes:
    system, path = fsspec.core.url_to_fs(extent.shard)
    try:
        content = bytes(system.cat_file(path, start=extent.start, end=extent.stop))
    except Exception as error:
        if getattr(error, "errno", None) == errno.EINVAL or getattr(error, "status", 0) == BEYOND:
            return b""
        raise
    wanted = extent.stop - extent.start
    if len(content) > wanted:
        raise ValueError(
            f"expected {wanted} bytes of {extent.shard}, got {len(content)}: its server knows no"
            " ranges; copy the shards to a disk or an object store"
        )
    if len(content) < wanted:
        raise CutBodyError(content)
    return content


def _image(extent: Extent, content: bytes | str, key: str, offset: int, size: int) -> bytes | str:
    """Cut one image out of its extent, when the tar header before it is that of the sample.

    The index was made earlier: a shard exchanged since would give other images under these keys.
    """
    if isinstance(content, str):
        return content
    if extent.start == WHOLE and len(content) <= MAX_IMAGE:
        return content
    if extent.start == WHOLE or size > MAX_IMAGE:
        got = "more" if extent.start == WHOLE else f"{size:,}"
        return f"expected an image of at most {MAX_IMAGE:,} bytes, got {got}"
    start = offset - extent.start
    if start + size > len(content):
        return (
            f"expected {size} bytes at {offset} of {extent.shard}, which ends before: mend it, and"
            " extract with --retry"
        )
    found = _member(content[start - BLOCK : start])
    if found.size == size and _is_of(key, found.name):
        return content[start : start + size]
    return (
        f"expected the sample {key!r} of {size} bytes at {offset} of {extent.shard}, got"
        f" {found.name!r} of {found.size} bytes: the shard changed, prepare the set again"
    )


def _member(header: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return tarfile.TarInfo("no header")


def _is_of(key: str, member: str) -> bool:
    """Say whether a member's name in its header is that of a sample, as far as it can be said.

    Long names, and others than ASCII, stand in a header of their own; a set may prefix its keys.
    """
    if len(member) >= LONG_NAME or not key.isascii():
        return True
    name = NAME.fullmatch(member)
    return name is not None and f"/{key}".endswith(f"/{name[1]}")
