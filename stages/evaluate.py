"""evaluate: heads, stores and neighbours to metrics, per-query tables and curves.

A head that maps the embedding is asked about the neighbours that its own map finds, per seed; all
others about those of the frozen embedding, which retrieve has found.
"""

from collections.abc import Iterator
from itertools import chain, groupby, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from askance.pipeline.artifacts import Place, atomic, place, write_json
from askance.pipeline.command import command
from askance.pipeline.progress import progress
from askance.pipeline.provenance import machine, versions

if TYPE_CHECKING:
    import torch

    from askance.eval.summary import Queries, Row, Scores
    from askance.features.store import FeatureStore
    from askance.heads.checkpoint import SavedHead

AT_A_TIME = 4096  # queries
NEIGHBOUR_DISTANCE = "neighbour-distance"  # a reference: it needs the gallery, not just the image
TRAITS = ("trained", "needs_classifier", "of_backbone")
REFERENCE: dict[str, Any] = {"name": NEIGHBOUR_DISTANCE, "seeds": [0], "reference": True}
REFERENCE |= dict.fromkeys((*TRAITS, "mapped"), False)


def run(
    models: Annotated[Path, typer.Argument(help="the folder of heads")],
    probe: Annotated[
        Place, typer.Argument(parser=place, help="the store with the upstream classifier")
    ],
    stores: Annotated[Place, typer.Argument(parser=place, help="the folder of feature stores")],
    neighbours: Annotated[Path, typer.Argument(help="the folder of neighbours")],
    out: Annotated[Path, typer.Argument(help="the folder of results to write")],
    *,
    sets: Annotated[list[str], typer.Option(help="the sets to evaluate on; repeat for more")],
    upstream: Annotated[
        list[str], typer.Option(help="those among them whose classes are the upstream's")
    ] = [],  # noqa: B006 - typer copies it
    resamples: Annotated[int, typer.Option(min=1, help="of the bootstrap")] = 1000,
) -> None:
    """Score every query with every head, and ask how well that foretold a wrong neighbour."""
    from askance.eval.summary import average, curve, nested, summarise
    from askance.features.store import FeatureStore

    if unknown := set(upstream) - set(sets):
        raise ValueError(f"expected evaluate.upstream among {sets}, got {sorted(unknown)}")
    losses = FeatureStore.open(probe)
    heads = _heads(models, losses)
    summaries, curves, described, tables = [], [], [], {}
    with progress("evaluate", len(sets) * (len(heads) + 1), "head-sets") as advance:
        for name in sets:
            store = FeatureStore.open(stores / f"{name}.zarr")
            table = _neighbours(neighbours / f"{name}.parquet", store)
            queries = _queries(name, table, store, losses if name in upstream else None)
            described.append(_described(name, name in upstream, store, losses))
            # Each head is scored as its turn in the summary comes: progress is in whole heads.
            lazily, again = tee(chain(_scores(heads, store), [_reference(table)]))
            summaries.append(summarise(queries, lazily, resamples, advance))
            scores = list(again)
            curves += [point for head in scores for point in curve(queries, head)]
            tables[name] = _per_query(table, heads, scores)
    rows = [row for summary in summaries for row in summary.rows] + average(summaries)
    with atomic(out / "queries") as folder:
        folder.mkdir()
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet")
    with atomic(out / "table.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(out / "curves.json", curves)
    write_json(out / "metrics.json", nested(rows))
    about = _about(heads, losses, described)
    write_json(out / "run.json", about)
    print(_best(rows, about["heads"]))


def _heads(folder: Path, losses: "FeatureStore") -> list[list["SavedHead"]]:
    """Read all heads: a list per name, its seeds in order, in the order they were asked for."""
    from askance.heads.checkpoint import load

    saved = [load(path) for path in folder.glob("*.safetensors")]
    if not saved:
        raise FileNotFoundError(f"expected heads in {folder}, got none: run train")
    if any(head.note["probe"] != losses.fingerprint for head in saved):
        raise ValueError(f"expected heads trained on {losses.path}, got others: run train again")
    saved.sort(key=lambda head: (head.note["place"], head.seed))
    return [list(group) for _, group in groupby(saved, key=lambda head: head.name)]


def _neighbours(path: Path, store: "FeatureStore") -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the neighbours of {store.path}, got no {path}: run retrieve"
        )
    table = pq.read_table(path)
    made_from = (table.schema.metadata or {}).get(b"store", b"").decode()
    if made_from != store.fingerprint or not np.array_equal(table["row"], store.rows):
        raise ValueError(f"expected neighbours in {store.path}, got those of another: run retrieve")
    return table


def _queries(
    name: str, table: pa.Table, store: "FeatureStore", losses: "FeatureStore | None"
) -> "Queries":
    """Join a set's hits with what the upstream classifier says, if it knows the classes."""
    from askance.eval.summary import Queries

    hit = table["hit"].to_numpy()
    if losses is None:
        return Queries(name, hit)
    from askance.features.classify import scores

    columns = losses.array("classifier/label")[:]
    label = store.labels
    foreign = np.setdiff1d(label, columns)
    if len(foreign) or store.index.classes != losses.index.classes:
        raise ValueError(
            f"expected the classes of the upstream store in {store.path}, got others (labels such"
            f" as {foreign[:3].tolist()}): leave {name} out of evaluate.upstream"
        )
    column, embedding = np.searchsorted(columns, label), store.embedding("plain")
    loss, correct = [], []
    for start in range(0, len(column), AT_A_TIME):  # all logits at once could fill the memory
        part = slice(start, start + AT_A_TIME)
        logits = losses.classifier.logits(embedding[part])
        loss.append(scores(logits[:, None], column[part])["loss"][:, 0])
        correct.append(logits.argmax(1) == column[part])
    return Queries(name, hit, np.concatenate(correct), np.concatenate(loss))


def _scores(heads: list[list["SavedHead"]], store: "FeatureStore") -> Iterator["Scores"]:
    """Yield each head's uncertainties, and the hits of its own neighbours if it maps."""
    import torch

    from askance.eval.summary import Scores

    for saved in chain(*heads):
        saved.check_backbone(store.backbone, str(store.path))
    views = [torch.from_numpy(store.embedding(view)) for view in ("plain", "crop")]
    for seeds in heads:
        plain, cropped = (
            np.stack([saved.head.uncertainty(view).double().numpy() for saved in seeds])
            for view in views
        )
        hit = None
        if _mapped(seeds):
            hit = np.stack([_own_hit(saved, views[0], store.labels) for saved in seeds])
        yield Scores(seeds[0].name, [saved.seed for saved in seeds], plain, cropped, hit)


def _mapped(seeds: list["SavedHead"]) -> bool:
    """Say whether a head searches by a representation of its own."""
    from askance.heads.mapped import MappedHead

    return isinstance(seeds[0].head, MappedHead)


def _own_hit(saved: "SavedHead", embedding: "torch.Tensor", label: np.ndarray) -> np.ndarray:
    """Return which queries have the label of the neighbour that a head's own map finds, (n,)."""
    import torch

    from askance.eval.retrieval import neighbours
    from askance.heads.head import AT_A_TIME

    with torch.inference_mode():
        mapped = torch.cat([saved.head.representation(x) for x in embedding.split(AT_A_TIME)])
    return label == label[neighbours(mapped.numpy()).row]


def _reference(table: pa.Table) -> "Scores":
    """Return 1 - similarity of the neighbour, as if it were a head."""
    from askance.eval.summary import Scores

    return Scores(NEIGHBOUR_DISTANCE, [0], 1 - table["similarity"].to_numpy()[None])


def _per_query(table: pa.Table, heads: list[list["SavedHead"]], scores: list["Scores"]) -> pa.Table:
    """Return one row per query: its neighbour, each head's and seed's score, and percentiles.

    `hit` is of the frozen embedding, `hit/<head>/<seed>` of a head with neighbours of its own.
    """
    columns = {}
    for head in scores:
        for run, seed in enumerate(head.seeds):
            columns[f"uncertainty/{head.head}/{seed}"] = head.plain[run]
            if head.hit is not None:
                columns[f"hit/{head.head}/{seed}"] = head.hit[run]
    for seeds, head in zip(heads, scores, strict=False):  # all but the reference
        each = [saved.percentile(plain) for saved, plain in zip(seeds, head.plain, strict=True)]
        columns[f"percentile/{head.head}"] = np.mean(each, axis=0)
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    return table


def _described(
    name: str, upstream: bool, store: "FeatureStore", losses: "FeatureStore"
) -> dict[str, Any]:
    """Describe a set; `new_classes` says whether its class names are known to be new.

    Raises:
        ValueError: a zero-shot set that has a class of the upstream set.
    """
    own, known = _class_names(store), _class_names(losses)
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
        "queries": len(store.rows),
        "refused": len(store.status) - len(store.rows),
        "classes": len(np.unique(store.labels)),
    }


def _class_names(store: "FeatureStore") -> set[str]:
    """Return the names of the classes that occur, without their source; none for bare numbers."""
    found = (store.index.classes.get(label, "") for label in np.unique(store.labels).tolist())
    return {name.rpartition("/")[2] for name in found if name}


def _about(
    heads: list[list["SavedHead"]], losses: "FeatureStore", sets: list[dict[str, Any]]
) -> dict[str, Any]:
    """Describe the run for the report."""
    from askance.eval.metrics import spearman

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
    traits = {trait: getattr(seeds[0].head, trait) for trait in TRAITS}
    traits |= {"mapped": _mapped(seeds)}
    return {"name": seeds[0].name, "seeds": [saved.seed for saved in seeds]} | traits


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
