"""Selections: one line of text that names a source, its options, and which samples to take.

For example `cifar10 split=train classes=cat,dog limit=300` or `emoji sets=5 folds=2 fold=0`.
"""

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt64

from askance.features.sources import SOURCES, Source

T = TypeVar("T")
COLUMNS = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("class", pa.string()),
        pa.field("name", pa.string()),
        pa.field("split", pa.string()),
        pa.field("votes", pa.list_(pa.int32())),
        pa.field("shard", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("row", pa.int64()),  # of the source's full listing
    ]
)


@dataclass(frozen=True)
class Filter:
    """Which samples of a source to take: all of them, unless told otherwise.

    `split`: names of splits, and `classes`: shell patterns of class names, both with commas; a
    pattern after `!` takes its classes out again.
    `folds` deals each class by lot, drawn from its name alone, to one of that many folds; `fold`
    names those to take, from 0, with commas. So folds share no class, whatever else is filtered
    and whichever other classes a source has. `limit`: at most that many images per class, drawn
    by lot.
    """

    split: str = ""
    classes: str = ""
    folds: int = 0
    fold: str = ""
    limit: int = 0

    def apply(self, whole: pa.Table) -> pa.Table:
        """Return the chosen rows of a source's full listing, in its order.

        Raises:
            ValueError: a split, class or fold that isn't there.
        """
        wanted = {
            "class": self._folds(whole),
            "name": self._names(whole),
            "split": self._splits(whole),
        }
        table = whole
        for column, values in wanted.items():
            if values is not None:
                table = table.filter(pc.is_in(table[column], pa.array(values, pa.string())))
        return first_of_each_class(table, self.limit) if self.limit else table

    def _folds(self, whole: pa.Table) -> list[str] | None:
        if not self.folds and not self.fold:
            return None
        fold = [int(part) if part.isdecimal() else -1 for part in self.fold.split(",")]
        if not all(0 <= number < self.folds for number in fold):
            raise ValueError(
                "expected folds=N and fold= with numbers from 0 to N - 1, got"
                f" folds={self.folds} fold={self.fold}"
            )
        classes = pc.unique(whole["class"]).to_pylist()
        dealt = lots("fold", classes) % np.uint64(self.folds)
        return [name for name, number in zip(classes, dealt, strict=True) if number in fold]

    def _names(self, whole: pa.Table) -> list[str] | None:
        if not self.classes:
            return None
        existing, patterns = pc.unique(whole["name"]).to_pylist(), self.classes.split(",")
        taken = set(existing) if all(pattern.startswith("!") for pattern in patterns) else set()
        for pattern in patterns:
            matching = {n for n in existing if fnmatchcase(n, pattern.removeprefix("!"))}
            if not matching:
                raise ValueError(f"expected a class like {pattern!r}, got {listing(existing)}")
            taken = taken - matching if pattern.startswith("!") else taken | matching
        return sorted(taken)

    def _splits(self, whole: pa.Table) -> list[str] | None:
        if not self.split:
            return None
        existing, taken = pc.unique(whole["split"]).to_pylist(), self.split.split(",")
        if missing := set(taken) - set(existing):
            got = listing(existing) if any(existing) else "a source without splits"
            raise ValueError(f"expected the split {listing(missing)}, got {got}")
        return taken


@dataclass(frozen=True)
class Selection:
    """A source, and which of its samples to take; `line` is how it was written.

    `prefix` goes before keys and class names; without one, the source's `name` does where a set
    has several sources.
    """

    line: str
    name: str
    source: Source
    filter: Filter
    prefix: str

    def samples(self) -> pa.Table:
        """List the chosen samples with all of `COLUMNS`; what the source doesn't have is null.

        Raises:
            ValueError: nothing is left.
        """
        whole = _complete(self.source.samples())
        try:
            table = self.filter.apply(whole)
        except ValueError as error:
            raise ValueError(f"{error} (in the source {self.line!r})") from error
        if not len(table):
            names, splits = (pc.unique(whole[column]).to_pylist() for column in ("name", "split"))
            raise ValueError(
                f"expected samples from the source {self.line!r}, got none that pass its whole"
                f" filter: it has the classes {listing(names)}"
                + (f" and the splits {listing(splits)}" if any(splits) else "")
            )
        return table


def parse(line: str) -> Selection:
    """Read a selection, `NAME option=value ...`, with a shell's quotes.

    Raises:
        ValueError: an unknown source or option, a value of the wrong type, an option that is
            missing or given twice.
    """
    try:
        name, *words = shlex.split(line) or [""]
    except ValueError as error:
        raise ValueError(f"expected NAME option=value ..., got {line!r}: {error}") from error
    if name not in SOURCES:
        raise ValueError(f"expected one of the sources {', '.join(SOURCES)}, got {name!r}")
    kind: Any = SOURCES[name]
    known = [field.name for part in (kind, Filter) for field in fields(part)] + ["prefix"]
    options: dict[str, str] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if option not in known or not equals or option in options:
            raise ValueError(
                f"expected option=value, each option once, of {', '.join(known)}, got {word!r} in"
                f" the source {line!r}"
            )
        options[option] = value
    source, chosen = (_build(part, options, line) for part in (kind, Filter))
    return Selection(line, name, source, chosen, options.get("prefix", ""))


def _build(kind: type[T], options: dict[str, str], line: str) -> T:
    values: dict[str, str | int] = {}
    for field in fields(kind):  # type: ignore[arg-type] # every kind is a dataclass
        text = options.get(field.name)
        if text is None:
            if field.default is MISSING:
                raise ValueError(f"expected the option {field.name}= in the source {line!r}")
        elif field.type is int:
            if not text.isdecimal():
                raise ValueError(
                    f"expected a whole number for {field.name}=, got {text!r} in {line!r}"
                )
            values[field.name] = int(text)
        else:
            values[field.name] = text
    return kind(**values)


def _complete(table: pa.Table) -> pa.Table:
    count = len(table)
    given = {name: table[name] for name in table.column_names}
    given = {"name": given["class"], "split": pa.repeat("", count), **given}
    given["row"] = pa.array(np.arange(count))
    columns = [given.get(field.name, pa.nulls(count, field.type)) for field in COLUMNS]
    return pa.table(columns, COLUMNS)


def first_of_each_class(table: pa.Table, limit: int) -> pa.Table:
    """Keep the `limit` rows of each class whose lots come first, in the table's order."""
    classes = table["class"].dictionary_encode().combine_chunks().indices.to_numpy()
    order = np.lexsort((lots("limit", table["key"].to_pylist()), classes))
    ordered = classes[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    keep = np.zeros(len(table), bool)
    keep[order[rank < limit]] = True
    return table.filter(keep)


def lots(purpose: str, keys: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """Draw a lot for each key: a number that depends on the purpose and that key alone."""
    digests = [
        hashlib.blake2b(f"{purpose}\0{key}".encode(), digest_size=8).digest() for key in keys
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


def natural(text: str) -> tuple[bool, int, str]:
    """Return a sorting key: numbers first, by value, then all else as text."""
    return (False, int(text), "") if text.isdecimal() else (True, 0, text)


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Write names for a message: the first of them, and how many there are."""
    ordered = sorted(names, key=natural)
    more = f", ... ({len(ordered)} in all)" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
