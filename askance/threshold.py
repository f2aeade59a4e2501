"""The `askance threshold` command: up to which uncertainty to accept a query.

From queries with known hits comes a threshold with a guarantee on the error; from a head alone the
uncertainty at a percentile of its upstream images, which promises nothing about errors.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.pipeline.command import command
from askance.tables import column, read

if TYPE_CHECKING:
    import numpy as np

    from askance.eval.guarantee import Threshold
    from askance.heads.checkpoint import SavedHead

    Queries = tuple[np.ndarray, np.ndarray]  # uncertainties, and whether each query is a hit

ASSUMED = (
    "assumed   further queries are drawn like these and search the same gallery with the same head:"
    " other classes, cameras or galleries void it"
)


def _probability(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"expected a number between 0 and 1, both excluded, got {value}")
    return value


def run(
    table: Annotated[
        Path | None, typer.Argument(help="queries with hits: results/queries/<set>.parquet, a CSV")
    ] = None,
    *,
    head: Annotated[str, typer.Option(help="whose uncertainty; default: the model's")] = "",
    seed: Annotated[
        int | None, typer.Option(help="of the head; default: the model's, or 0")
    ] = None,
    uncertainty: Annotated[str, typer.Option(help="its column, in a table of your own")] = "",
    hit: Annotated[str, typer.Option(help="column: is the nearest neighbour right?")] = "",
    alpha: Annotated[
        float, typer.Option(callback=_probability, help="largest error among accepted queries")
    ] = 0.1,
    delta: Annotated[
        float, typer.Option(callback=_probability, help="chance that the promise is wrong")
    ] = 0.05,
    model: Annotated[
        Path | None, typer.Option(help="the head's file, for percentiles: models/*.safetensors")
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(callback=_probability, help="share of upstream images that are more certain"),
    ] = None,
) -> None:
    """Find up to which uncertainty to accept queries, and say what that promises.

    The exit code is 1 if no threshold can be guaranteed.
    """
    if percentile is not None and model is None:
        raise typer.BadParameter("expected --model, whose upstream images --percentile is among")
    if table is None and percentile is None:
        raise typer.BadParameter("expected a TABLE of queries, or --percentile and --model")
    if table is not None and not (head or model or uncertainty):
        raise typer.BadParameter("expected whose uncertainty: --head, --model or --uncertainty")
    if uncertainty and head:
        raise typer.BadParameter("expected --head or --uncertainty, got both")
    saved = _load(model, head, seed)
    queries = None
    if table is not None:
        queries = _queries(table, *_columns(saved, head, seed, uncertainty), hit)
    if percentile is not None and saved is not None:
        print(_at_percentile(saved, percentile, queries, delta))
    if queries is not None:
        print(_guaranteed(saved, queries, alpha, delta))


def _load(model: Path | None, head: str, seed: int | None) -> "SavedHead | None":
    """Read the model, if there is one, and check that it is the head that was asked for."""
    if model is None:
        return None
    from askance.heads.checkpoint import load

    saved = load(model)
    if head not in ("", saved.name) or seed not in (None, saved.seed):
        raise ValueError(
            f"expected head {head or saved.name}, seed {saved.seed if seed is None else seed}, got"
            f" {saved.name}, seed {saved.seed}, in {model}: leave out --head and --seed"
        )
    return saved


def _columns(
    saved: "SavedHead | None", head: str, seed: int | None, uncertainty: str
) -> tuple[str, str]:
    """Return the column of uncertainties, and that of the head's own hits, if it has any."""
    if uncertainty:
        return uncertainty, "hit"
    name, run = (saved.name, saved.seed) if saved else (head, seed or 0)
    return f"uncertainty/{name}/{run}", f"hit/{name}/{run}"


def _queries(path: Path, uncertainty: str, own: str, hit: str) -> "Queries":
    """Return uncertainties and hits of a table's queries."""
    import numpy as np

    table = read(path, "queries")
    values = column(table, path, uncertainty)
    hits = column(table, path, hit or (own if own in table.column_names else "hit"))
    if not np.isin(hits, [0, 1]).all():
        raise ValueError(f"expected hits that are true or false in {path}, got others")
    try:
        return values.astype(float), hits.astype(bool)
    except ValueError as error:
        raise ValueError(
            f"expected numbers in column {uncertainty} of {path}, got {values.dtype}"
        ) from error


def _at_percentile(
    saved: "SavedHead", percentile: float, queries: "Queries | None", delta: float
) -> str:
    """Say which uncertainty lies at a percentile, and what it does to queries with known hits."""
    import numpy as np

    from askance.eval.guarantee import at_threshold, coverage_interval, error_bound

    scale = np.linspace(0, 1, len(saved.quantiles))
    value = float(np.interp(percentile, scale, saved.quantiles))
    if np.isnan(value):
        raise ValueError(
            f"expected a head that knows upstream images, got {saved.name}, imported without: see"
            " --scale of askance import-head"
        )
    told = f"percentile {percentile:g}: uncertainty {value!r}\n"
    if queries is not None:
        found = at_threshold(*queries, value)
        lower, upper = coverage_interval(found, delta)
        told += (
            f"{_accepted(found)}\n"
            f"          with probability {1 - delta:g} each: {lower:.1%} to {upper:.1%} of further"
            f" queries are accepted; at most {error_bound(found, delta):.1%} of those are misses\n"
        )
    return (
        f"{told}promised  {percentile:.1%} of the head's upstream images are more certain;"
        " nothing about errors"
    )


def _guaranteed(saved: "SavedHead | None", queries: "Queries", alpha: float, delta: float) -> str:
    """Say which threshold is guaranteed.

    Raises:
        ValueError: none is.
    """
    import numpy as np

    from askance.eval.guarantee import guaranteed

    found = guaranteed(*queries, alpha, delta)
    if found.reason:
        raise ValueError(
            f"expected a threshold whose error is at most {alpha:.1%} with probability"
            f" {1 - delta:g}, got none: {found.reason}"
        )
    told = f"guaranteed: uncertainty {found.uncertainty!r}"
    if saved is not None:
        told += f", percentile {saved.percentile(np.array([found.uncertainty]))[0]:.3f}"
    return (
        f"{told}\n{_accepted(found)}\n"
        f"promised  with probability {1 - delta:g}, at most {alpha:.1%} of the further queries that"
        f" are accepted are misses\n{ASSUMED}"
    )


def _accepted(found: "Threshold") -> str:
    return (
        f"accepted  {found.accepted:,} of {found.queries:,} queries here ({found.coverage:.1%}),"
        f" {found.misses:,} of them misses ({found.error:.1%})"
    )


main = command(run)

if __name__ == "__main__":
    typer.run(main)
