"""Checking the files of a store against what its sealed files tell of them, and the accounts.

Comes in: a store, finished or not. Goes out: findings, all of them. Numbers are recomputed in
`askance.features.recompute`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from askance.features.blocks import Block, plan
from askance.features.index import Index
from askance.features.store import (
    ACCOUNT,
    BLOCKS,
    DONE,
    MANIFEST,
    NOT_YET,
    REFUSALS,
    REFUSED,
    record_of,
)
from askance.pipeline.artifacts import Place, digest, listing, read_sealed
from askance.pipeline.lanes import ahead
from askance.pipeline.retries import patiently

R = TypeVar("R")

THREADS = 8  # files read at a time
CHUNK = re.compile(r"(.+)/c/(\d+)((?:/\d+)*)")
RECORD = re.compile(rf"{BLOCKS}/(\d{{5,}})[.]json")
CHANGED = "other bytes than were written"


@dataclass(frozen=True)
class Finding:
    """A line of the report; `block` is the one that mends it when it is embedded again."""

    level: Literal["ok", "hint", "not checked", "wrong"]
    what: str
    file: str = ""
    block: int | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.level, self.file, self.what) if part)


Findings = Iterator[Finding]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Told:
    """What a store tells of itself: the sizes of its files, and what its whole sealed files say."""

    path: Place
    sizes: dict[str, int]
    sealed: dict[str, dict[str, Any]]
    broken: dict[str, str]  # sealed files that are not whole, and why

    @classmethod
    def read(cls, path: Place) -> "Told":
        """List a store and read its sealed files."""
        sizes = listing(path)
        names = [f for f in sorted(sizes) if f in (MANIFEST, ACCOUNT) or RECORD.fullmatch(f)]
        with ThreadPoolExecutor(THREADS) as pool:
            said = dict(zip(names, ahead(pool, partial(_sealed, path), names, 99), strict=True))
        broken = {name: why for name, why in said.items() if isinstance(why, str)}
        if MANIFEST not in sizes:
            broken[MANIFEST] = "missing"
        return cls(path, sizes, {n: x for n, x in said.items() if isinstance(x, dict)}, broken)

    @property
    def created(self) -> dict[str, str]:
        """The files written when the store was created, with their hashes."""
        return self.sealed[MANIFEST]["files"] if MANIFEST in self.sealed else {}

    @cached_property
    def files(self) -> dict[str, str]:
        """The hashes of all files that are told of."""
        return {file: sha for said in self.sealed.values() for file, sha in said["files"].items()}

    @cached_property
    def by_block(self) -> set[str]:
        """The arrays that are written block by block."""
        nodes = {name[: -len("/zarr.json")] for name in self.created if name.endswith("/zarr.json")}
        groups = {node.rpartition("/")[0] for node in nodes}
        return nodes - groups - {x[1] for name in self.created if (x := CHUNK.fullmatch(name))}

    @cached_property
    def records(self) -> dict[int, dict[str, Any]]:
        """The records of finished blocks, by number."""
        return {int(x[1]): said for name, said in self.sealed.items() if (x := RECORD.match(name))}

    def wrong(self, file: str, what: str) -> Finding:
        """Return a finding on a file: where its rows are, and which block mends it."""
        record, chunk = RECORD.fullmatch(file), CHUNK.fullmatch(file)
        if record:
            return Finding("wrong", what, file, int(record[1]))
        if not chunk or chunk[1].startswith("classifier/") or MANIFEST not in self.sealed:
            return Finding("wrong", what, file)
        number, content = int(chunk[2]), self.sealed[MANIFEST]["content"]
        start, stop = number * content["block"], (number + 1) * content["block"]
        if number in self.records:
            start, stop = self.records[number]["rows"]
        _, *places = chunk[3].split("/")
        view = f", view {content['views'][int(places[0])]}" if len(places) > 1 else ""
        where = f"{what} ({chunk[1]}, block {number}, rows {start} to {stop - 1}{view})"
        return Finding("wrong", where, file, None if file in self.created else number)


def check_files(told: Told, advance: Advance) -> Findings:
    """Hash every file, and compare the files there are with those that are told of.

    `advance` is called with the bytes of each file that is read.
    """
    for file, why in told.broken.items():
        lost = ": the files it tells of are not checked" if RECORD.match(file) is None else ""
        yield told.wrong(file, why + lost)
    for file in sorted(told.files.keys() - told.sizes.keys()):
        yield told.wrong(file, "missing")
    for file in sorted(told.sizes.keys() - told.files.keys() - told.sealed.keys()):
        if file not in told.broken and _foreign(told, file):
            yield Finding("wrong", "foreign, nothing tells of it: remove it", file)
    there = sorted(told.files.keys() & told.sizes.keys())
    with ThreadPoolExecutor(THREADS) as pool:
        for file, found in ahead(pool, partial(_hash, told.path), there, 4 * THREADS):
            advance(told.sizes[file])
            if found != told.files[file]:
                yield told.wrong(file, found if " " in found else CHANGED)


def _sealed(path: Place, name: str) -> dict[str, Any] | str:
    """Return what a sealed file says, or why it says nothing."""
    try:
        return _ask(path / name, read_sealed)
    except ValueError:
        return CHANGED
    except OSError as error:
        if not isinstance(path, Path):
            raise
        return f"can't be read: {error.strerror}"


def _hash(path: Place, name: str) -> tuple[str, str]:
    """Return a file's name with its SHA-256, or why a local one can't be read."""
    try:
        return name, _ask(path / name, _streamed)
    except OSError as error:
        if not isinstance(path, Path):
            raise
        return name, f"can't be read: {error.strerror}"


def _ask(file: Place, read: Callable[[Place], R]) -> R:
    return read(file) if isinstance(file, Path) else patiently(str(file), read, file)


def _streamed(file: Place) -> str:
    stream: Any  # whose types don't tell all it can
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _foreign(told: Told, file: str) -> bool:
    """Say whether a file that nothing tells of has no business there."""
    chunk = CHUNK.fullmatch(file)
    if chunk and chunk[1] in told.by_block and int(chunk[2]) not in told.records:
        return False  # of a block not done yet, or whose record is damaged
    if file == REFUSALS and ACCOUNT not in told.sealed:
        return False
    return MANIFEST in told.sealed


def check_accounts(told: Told, index: Index) -> Findings:
    """Check that the records cover the rows of the index, and that all sums are those told.

    For a store whose manifest and index are whole.
    """
    said = told.sealed[MANIFEST]
    if digest(said["content"]) != said["fingerprint"] or said["content"]["index"] != index.digest:
        yield Finding("wrong", "its fingerprint or index is not that of its content", MANIFEST)
    blocks = plan(len(index), said["content"]["block"])
    strange = told.records.keys() - {block.number for block in blocks}
    for number in sorted(strange):
        yield Finding("wrong", f"foreign, there are {len(blocks)} blocks", record_of(number))
    missing = [block for block in blocks if record_of(block.number) not in told.sizes]
    if ACCOUNT in told.sizes:
        for block in missing:
            yield told.wrong(record_of(block.number), "missing")
    elif missing:
        rows = sum(len(block.rows) for block in missing)
        what = f"unfinished: {len(missing)} of {len(blocks)} blocks ({rows} of {len(index)} rows)"
        yield Finding("wrong", f"{what} are not done: run extract again, it goes on")
    else:
        yield Finding("wrong", "missing", ACCOUNT)
    for block in blocks:
        if block.number in told.records:
            yield from _check_record(told, block, said["content"]["block"])
    if ACCOUNT in told.sealed and told.records.keys() == {block.number for block in blocks}:
        yield from _check_totals(told, index)


def _check_record(told: Told, block: Block, length: int) -> Findings:
    record, file = told.records[block.number], record_of(block.number)
    if record["rows"] != [block.start, block.stop]:
        yield told.wrong(file, f"tells of rows {record['rows']}, not {[block.start, block.stop]}")
        return
    arrays = {chunk[1] for name in record["files"] if (chunk := CHUNK.fullmatch(name))}
    if arrays != told.by_block:
        yield told.wrong(file, f"tells of {sorted(arrays)}, not of {sorted(told.by_block)}")
    status = np.full(length, NOT_YET, np.uint8)
    status[: len(block.rows)] = DONE
    status[[int(row) - block.start for row in record["refused"]]] = REFUSED
    if record["files"].get(f"status/c/{block.number}") != sha256(status.data).hexdigest():
        yield told.wrong(file, "tells of other refused rows than status")


def _check_totals(told: Told, index: Index) -> Findings:
    refused = [int(row) for record in told.records.values() for row in record["refused"]]
    shards = index.table["shard"].to_pylist()
    all_rows, lost = Counter(shards), Counter(shards[row] for row in refused)
    account = {
        "rows": len(index),
        "written": len(index) - len(refused),
        "refused": len(refused),
        "shards": {shard: [all_rows[shard] - n, n] for shard, n in lost.items()},
    }
    for name, value in account.items():
        if told.sealed[ACCOUNT][name] != value:
            yield Finding("wrong", f"other {name} than the records add up to", ACCOUNT)
