"""Tables that people hand to a command: Parquet or CSV, read whole, a column at a time checked."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def read(path: Path, rows: str) -> "pa.Table":
    """Read a table of `rows`, as an error calls them; keys in a CSV are text, whatever they are.

    Raises:
        FileNotFoundError: there is none.
        ValueError: neither Parquet nor, by its name, CSV.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"expected a table of {rows}, got no {path}: check the path")
    try:
        if path.suffix != ".csv":
            return pq.read_table(path)
        text = pa.csv.ConvertOptions(column_types={"key": pa.string()})
        return pa.csv.read_csv(path, convert_options=text)
    except pa.ArrowInvalid as error:
        raise ValueError(f"expected a Parquet or .csv table in {path}, got {error}") from error


def column(table: "pa.Table", path: Path, name: str) -> "np.ndarray":
    """Return a column of a table that was read from a path.

    Raises:
        ValueError: no such column, or one with empty rows.
    """
    if name not in table.column_names:
        raise ValueError(f"expected column {name} in {path}, got {_columns_there(table, name)}")
    values = table[name]
    if values.null_count:
        raise ValueError(
            f"expected a value in every row of column {name} of {path}, got {values.null_count}"
            " empty ones"
        )
    return values.to_numpy()


def _columns_there(table: "pa.Table", name: str) -> str:
    """Return the heads of a table of queries, or the columns of one head, or those of any table."""
    runs = [column for column in table.column_names if column.startswith("uncertainty/")]
    seeds = [column for column in runs if column.rpartition("/")[0] == name.rpartition("/")[0]]
    heads = list(dict.fromkeys(column.split("/")[1] for column in runs))
    if name.startswith("uncertainty/") and heads and not seeds:
        return f"the heads {', '.join(heads)}"
    return ", ".join(seeds or table.column_names)
