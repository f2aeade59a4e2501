"""Sets: the union of selections, with labels, and the packing of what has no shards of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from askance.features.index import SCHEMA, check_keys, place
from askance.features.shards import content, write_shards
from askance.features.sources.selection import Selection, lots
from askance.features.sources.shards import list_shards
from askance.pipeline.progress import progress

CHUNK = 1024  # rows turned into Python objects at a time


def unite(selections: list[Selection]) -> pa.Table:
    """List the samples of all selections, with `selection`, the number of theirs.

    Samples to pack come first, in a random order that is always the same, so that any run of rows
    is a fair mixture; then those that lie in shards, in the order of these.

    Raises:
        ValueError: two sources under one name, or two samples with one key.
    """
    titles = _titles(selections)
    tables = []
    for number, (selection, title) in enumerate(zip(selections, titles, strict=True)):
        table = selection.samples()
        if title:
            names = ("key", "class", "name")
            join = pc.binary_join_element_wise
            table = _replace(table, {name: join(title, table[name], "/") for name in names})
        tables.append(table.append_column("selection", pa.array(np.full(len(table), number))))
    table = pa.concat_tables(tables)
    lines = [repr(selection.line) for selection in selections]
    check_keys(table, lambda row: place(row) if row["shard"] else lines[row["selection"]])
    loose, placed = _split(table)
    order = np.argsort(lots("order", loose["key"].to_pylist()))
    return pa.concat_tables([loose.take(order), placed])


def _titles(selections: list[Selection]) -> list[str]:
    """Return what goes before the keys and class names of each selection."""
    if len(selections) == 1:
        return [selections[0].prefix]
    titles = [selection.prefix or selection.name for selection in selections]
    sources = dict(zip(titles, [selection.source for selection in selections], strict=True))
    for title, selection in zip(titles, selections, strict=True):
        if selection.source != sources[title]:
            raise ValueError(
                f"expected one source under the name {title!r}, got two different ones, whose keys"
                f" and classes would mix: give {selection.line!r} a prefix=NAME"
            )
    return titles


def label(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Add the column `label`; also return the names of the labels, {label: name}.

    Classes that all are numbers keep them (they are columns of a classifier), and the names are
    those that their source gave. Other classes are sorted and numbered from 0.

    Raises:
        ValueError: votes, which are counted by class number, for classes without numbers.
    """
    pairs = table.group_by("class").aggregate([("name", "min")])
    names = dict(zip(pairs["class"].to_pylist(), pairs["name_min"].to_pylist(), strict=True))
    if all(text.isdecimal() and str(int(text)) == text for text in names):
        labels = table["class"].cast(pa.int32())
        classes = {int(text): name for text, name in names.items() if text != name}
        return table.append_column("label", labels), classes
    if pc.any(pc.is_valid(table["votes"])).as_py():
        raise ValueError(
            "expected votes only where classes are numbers and there is one source, got classes"
            f" like {min(names)!r}: votes are counted by class number"
        )
    ordered = sorted(names)
    labels = pc.index_in(table["class"], pa.array(ordered)).cast(pa.int32())
    return table.append_column("label", labels), dict(enumerate(names[text] for text in ordered))


def pack(folder: Path, name: str, table: pa.Table, selections: list[Selection]) -> pa.Table:
    """Write the samples without a shard into shards `folder`/`name`-000000.tar, ...

    Returns:
        The set's index: all rows of `table` in their order, each with its shard.
    """
    loose, placed = _split(table)
    if len(loose):
        with progress("pack", len(loose), "images") as advance:
            shards = write_shards(folder, name, _samples(loose, selections, advance))
        written = list_shards(shards, "cls", "")
        if not written["key"].equals(loose["key"]):
            raise AssertionError(f"wrote {len(loose)} samples, read back {len(written)} others")
        places = {name: written[name] for name in ("shard", "position", "offset", "size")}
        places["shard"] = pc.replace_substring_regex(places["shard"], "^.*/", "")
        loose = _replace(loose, places)
    return pa.concat_tables([loose, placed]).select(SCHEMA.names)


def contents(folder: Path, table: pa.Table) -> dict[str, str]:
    """Return what tells each shard's bytes from others, {shard: hash}; local ones are read."""
    shards = pc.unique(table["shard"]).to_pylist()
    found = {}
    with progress("hash", len(shards), "shards") as advance:
        for shard in shards:
            found[shard] = content(shard if "://" in shard else str(folder / shard))
            advance(1)
    return found


def _split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the samples to pack, and those that lie in shards."""
    placed = pc.is_valid(table["shard"])
    return table.filter(pc.invert(placed)), table.filter(placed)


def _replace(table: pa.Table, columns: dict[str, pa.ChunkedArray]) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _samples(
    table: pa.Table, selections: list[Selection], advance: Callable[[int], None]
) -> Iterator[dict[str, str | bytes]]:
    columns = table.select(["key", "label", "selection", "row"])
    for batch in columns.to_batches(max_chunksize=CHUNK):
        for sample in batch.to_pylist():
            selection = selections[sample["selection"]]
            try:
                extension, content = selection.source.image(sample["row"])
            except ValueError as error:
                raise ValueError(
                    f"expected an image for {sample['key']!r} of {selection.line!r}, got {error}"
                ) from error
            yield {"__key__": sample["key"], extension: content, "cls": b"%d" % sample["label"]}
            advance(1)
