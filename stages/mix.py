"""mix: a downstream and the upstream store to the neighbours in a half-and-half mixture of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.devices import device as device_called
from askance.pipeline.progress import progress
from askance.pipeline.runs import Run

if TYPE_CHECKING:
    from askance.features.store import FeatureStore


def run(
    store: Annotated[
        Place, typer.Argument(parser=place, help="a zero-shot store, stores/<set>.zarr")
    ],
    upstream: Annotated[
        Place, typer.Argument(parser=place, help="a store of upstream classes, to mix in")
    ],
    out: Annotated[Path, typer.Argument(help="the table to write, neighbours/mixed/<set>.parquet")],
    *,
    limit: Annotated[int, typer.Option(min=1, help="images of each store, at most")] = 50_000,
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Mix as many images of either store, and find every image's nearest other one.

    Source: mixed and out-of-distribution AUROC of URL (arXiv 2307.03810).
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from askance.eval.engines import fastest
    from askance.eval.mixture import mixture, union_label
    from askance.eval.retrieval import neighbours
    from askance.features.store import FeatureStore

    this, engine = Run("mix"), fastest(str(device_called(device)))
    stores = [FeatureStore.open(upstream), FeatureStore.open(store)]
    _check_apart(*stores)
    places = mixture(len(stores[0].rows), len(stores[1].rows), seed, limit)
    parts = list(zip(stores, places, strict=True))
    embedding = np.concatenate([features.some("plain", at) for features, at in parts])
    label = union_label(*(features.labels[at] for features, at in parts))
    with progress(f"mix {store.name}", len(label), "queries") as advance:
        found = neighbours(embedding, advance, engine=engine)
    hit = label == label[found.row]
    table = pa.table(
        {
            "upstream": np.repeat([True, False], len(places[0])),
            "row": np.concatenate([features.rows[at] for features, at in parts]),
            "hit": hit,
        },
        metadata={
            "name": upstream.stem,
            "upstream": stores[0].edition,
            "store": stores[1].edition,
        },
    )
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    this.log(out, len(table), "queries")
    print(f"{out}: {len(table)} queries, half of either store, R@1 {hit.mean():.4f}")


def _check_apart(known: "FeatureStore", new: "FeatureStore") -> None:
    """Refuse stores of two backbones, or with a class in common, whose images would be misses."""
    from askance.stages.cases import class_names

    if known.backbone != new.backbone:
        raise ValueError(
            f"expected one backbone in {known.path} and {new.path}, got two: extract them with the"
            " same"
        )
    shared = sorted(class_names(known) & class_names(new))
    if shared or known.fingerprint == new.fingerprint:
        raise ValueError(
            f"expected new classes in {new.path}, got {shared[:3] or 'the same images'} of"
            f" {known.path} too, which would count as others: mix sets without common classes"
        )


main = command(run)

if __name__ == "__main__":
    typer.run(main)
