"""A long table that is written part by part, so that whatever is finished survives a kill.

Comes in: what decides the rows, and the rows, a block at a time. Goes out: one file, Parquet, CSV
or JSON lines by its name. Until it is whole, the parts lie beside it in `.<name>.state`.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from askance.features.blocks import Block, plan
from askance.pipeline.artifacts import atomic, digest, read_sealed, remove, write_sealed
from askance.pipeline.locks import only_writer


class Parts:
    """The parts of a table of `rows` rows, `block` each, as a context: nobody else writes them.

    `about` is all that decides the rows' content, and can be written as JSON. Parts of another
    `about` are removed when the context is entered; `message` says what was found. A Parquet file
    tells its own, so that a finished one is not made again.
    """

    def __init__(self, out: Path, about: dict[str, Any], rows: int, block: int) -> None:
        self.out, self.about, self.blocks = out, about | {"block": block}, plan(rows, block)
        self.folder, self.message = out.with_name(f".{out.name}.state"), ""
        self._lock = ExitStack()

    def __enter__(self) -> "Parts":
        """Lock the parts, and see which there are.

        Raises:
            ValueError: another process writes them.
            OSError: the folder can't be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.out, self.folder / "lock"))
            told = _told(self.out)
            self.finished = told.get("digest") == digest(self.about)
            self.message = f"{self.out}: complete" if self.finished else self._open(told)
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def files(self) -> list[Path]:
        """The Parquet files that hold the rows, in order, once nothing is missing."""
        return [self.out] if self.finished else list(map(self._file, self.blocks))

    def missing(self) -> list[Block]:
        """Return the blocks that have no part yet."""
        if self.finished:
            return []
        return [block for block in self.blocks if not self._file(block).exists()]

    def write(self, block: Block, table: pa.Table) -> None:
        """Write a part."""
        with atomic(self._file(block)) as temporary:
            pq.write_table(table, temporary)

    def finish(self) -> None:
        """Unite the parts, in their order, and remove them; a part is held at a time."""
        if not self.finished:
            whole = self.folder / "whole"
            _unite(self.files, whole, self.out.suffix, self.about)
            whole.replace(self.out)
        remove(self.folder)

    def _open(self, told: dict[str, str]) -> str:
        """Go on with the parts that are there, or begin anew; `told` is of a finished table."""
        path = self.folder / "about.json"
        try:
            found = read_sealed(path)
        except (OSError, ValueError):
            found = {}
        wanted = json.loads(json.dumps(self.about))  # as it is read: lists, not tuples
        if found == wanted:
            return f"{self.out}: continuing"
        for file in self.folder.glob("*.*"):  # not the lock
            remove(file)
        write_sealed(path, wanted)
        before, now = (found, wanted) if found else (told, _texts(wanted))
        changed = ", ".join(name for name in now if before.get(name) != now[name])
        return f"{self.out}: {changed} changed; begun anew" if before else f"{self.out}: new"

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.number:06}.parquet"


def _told(path: Path) -> dict[str, str]:
    """Return what a finished Parquet file says it was made from; nothing for anything else."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return {name.decode(): text.decode() for name, text in metadata.items()}
    except (OSError, ValueError):
        return {}


def _texts(about: dict[str, Any]) -> dict[str, str]:
    return {n: x if isinstance(x, str) else json.dumps(x) for n, x in about.items()}


def _unite(files: list[Path], out: Path, suffix: str, about: dict[str, Any]) -> None:
    tables = (pq.read_table(file) for file in files)
    if suffix == ".jsonl":
        with out.open("w", encoding="utf-8") as file:
            for table in tables:
                for row in table.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        return
    texts = _texts(about) | {"digest": digest(about)}
    schema = pq.read_schema(files[0]).with_metadata(texts)
    kind = pa.csv.CSVWriter if suffix == ".csv" else pq.ParquetWriter
    with kind(out, schema) as writer:
        for table in tables:
            writer.write_table(table)
