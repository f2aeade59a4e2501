"""Tar shards as they are: only their headers and labels are read, and nothing is copied."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from askance.features.places import check_place
from askance.features.shards import IMAGES, Member, scan
from askance.features.sources.class_halves import class_halves
from askance.pipeline.progress import progress
from askance.pipeline.retries import patiently

THREADS = 8  # they wait for object storage; local shards are read in one
MAX_DIGITS, MAX_NAME = 9, 1000  # of a label; the index's are int32
MAX_COUNT = 2**31 - 1  # of votes, int32 as well
COLUMNS = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("class", pa.string()),
        pa.field("votes", pa.list_(pa.int32())),
        pa.field("shard", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Shards:
    """Samples of an image and a label each, in webdataset's convention.

    `path` is a path or fsspec URL, with braces (`{000..146}`, `{a,b}`) and `*`, `?`, `[]`. `label`
    and `votes` are extensions of members: a label is a class number from 0 (a column of a
    backbone's classifier) or a name, votes are a JSON list of one count per class. `names` is a
    JSON file {number: name}. `rule=class-halves` deals the samples to the splits of CUB and CARS,
    `train`, `val` and `test`: classes by number or name, samples by key.
    """

    path: str
    label: str = "cls"
    votes: str = ""
    names: str = ""
    rule: str = ""

    def samples(self) -> pa.Table:
        """List the samples, in the order of the shards.

        Raises:
            ValueError: no shard, a damaged one, a sample without exactly one image and label, or
                an unknown rule.
            OSError: a shard can't be read.
        """
        if self.rule not in ("", "class-halves"):
            raise ValueError(f"expected rule=class-halves, or no rule, got rule={self.rule}")
        table = list_shards(expand(self.path), self.label, self.votes)
        _check_labels(table)
        if self.votes:
            _check_votes(table, self.votes)
        if self.rule:
            table = table.append_column("split", _halved(table))
        return _named(table, Path(self.names).expanduser()) if self.names else table

    def image(self, row: int) -> tuple[str, bytes]:
        """Never asked: the images stay where they are."""
        raise NotImplementedError(f"row {row} lies in a shard")


def expand(path: str) -> list[str]:
    """Return the paths (absolute) or URLs that `path` stands for.

    Raises:
        ValueError: a pattern that matches nothing, or a place that `check_place` refuses.
    """
    found = [shard for part in braceexpand(path) for shard in _expand(part)]
    if not found:
        raise ValueError(f"expected shards at {path!r}, got none: no file matches")
    return found


def _expand(part: str) -> list[str]:
    check_place(part)
    try:
        system, place = fsspec.core.url_to_fs(part)
    except ImportError as error:
        raise ValueError(f"expected a reader for {part}: {error} ('askance[s3]' has it)") from error
    local = isinstance(system, LocalFileSystem)
    if not has_magic(part) or (local and system.exists(place)):
        return [place if local else part]
    return [
        found if local else system.unstrip_protocol(found) for found in sorted(system.glob(place))
    ]


def list_shards(shards: list[str], label: str, votes: str) -> pa.Table:
    """List the samples of shards, each of which is opened once."""
    threads = THREADS if "://" in shards[0] else 1
    tables = [COLUMNS.empty_table()]
    with ThreadPoolExecutor(threads) as pool, progress("read", len(shards), "shards") as advance:
        for table in pool.map(lambda shard: _patiently(shard, label, votes), shards):
            tables.append(table)
            advance(1)
    return pa.concat_tables(tables)


def _patiently(shard: str, label: str, votes: str) -> pa.Table:
    if "://" in shard:
        return patiently(shard, _list, shard, label, votes)
    return _list(shard, label, votes)


def _list(shard: str, label: str, votes: str) -> pa.Table:
    label, votes = label.lower(), votes.lower()
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
    for position, (key, members) in enumerate(scan(shard, {label, votes} - {""})):
        where = f"the sample {key!r} of {shard}"
        image = _only((m for m in members if m.extension in IMAGES), "image", where)
        text = _only((m for m in members if m.extension == label), f"label (.{label})", where)
        columns["key"].append(key)
        columns["class"].append(_class(text.content, where))
        counts = [m.content for m in members if votes and m.extension == votes]
        columns["votes"].append(_votes(counts[0], where) if counts else None)
        columns["shard"].append(shard)
        columns["position"].append(position)
        columns["offset"].append(image.offset)
        columns["size"].append(image.size)
    return pa.table(columns, COLUMNS)


def _only(members: Iterable[Member], what: str, where: str) -> Member:
    found = list(members)
    if len(found) != 1:
        got = ", ".join(f".{member.extension}" for member in found) or "none"
        raise ValueError(f"expected one {what} in {where}, got {got}")
    return found[0]


def _class(content: bytes, where: str) -> str:
    text = content.decode(errors="replace").strip()
    longest = MAX_DIGITS if text.isdecimal() else MAX_NAME
    if not 0 < len(text) <= longest or "\N{REPLACEMENT CHARACTER}" in text:
        raise ValueError(
            f"expected a number or a name as the label of {where}, got {content[:80]!r}: use up to"
            f" {MAX_DIGITS} digits or {MAX_NAME} characters"
        )
    return str(int(text)) if text.isdecimal() else text


def _votes(content: bytes, where: str) -> list[int]:
    try:
        counts = json.loads(content)
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, list) or not all(_is_count(count) for count in counts):
        raise ValueError(
            f"expected a JSON list of counts as the votes of {where}, got {content[:80]!r}"
        )
    return counts


def _is_count(value: Any) -> bool:  # noqa: ANN401 - whatever JSON holds
    return type(value) is int and 0 <= value <= MAX_COUNT


def _check_labels(table: pa.Table) -> None:
    number = pc.utf8_is_decimal(table["class"])
    if pc.all(number).as_py() or not pc.any(number).as_py():
        return
    numbered, named = (
        table.filter(mask).slice(0, 1).to_pylist()[0] for mask in (number, pc.invert(number))
    )
    raise ValueError(
        "expected either class numbers or class names as labels, got both:"
        f" {numbered['class']!r} ({numbered['key']!r} of {numbered['shard']}) and"
        f" {named['class']!r} ({named['key']!r} of {named['shard']})"
    )


def _check_votes(table: pa.Table, votes: str) -> None:
    lengths = pc.unique(pc.list_value_length(pc.drop_null(table["votes"]))).to_pylist()
    if len(lengths) != 1:
        got = f"lists of {sorted(lengths)} counts" if lengths else "none in any sample"
        raise ValueError(f"expected votes (.{votes}), one count per class, got {got}")


def _named(table: pa.Table, path: Path) -> pa.Table:
    """Add the column `name`: what the JSON file calls each class."""
    try:
        names = {str(number): str(name) for number, name in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"expected a JSON object {{number: name}} in {path}: {error}") from error
    used = table["class"].dictionary_encode().combine_chunks()
    missing = [text for text in used.dictionary.to_pylist() if text not in names]
    if missing:
        raise ValueError(f"expected a name for every class in {path}, got none for {missing[:5]}")
    called = pa.array([names[text] for text in used.dictionary.to_pylist()])
    return table.append_column("name", called.take(used.indices))


def _halved(table: pa.Table) -> pa.Array:
    """Return the split of each sample by the halves of the classes, all numbers or all names."""
    order = pc.sort_indices(table["key"])
    classes = table["class"].take(order).to_pylist()
    names = set(classes)
    ordered = sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)
    splits = pa.array(class_halves(classes, ordered, "whole"), pa.string())
    return splits.take(pc.sort_indices(order))
