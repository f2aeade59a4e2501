"""Tables of images that lie elsewhere: Parquet or CSV, a place and a key in each row."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

PLACES = ("url", "path", "file")  # the columns looked for where none is named
KEY = "key"


def places(file: Any, table: str, column: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield the key and place of each row; no other column is read, and few rows are held.

    Args:
        file: the open table.
        table: its name; Parquet, unless it ends in .csv.
        column: with the places; the first of `PLACES` that is there if "".

    Raises:
        ValueError: not such a table, no such column, or a row without a place or key.
    """
    number = 0
    try:
        for place, key in _rows(file, table, column):
            number += 1
            if not place or not key:
                raise ValueError(
                    f"expected a place and a key in every row of {table}, got none in row {number}:"
                    " leave such rows out"
                )
            yield key, place
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"expected a Parquet or .csv table in {table}, got {error}") from error


def _rows(file: Any, table: str, column: str) -> Iterator[tuple[str | None, str | None]]:  # noqa: ANN401
    if table.lower().endswith(".csv"):
        names = pa.csv.open_csv(file).schema.names
        file.seek(0)
        wanted = _wanted(names, table, column)
        types = dict.fromkeys(wanted, pa.string())  # else 007 would be 7
        batches = pa.csv.open_csv(
            file, convert_options=pa.csv.ConvertOptions(include_columns=wanted, column_types=types)
        )
    else:
        opened = pq.ParquetFile(file)
        wanted = _wanted(opened.schema_arrow.names, table, column)
        batches = opened.iter_batches(columns=wanted)
    for batch in batches:
        found = [batch[name].cast(pa.string()).to_pylist() for name in wanted]
        yield from zip(found[0], found[-1], strict=True)


def _wanted(names: list[str], table: str, column: str) -> list[str]:
    """Return the column of places, and that of keys where there is one."""
    found = [name for name in ((column,) if column else PLACES) if name in names]
    if not found:
        expected = column or ", ".join(PLACES)
        raise ValueError(
            f"expected the column {expected} in {table}, got {', '.join(names)}: name it by"
            " --column"
        )
    return [found[0], KEY] if KEY in names and found[0] != KEY else found[:1]
