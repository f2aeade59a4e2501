"""The images that people point at: in folders, tars, tables, files; on this machine or at a URL.

Comes in: paths, URLs and patterns. Goes out: a table of one row per image that says where its bytes
lie, for `reader.images` to read. Only names, headers and columns of places are looked at: whether
an image can be had, and is one, is found out when it is read.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from braceexpand import braceexpand

from askance.features.places import check_place
from askance.features.reader import WHOLE
from askance.features.shards import IMAGES, content, scan
from askance.features.sources.shards import expand
from askance.features.tabled import places as places_of
from askance.pipeline.progress import progress
from askance.pipeline.retries import patiently

THREADS = 8  # they wait for servers; what lies on this machine is listed by one
TABLES = (".parquet", ".csv")
TARS = (".tar", ".tar.gz", ".tgz")  # compressed ones are refused, by `scan`
LISTED = (*(f".{extension}" for extension in sorted(IMAGES)), ".tar")  # of a folder
ROWS = 1 << 14  # held as Python objects at a time
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # an absolute path or a URL
        pa.field("offset", pa.int64(), nullable=False),  # WHOLE: the shard is the image
        pa.field("size", pa.int64(), nullable=False),  # of an image in a tar; WHOLE elsewhere
        pa.field("version", pa.string(), nullable=False),  # of the shard: another one, other bytes
    ]
)


class Row(NamedTuple):
    """A row of `SCHEMA`."""

    key: str
    shard: str
    offset: int = WHOLE
    size: int = WHOLE
    version: str = ""


def list_images(paths: Iterable[str], column: str = "") -> pa.Table:
    """List images, in the order of `paths`, as `SCHEMA` has it.

    The key is how a user finds an image: the path as it was given, and what was found below it: a
    path in a folder, the key of a sample in a tar. Images of a table have the keys of its column
    `key`, or else their places as they stand there. `version` tells a file's bytes from others
    without reading it (size and time, or a server's checksum); "" where that is not known.

    Args:
        paths: folders (at any depth, sorted, without hidden files; links to folders are not
            followed), images, tars of samples, tables of places (Parquet, CSV), and patterns of
            braces, `*`, `?`, `[]`; also as URLs. In a folder, images and tars are those with such
            an extension.
        column: of a table, with the URL or path of each image; `url`, `path` or `file` if not
            given. A path there begins at the table's folder.

    Raises:
        ValueError: no image; a pattern that matches nothing; a damaged tar; a sample of several
            images; a table without such a column, or with empty places; a place that
            `check_place` refuses.
        OSError: no such file or folder, or one that can't be listed.
    """
    found = [place for path in paths for place in _expanded(path)]
    tables = [SCHEMA.empty_table()]
    with ThreadPoolExecutor(THREADS) as pool, progress("list", len(found), "paths") as advance:
        for remote, group in groupby(found, lambda place: "://" in place):
            if not remote:
                tables.append(_table(_all_local(group, column, advance)))
                continue
            for table in pool.map(lambda url: patiently(url, _list_remote, url, column), group):
                tables.append(table)
                advance(1)
    listed = pa.concat_tables(tables)
    if not len(listed):
        raise ValueError(f"expected images in {', '.join(found[:3])}, got none")
    return listed


def _expanded(path: str) -> list[str]:
    """Return what a pattern stands for; a path that is there stands for itself."""
    if os.path.lexists(path):
        return [path]
    check_place(path)
    found: list[str] = []
    for part in braceexpand(path):
        if "://" in part:
            found += expand(part)
        else:
            found += sorted(glob(part, recursive=True)) if has_magic(part) else [part]  # noqa: PTH207
    if not found:
        raise ValueError(f"expected images at {path!r}, got none: no file matches")
    return found


def _table(rows: Iterator[Row]) -> pa.Table:
    batches = []
    while some := list(islice(rows, ROWS)):
        columns: list[Any] = list(zip(*some, strict=True))
        # A name in no encoding: shown so, and not found when it is read, which refuses it.
        for number in (0, 1):
            columns[number] = [
                x.encode(errors="backslashreplace").decode() for x in columns[number]
            ]
        batches.append(pa.record_batch(columns, SCHEMA))
    return pa.Table.from_batches(batches, SCHEMA)


def _all_local(places: Iterable[str], column: str, advance: Callable[[int], None]) -> Iterator[Row]:
    for place in places:
        path = Path(place)
        if path.is_dir():
            for file in _some(_below(path), place):
                yield from _file(file, column)
        elif os.path.lexists(place):
            yield from _file(path, column)
        else:
            raise FileNotFoundError(f"expected images at {place}, got no such file: check the path")
        advance(1)


def _some(files: Iterator[Any], place: str) -> Iterator[Any]:
    """Return what is found in a place.

    Raises:
        ValueError: nothing is.
    """
    first = next(files, None)
    if first is None:
        raise ValueError(f"expected images or tars ({', '.join(LISTED)}) in {place}, got none")
    return chain([first], files)


def _below(folder: Path) -> Iterator[Path]:
    """Yield the images and tars in a folder, before those of its folders."""

    def fail(error: OSError) -> None:  # else `walk` would leave out what it can't list
        raise error

    for where, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(LISTED) and not name.startswith("."):
                yield Path(where, name)


def _file(path: Path, column: str) -> Iterator[Row]:
    name = path.name.lower()
    if name.endswith(TARS):
        yield from _samples(str(path), str(path.absolute()), _version(path))
    elif name.endswith(TABLES):
        with path.open("rb") as file:
            yield from _tabled(file, str(path), column)
    else:
        yield Row(str(path), str(path.absolute()), version=_version(path))


def _version(path: Path) -> str:
    try:
        about = path.stat()
    except (OSError, ValueError):  # refused when it is read
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _list_remote(url: str, column: str) -> pa.Table:
    return _table(_remote(url, column))


def _remote(url: str, column: str) -> Iterator[Row]:
    name, (system, path) = url.lower(), fsspec.core.url_to_fs(url)
    if name.endswith(TARS):
        yield from _samples(url, url, content(url))
    elif name.endswith(TABLES):
        with system.open(path, "rb") as file:
            yield from _tabled(file, url, column)
    elif name.startswith(("http://", "https://")):  # which have no folders
        yield Row(url, url)
    else:
        for place, version in _some(_objects(system, path), url):
            if place.lower().endswith(".tar"):
                yield from _samples(place, place, version)
            else:
                yield Row(place, place, version=version)


def _objects(system: Any, path: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - fsspec's
    """Yield the URL and version of an object, or of the images and tars below a prefix."""
    for name, about in sorted(system.find(path, detail=True).items()):
        below = name[len(path) :]
        hidden = "/." in below
        if not below or (name.lower().endswith(LISTED) and not hidden):
            yield system.unstrip_protocol(name), fsspec.utils.tokenize(about)


def _samples(given: str, shard: str, version: str) -> Iterator[Row]:
    """Yield the images of a tar, of which a sample has one or none."""
    for key, members in scan(shard):
        images = [member for member in members if member.extension in IMAGES]
        if len(images) > 1:
            got = ", ".join(f".{image.extension}" for image in images)
            raise ValueError(
                f"expected one image in the sample {key!r} of {given}, got {got}: give each its own"
                " key"
            )
        for image in images:
            yield Row(f"{given}/{key}", shard, image.offset, image.size, version)


def _tabled(file: Any, table: str, column: str) -> Iterator[Row]:  # noqa: ANN401 - fsspec's, too
    """Yield the images of a table; a URL that must not be asked stops before any is."""
    folder, known = table.rpartition("/")[0], set[str]()
    for key, place in places_of(file, table, column):
        local = place.removeprefix("file://")
        there = local if "://" in local else os.path.join(folder, local)  # noqa: PTH118 - or a URL
        if "://" not in there and "://" in table:
            raise ValueError(
                f"expected URLs, or paths below its own place, in {table}, got {place!r}: download"
                " the table to name files of this machine"
            )
        if "://" not in there:
            path = Path(there)
            yield Row(key, str(path.absolute()), version=_version(path))
            continue
        try:
            check_place(there)
            if (scheme := there.partition("://")[0]) not in known:
                expand(f"{scheme}://")  # is there a reader?
                known.add(scheme)
        except ValueError as error:
            raise ValueError(f"{table}: {error}") from error
        yield Row(key, there)
