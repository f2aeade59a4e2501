"""Mending a store: what is damaged is made again, to the bytes that were written, nothing else.

Comes in: what a store tells of itself, and the writer that would write it. Goes out: lines on what
was done.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from askance.features.blocks import Block, task
from askance.features.index import Index, read_index
from askance.features.store import MANIFEST, REFUSED
from askance.features.verify import Advance, Told
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import Place, digest, listing, write_bytes

if TYPE_CHECKING:
    from askance.features.embed import Embedder


def said_by(told: Told) -> dict[str, Any]:
    """Return what the manifest says, or where it is damaged the attributes, which say the same.

    Raises:
        ValueError: they are damaged too.
    """
    if MANIFEST in told.sealed:
        return told.sealed[MANIFEST]
    try:
        said: dict[str, Any] = json.loads((told.path / "zarr.json").read_bytes())["attributes"]
        whole = digest(said["content"]) == said["fingerprint"] and "made" in said
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(
            f"expected {MANIFEST} or the attributes of {told.path} as they were written, got both"
            " damaged: extract again"
        )
    return said


def find_index(store: Place, wanted: str, data: Path) -> Index:
    """Return the index with the digest `wanted`: the set's in `data`, or the store's copy of it.

    Raises:
        ValueError: neither is it.
    """
    for folder in (data, store / "status"):
        try:
            index = read_index(folder)
            if index.digest == wanted:
                return replace(index, folder=data)
        except (OSError, ValueError, KeyError):  # whatever damage comes to
            continue
    raise ValueError(
        f"expected the index that {store} was made with, got none or another in {data}, and its"
        " copy is damaged: name the set's folder with --data, or prepare it again"
    )


def restore(writer: StoreWriter, told: Told, damaged: set[str]) -> Iterator[str]:
    """Copy damaged files of the creation out of an empty store made for that.

    Raises:
        ValueError: some come out with other bytes than were written.
    """
    left = []
    with TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.zarr"
        writer.create(fresh)
        for name in sorted(listing(fresh), key=lambda name: (name == MANIFEST, name)):
            content, file = (fresh / name).read_bytes(), writer.path / name
            if MANIFEST in told.sealed:
                if name not in damaged:
                    continue
                if sha256(content).hexdigest() != told.created[name]:
                    left.append(name)
                    continue
            elif file.exists() and file.read_bytes() == content:
                continue
            write_bytes(file, content)
            yield f"{name}: written again"
    if left:
        made = ", ".join(f"{name} {n}" for name, n in writer.layout.made["versions"].items())
        raise ValueError(
            f"expected the bytes that were written, got others for {', '.join(left)}: repair with"
            f" the versions that the store was made with ({made})"
        )


def embed_again(
    writer: StoreWriter, embedder: "Embedder", told: Told, blocks: list[Block], advance: Advance
) -> Iterator[str]:
    """Embed blocks again; one that would lose rows, for want of shards, stays as it is."""
    for embedded in embedder.embed(task(writer.index, block) for block in blocks):
        block = embedded.block
        advance(len(block.rows))
        lost = embedded.refused.keys() - _refused(told, block)
        if lost:
            why = embedded.refused[min(lost)]
            yield f"block {block.number}: left as it is, {len(lost)} rows can't be read: {why}"
            continue
        writer.forget(block)
        writer.write(block, embedded.arrays, embedded.refused)
        yield f"block {block.number}: embedded again"


def _refused(told: Told, block: Block) -> set[int]:
    """Return the rows that a block had refused, by its record, or `status` where it is lost."""
    record = told.records.get(block.number)
    if record and record["rows"] == [block.start, block.stop]:
        return {int(row) for row in record["refused"]}
    status = told.path / f"status/c/{block.number}"
    content = status.read_bytes() if status.exists() else b""
    return {block.start + place for place, value in enumerate(content) if value == REFUSED}
