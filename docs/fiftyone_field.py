"""Write the scores of `askance score` into the samples of a FiftyOne dataset.

python docs/fiftyone_field.py DATASET scores.parquet

From the folder where the scores were made. FiftyOne is no dependency: `pip install fiftyone`.
"""

import os
import sys

import pyarrow.compute as pc
import pyarrow.parquet as pq


def write(dataset, table):  # noqa: ANN001, ANN201 - FiftyOne has no types
    """Set `uncertainty` and `percentile` of the samples whose files are in the table."""
    rows = table.filter(pc.field("uncertainty").is_valid()).to_pylist()
    scores = {os.path.abspath(row["key"]): row for row in rows}  # noqa: PTH100
    found = [scores.get(path, {}) for path in dataset.values("filepath")]
    if not any(found):
        raise ValueError(f"expected keys that are files of {dataset.name}, got {len(rows)} others")
    for name in ("uncertainty", "percentile"):
        dataset.set_values(name, [row.get(name) for row in found])
    return f"{dataset.name}: {sum(map(bool, found))} of {len(found)} samples have a score"


if __name__ == "__main__":
    import fiftyone

    scored = pq.read_table(sys.argv[2], columns=["key", "uncertainty", "percentile"])
    print(write(fiftyone.load_dataset(sys.argv[1]), scored))
