"""retrieve: a downstream feature store to the nearest other image of every image."""

import time
from pathlib import Path
from typing import Annotated

import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.progress import progress


def run(
    store: Annotated[
        Place, typer.Argument(parser=place, help="a finished store, stores/<set>.zarr")
    ],
    out: Annotated[Path, typer.Argument(help="the table to write, neighbours/<set>.parquet")],
    view: Annotated[str, typer.Option(help="searched and searched for")] = "plain",
) -> None:
    """Find every image's nearest other image, and whether it shares the label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from askance.eval.retrieval import neighbours
    from askance.features.store import FeatureStore

    start = time.monotonic()
    features = FeatureStore.open(store)
    row = features.rows
    with progress(f"retrieve {store.name}", len(row), "queries") as advance:
        found = neighbours(features.embedding(view), advance)
    label, key = features.labels, pa.array(features.keys, pa.string())
    hit = label == label[found.row]
    table = pa.table(
        {
            "row": row,
            "key": key,
            "label": label,
            "neighbour": row[found.row],
            "neighbour_key": key.take(pa.array(found.row)),
            "similarity": found.similarity,
            "hit": hit,
        },
        metadata={"store": features.fingerprint},
    )
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    seconds = time.monotonic() - start
    print(f"{out}: {len(row)} queries, R@1 {hit.mean():.4f}, {seconds:.1f} s")


main = command(run)

if __name__ == "__main__":
    typer.run(main)
