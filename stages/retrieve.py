"""retrieve: a downstream feature store to the nearest other image of every image."""

from pathlib import Path
from typing import Annotated

import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.devices import device as device_called
from askance.pipeline.progress import progress
from askance.pipeline.runs import Run


def run(
    store: Annotated[
        Place, typer.Argument(parser=place, help="a finished store, stores/<set>.zarr")
    ],
    out: Annotated[Path, typer.Argument(help="the table to write, neighbours/<set>.parquet")],
    view: Annotated[str, typer.Option(help="searched and searched for")] = "plain",
    *,
    queries: Annotated[
        int, typer.Option(min=0, help="drawn by lot, where all are too many; 0: all")
    ] = 0,
    lists: Annotated[
        int,
        typer.Option(min=0, help="0: exact; else of an approximate index, fewer find more"),
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Find every image's nearest other image, and whether it shares the label."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from askance.eval.approximate import approximate
    from askance.eval.engines import fastest
    from askance.eval.retrieval import drawn, neighbours
    from askance.features.store import FeatureStore

    this, engine = Run("retrieve"), fastest(str(device_called(device)))
    features = FeatureStore.open(store)
    rows, label, keys = features.rows, features.labels, pa.array(features.keys, pa.string())
    query = drawn(np.arange(len(rows)), queries or len(rows))
    about, checked, embedding = {"store": features.edition}, "", features.slices(view)
    with progress(f"retrieve {store.name}", len(query), "queries") as advance:
        if lists:
            near = approximate(embedding, lists, advance, queries=query, engine=engine)
            found, checked = near.neighbours, f"recall {near.recall} with {lists} lists, "
            about |= {"lists": str(lists), "recall": str(near.recall)}
        else:
            found = neighbours(embedding, advance, queries=query, engine=engine)
    hit = label[query] == label[found.row]
    table = pa.table(
        {
            "row": rows[query],
            "key": keys.take(pa.array(query)),
            "label": label[query],
            "neighbour": rows[found.row],
            "neighbour_key": keys.take(pa.array(found.row)),
            "similarity": found.similarity,
            "hit": hit,
        },
        metadata=about,
    )
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    this.log(out, len(query), "queries")
    print(f"{out}: {len(query)} queries, R@1 {hit.mean():.4f}, {checked}{this.seconds:.1f} s")


main = command(run)

if __name__ == "__main__":
    typer.run(main)
