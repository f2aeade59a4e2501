"""map: a feature store to a point in the plane for every image, those that are alike together."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.runs import Run


def run(
    store: Annotated[
        Place, typer.Argument(parser=place, help="a finished store, stores/<set>.zarr")
    ],
    out: Annotated[Path, typer.Argument(help="the table to write, results/maps/<set>.parquet")],
    *,
    queries: Annotated[
        int, typer.Option(min=0, help="as retrieve was told: only these have uncertainties")
    ] = 0,
    limit: Annotated[
        int, typer.Option(min=1, max=5_000, help="images, drawn by lot where there are more")
    ] = 2_000,
    perplexity: Annotated[
        float, typer.Option(min=1, help="of t-SNE; lowered in a set of few images")
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="of the draw, and of t-SNE")] = 0,
) -> None:
    """Lay out a set's images by the cosines of their embeddings; no head has a say in it.

    Source: the uncertainty-aware maps of arXiv 2402.16569.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from askance.eval.plane import plane
    from askance.eval.retrieval import drawn
    from askance.features.store import FeatureStore

    this, features = Run("map"), FeatureStore.open(store)
    every = np.arange(len(features.rows))
    if not len(every):
        raise ValueError(f"expected images in {store}, got none: all of them were refused")
    asked = drawn(every, queries or len(every))
    shown = drawn(asked, limit, "map", seed)
    print(f"map {store.name}: {len(shown):,} images to lay out", file=sys.stderr)
    found = plane(features.some("plain", shown), seed, perplexity)
    x, y = found.point.T
    columns = {"row": features.rows[shown], "key": pa.array(features.keys).take(pa.array(shown))}
    about = {"store": features.edition, "images": len(asked), "seed": seed}
    about |= {"perplexity": found.perplexity, "trustworthiness": found.trustworthiness}
    table = pa.table(
        columns | {"x": x, "y": y}, metadata={name: str(value) for name, value in about.items()}
    )
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    this.log(out, len(table), "images")
    print(
        f"{out}: {len(table):,} of {len(asked):,} images, perplexity {found.perplexity:g},"
        f" trustworthiness {found.trustworthiness:.3f}"
    )


main = command(run)

if __name__ == "__main__":
    typer.run(main)
