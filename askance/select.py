"""The `askance select` command: which images of a pool to label next."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from jaxtyping import Float64, Int64

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.progress import progress
from askance.pipeline.seeding import hashed
from askance.tables import column, read

if TYPE_CHECKING:
    from askance.eval.selection import Selection
    from askance.features.store import FeatureStore

How = Literal["uncertain", "diverse", "representative", "both"]


@dataclass(frozen=True)
class Asked:
    """How to choose."""

    count: int
    how: How
    sample: int
    view: str


def run(
    store: Annotated[
        Place, typer.Argument(parser=place, help="the pool: a store of extract, stores/<set>.zarr")
    ],
    head: Annotated[Path, typer.Argument(help="of train, models/<head>-<seed>.safetensors")],
    *,
    count: Annotated[int, typer.Option(min=1, help="images to choose")],
    out: Annotated[Path, typer.Option(help="the table to write, a row per image chosen")],
    how: Annotated[
        How,
        typer.Option(
            help="uncertain: the most uncertain; diverse: farthest from those chosen;"
            " representative: those that others are like; both: that uncertain others are like"
        ),
    ] = "representative",
    labelled: Annotated[
        list[Path],
        typer.Option(help="tables of keys with a label, Parquet or CSV: not chosen; repeatable"),
    ] = [],  # noqa: B006 - typer copies it
    sample: Annotated[
        int, typer.Option(min=1, help="representative, both: images compared with each other")
    ] = 20_000,
    view: Annotated[str, typer.Option(help="of the store, that is looked at")] = "plain",
) -> None:
    """Choose the images of a pool that are worth a label; no label in the store is looked at."""
    from askance.features.store import FeatureStore
    from askance.heads.checkpoint import load
    from askance.stages.cases import Images
    from askance.stages.uncertainties import uncertainty

    pool, saved = FeatureStore.open(store), load(head)
    saved.check_backbone(pool.backbone, str(store))
    if how == "both" and np.isnan(saved.quantiles).any():
        raise ValueError(
            f"expected a head that knows upstream images for --how both, got {saved.name}, imported"
            " without: see --scale of askance import-head, or take --how representative"
        )
    known = _places(pool, labelled)
    with progress(f"score {store.name}", len(pool.rows), "images") as advance:
        doubt = uncertainty([saved], Images(pool, pool.rows), view, advance)[0]
    percentile = saved.percentile(doubt)
    asked = Asked(count, how, sample, view)
    chosen = _chosen(pool, doubt, percentile, known, asked)
    table = pa.table(
        {
            "rank": np.arange(count),
            "row": pool.rows[chosen.row],
            "key": pa.array(pool.keys, pa.string()).take(pa.array(chosen.row)),
            "uncertainty": doubt[chosen.row],
            "percentile": percentile[chosen.row],
            "distance": chosen.distance,
            "reason": list(map(_reason, percentile[chosen.row], chosen.distance)),
        },
        metadata={"store": pool.fingerprint, "head": f"{saved.name}-{saved.seed}", "how": how},
    )
    with atomic(out) as temporary:
        pq.write_table(table, temporary)
    print(f"{out}: {count} of {len(pool.rows) - len(known):,} images without a label, {how}")


def _places(pool: "FeatureStore", tables: list[Path]) -> Int64[np.ndarray, " k"]:
    """Return the places of the pool's rows whose keys are in the tables, rising.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a table without keys, or a key that is not the pool's.
    """
    keys: set[str] = set()
    for path in tables:
        keys.update(column(read(path, "labelled images"), path, "key").tolist())
    found = [place for place, key in enumerate(pool.keys) if key in keys]
    if len(found) < len(keys):
        other = sorted(keys - set(pool.keys), key=str)
        raise ValueError(
            f"expected labelled keys of {pool.path}, got {len(other)} others, such as {other[0]!r}:"
            " name tables of this pool"
        )
    return np.array(found, np.int64)


def _chosen(
    pool: "FeatureStore",
    uncertainty: Float64[np.ndarray, " n"],
    percentile: Float64[np.ndarray, " n"],
    known: Int64[np.ndarray, " k"],
    asked: Asked,
) -> "Selection":
    """Choose among the rows without a label; `row` are places among all done rows."""
    from askance.eval.selection import (
        Selection,
        diverse,
        nearest_labelled,
        representative,
        uncertain,
    )

    left = np.setdiff1d(np.arange(len(uncertainty)), known)
    if asked.how == "uncertain":
        found = uncertain(uncertainty[left], asked.count)
        return Selection(left[found.row], found.distance)
    if asked.how != "diverse" and len(left) > asked.sample:
        keys = pool.keys
        left = left[hashed([keys[row] for row in left])[: max(asked.sample, asked.count)]]
    looked_at = np.union1d(left, known)  # the only embeddings held
    embedding, nearest = pool.some(asked.view, looked_at), None
    if len(known):
        with progress("compare with the labelled", len(left), "images") as advance:
            nearest = nearest_labelled(embedding, np.searchsorted(looked_at, known), advance)
    with progress("choose", asked.count, "images") as advance:
        if asked.how == "diverse":
            found = diverse(embedding, asked.count, nearest, advance)
        else:
            weight = percentile[looked_at] if asked.how == "both" else None
            found = representative(embedding, asked.count, weight, nearest, advance)
    return Selection(looked_at[found.row], found.distance)


def _reason(percentile: float, distance: float) -> str:
    reason = f"less certain than {percentile:.1%} of the upstream images"
    if np.isnan(percentile):
        reason = "of unknown percentile"
    if np.isnan(distance):
        return reason
    return f"{reason}; {distance:.3f} from the nearest labelled or chosen image"


main = command(run)

if __name__ == "__main__":
    typer.run(main)
