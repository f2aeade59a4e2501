"""evaluate: heads, stores and neighbours to metrics, per-query tables and curves.

A head that maps the embedding is asked about the neighbours that its own map finds, per seed; all
others about those of the frozen embedding, which retrieve and mix have found.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from askance.pipeline.artifacts import atomic, defined, write_json
from askance.pipeline.command import command
from askance.pipeline.progress import progress
from askance.pipeline.provenance import machine, versions
from askance.pipeline.runs import Run
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.eval.summary import Row, Uncertainties
    from askance.features.store import FeatureStore
    from askance.heads.checkpoint import SavedHead
    from askance.stages.cases import Case

NEIGHBOUR_DISTANCE = "neighbour-distance"  # a reference: it needs the gallery, not just the image
TRAITS = ("trained", "needs_classifier", "of_backbone", "mapped")
FEW = 10  # images
REFERENCE: dict[str, Any] = {"name": NEIGHBOUR_DISTANCE, "seeds": [0], "reference": True}
REFERENCE |= dict.fromkeys(TRAITS, False)


def run(
    models: o.Models,
    probe: o.Probe,
    stores: o.Stores,
    neighbours: o.Neighbours,
    out: Annotated[Path, typer.Argument(help="the folder of results to write")],
    *,
    sets: Annotated[list[str], typer.Option(help="the sets to evaluate on; repeat for more")],
    upstream: o.Upstream = [],  # noqa: B006 - typer copies it
    mixed: Annotated[
        list[str], typer.Option(help="those among them that mix has mixed with upstream images")
    ] = [],  # noqa: B006
) -> None:
    """Score every query with every head, and ask how well that foretold a wrong neighbour."""
    from askance.eval.summary import average, curve, nested, summarise
    from askance.features.store import FeatureStore
    from askance.stages.cases import check_named, read_case, with_mixture
    from askance.stages.uncertainties import answers, read_heads

    check_named("evaluate.upstream", upstream, sets)
    check_named("evaluate.mixed", mixed, sets)
    this, losses = Run("evaluate"), FeatureStore.open(probe)
    heads = read_heads(models, losses)
    summaries, curves, bins, described = [], [], [], []
    with (
        atomic(out / "queries") as folder,
        progress("evaluate", len(sets) * len(heads), "head-sets") as advance,
    ):
        folder.mkdir()
        for name in sets:
            store = FeatureStore.open(stores / f"{name}.zarr")
            case = read_case(name, store, neighbours, losses if name in upstream else None)
            if name in mixed:
                case = with_mixture(case, neighbours / "mixed" / f"{name}.parquet", stores)
            described.append(_described(name, name in upstream, case, losses))
            found = []
            for seeds in heads:
                found.append(answers(seeds, case.images, case.mixed))
                advance(1)
            found.append(_reference(case.table))
            summaries.append(summarise(case.queries, found))
            curves += [point for head in found for point in curve(case.queries, head)]
            table = _per_query(case, heads, found)
            pq.write_table(table, folder / f"{name}.parquet")
            own = found[:-1]  # all but the reference, which has no percentiles
            bins += [each for head in own for each in _bins(name, table, head)]
            if case.mixed:
                pq.write_table(
                    _per_mixed(case.mixed.table, found), folder / f"{name}.mixed.parquet"
                )
    rows = [row for summary in summaries for row in summary.rows()] + average(summaries)
    with atomic(out / "table.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(out / "curves.json", curves)
    write_json(out / "calibration.json", bins)
    write_json(out / "r_auroc.json", _bars(rows))
    write_json(out / "metrics.json", nested(rows))
    about = _about(heads, losses, described)
    write_json(out / "run.json", about)
    this.log(out / "queries", sum(each["queries"] for each in described), "queries")
    print(_best(rows, about["heads"]))


def _reference(table: pa.Table) -> "Uncertainties":
    """Return 1 - similarity of the neighbour, as if it were a head."""
    from askance.eval.summary import Uncertainties

    return Uncertainties(NEIGHBOUR_DISTANCE, [0], 1 - table["similarity"].to_numpy()[None])


def _per_query(
    case: "Case", heads: list[list["SavedHead"]], found: list["Uncertainties"]
) -> pa.Table:
    """Return one row per query: its neighbour, what is known of it, and each head's uncertainties.

    `hit` is of the frozen embedding; `hit/<head>/<seed>` and `neighbour/<head>/<seed>` are of a
    head with neighbours of its own. `fraction` is how much of the image the crop shows;
    `cropped/<head>/<seed>` are the crop's. `percentile/<head>` is the mean over seeds.
    """
    from askance.stages.uncertainties import percentile

    queries = case.queries
    columns: dict[str, Any] = {"fraction": queries.fraction}
    columns |= {"correct": queries.correct, "loss": queries.loss}
    columns["votes"] = None if queries.votes is None else list(queries.votes)
    for head in found:
        columns |= _columns(head, uncertainty=head.plain, cropped=head.cropped)
        columns |= _columns(head, neighbour=head.near, hit=head.hit)
    for seeds, head in zip(heads, found, strict=False):  # all but the reference
        columns[f"percentile/{head.head}"] = percentile(seeds, head.plain)
    return _with(case.table, columns)


def _per_mixed(table: pa.Table, found: list["Uncertainties"]) -> pa.Table:
    """Return one row per image of a mixture, in the form of `_per_query`."""
    columns: dict[str, Any] = {}
    for head in found:
        columns |= _columns(head, uncertainty=head.mixed, hit=head.mixed_hit)
    return _with(table, columns)


def _columns(head: "Uncertainties", **kinds: np.ndarray | None) -> dict[str, np.ndarray]:
    return {
        f"{kind}/{head.head}/{seed}": row
        for kind, rows in kinds.items()
        if rows is not None
        for seed, row in zip(head.seeds, rows, strict=True)
    }


def _with(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    for name, column in columns.items():
        if column is not None:
            table = table.append_column(name, pa.array(column))
    return table


def _bins(name: str, table: pa.Table, head: "Uncertainties") -> Iterator[dict[str, Any]]:
    """Yield the share of wrong neighbours by a head's percentile, as `dvc plots` reads it.

    None where few images are: a picture would make too much of them.
    """
    from askance.eval.calibration import calibration

    hit = table["hit"].to_numpy()[None] if head.hit is None else head.hit  # (seeds, queries)
    percentile = np.tile(table[f"percentile/{head.head}"].to_numpy(), len(hit))
    for each in calibration(percentile, ~hit.ravel()):
        middle, few = (each.start + each.stop) / 2, each.images < FEW * len(hit)
        about = {"set": name, "head": head.head, "percentile": round(middle, 3)}
        yield about | {"wrong": None if few else each.wrong, "images": each.images // len(hit)}


def _bars(rows: list["Row"]) -> list[dict[str, Any]]:
    """Return the R-AUROC of each set and head, mean over seeds, as `dvc plots` reads it."""
    from askance.eval.summary import MEAN

    found = [row for row in rows if (row["metric"], row["seed"]) == ("r_auroc", MEAN)]
    return [
        {"set": row["set"], "head": row["head"], "r_auroc": defined(row["value"])}
        | {"lower": defined(row["lower"]), "upper": defined(row["upper"])}
        for row in found
    ]


def _described(name: str, upstream: bool, case: "Case", losses: "FeatureStore") -> dict[str, Any]:
    """Describe a set; `new_classes` says whether its class names are known to be new.

    Raises:
        ValueError: a zero-shot set that has a class of the upstream set.
    """
    from askance.stages.cases import class_names

    store, about = case.images.store, case.table.schema.metadata or {}
    own, known = class_names(store), class_names(losses)
    shared = sorted(own & known)
    if shared and not upstream:
        raise ValueError(
            f"expected classes never trained on in {name}, got {len(shared)} of the upstream set's,"
            f" such as {shared[0]!r}: choose others, or name {name} in evaluate.upstream"
        )
    return {
        "new_classes": bool(own and known and not shared),
        "name": name,
        "kind": "upstream" if upstream else "zero-shot",
        "images": len(store.rows),
        "queries": len(case.table),
        "recall": about.get(b"recall", b"").decode(),  # of an approximate index
        "refused": len(store.status) - len(store.rows),
        "classes": len(np.unique(store.labels)),
    }


def _about(
    heads: list[list["SavedHead"]], losses: "FeatureStore", sets: list[dict[str, Any]]
) -> dict[str, Any]:
    """Describe the run for the report."""
    from askance.eval.ranks import spearman

    first = heads[0][0]
    loss: dict[str, Any] = {"classifier": "own", "mean": float(losses.read("loss").mean())}
    if "loss_in_sample" in losses.group:
        inside, crossed = losses.read("loss_in_sample").ravel(), losses.read("loss").ravel()
        loss = {
            "classifier": "fitted",
            "in_sample": float(inside.mean()),
            "cross_fitted": float(crossed.mean()),
            "spearman": spearman(inside, crossed),
        }
    return {
        **first.backbone,
        "machine": machine(),
        "versions": versions(),
        "upstream": {
            "name": first.note["upstream"],
            "rows": len(losses.rows),
            "refused": len(losses.status) - len(losses.rows),
            "classes": len(np.unique(losses.labels)),
            "views": list(losses.views),
        },
        "sets": sets,
        "heads": [*map(_entry, heads), REFERENCE],
        "training": {
            name: first.note[name] for name in ("steps", "batch", "lr", "loss", "keep", "holdout")
        },
        "loss": loss,
    }


def _entry(seeds: list["SavedHead"]) -> dict[str, Any]:
    from askance.heads.checkpoint import tensors_hash

    traits = {trait: getattr(seeds[0].head, trait) for trait in TRAITS}
    tensors = [tensors_hash(saved.head.state_dict()) for saved in seeds]
    return {"name": seeds[0].name, "seeds": [x.seed for x in seeds], "tensors": tensors} | traits


def _best(rows: list["Row"], heads: list[dict[str, Any]]) -> str:
    """Return a line per head with its R-AUROC, and own R@1, averaged over the zero-shot sets."""
    from askance.eval.figures import MARKS, marked
    from askance.eval.summary import AVERAGE, MEAN

    means = [row for row in rows if (row["set"], row["seed"]) == (AVERAGE, MEAN)]
    cells = {(row["metric"], row["head"]): row for row in means}
    if not cells:
        return "no average: no set is zero-shot"
    recall = f"{cells['r1', '']['value']:.3f}"
    lines = [f"averaged over the zero-shot sets (the frozen embedding's R@1 is {recall}):"]
    for head in heads:
        cell, own = cells["r_auroc", head["name"]], cells.get(("r1", head["name"]))
        bounds = f"[{cell['lower']:.3f}, {cell['upper']:.3f}]"
        line = f"{marked(head):>25}  R-AUROC {cell['value']:.3f} {bounds}"
        lines.append(f"{line}  R@1 {own['value']:.3f}" if own else line)
    used = [f"{mark} {said}" for mark, said in MARKS.items() if mark in "".join(lines)]
    return "\n".join([*lines, *used])


main = command(run)

if __name__ == "__main__":
    typer.run(main)
