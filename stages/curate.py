"""curate: heads, stores and neighbours to the images, classes and labels that deserve a look.

What a label is worth is asked only in sets whose classes are the upstream's, of a classifier that
never saw the image: the probe, or, in the set it was fitted to, those of its cross-fitting.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from jaxtyping import Float64, Int64, Integer

from askance.pipeline.artifacts import atomic, defined, write_json
from askance.pipeline.command import command
from askance.pipeline.progress import progress
from askance.pipeline.provenance import versions
from askance.pipeline.runs import Run
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.eval.curation import Duplicates
    from askance.features.classify import Classifier
    from askance.features.store import FeatureStore
    from askance.heads.checkpoint import SavedHead
    from askance.stages.cases import Images


class Curated(NamedTuple):
    """A set's tables: a row per query, class, pair of near-duplicates, case of safe retrieval."""

    images: pa.Table
    classes: pa.Table
    duplicates: pa.Table
    safe: pa.Table


def run(
    models: o.Models,
    probe: o.Probe,
    stores: o.Stores,
    neighbours: o.Neighbours,
    out: Annotated[Path, typer.Argument(help="the folder to write, results/curation")],
    *,
    sets: Annotated[list[str], typer.Option(help="to curate; repeat for more")],
    upstream: o.Upstream = [],  # noqa: B006 - typer copies it
    head: Annotated[str, typer.Option(help="whose doubt counts; none named: the first")] = "",
    uncertain: Annotated[
        float, typer.Option(min=0, max=1, help="percentile from which an image is uncertain")
    ] = 0.5,
    similarity: Annotated[
        float, typer.Option(min=-1, max=1, help="cosine from which images are near-duplicates")
    ] = 0.98,
    shown: Annotated[int, typer.Option(min=1, help="rows of each list in summary.json")] = 8,
) -> None:
    """Rank a set's images by doubt, and find suspect labels, near-duplicates and hard classes."""
    from askance.features.store import FeatureStore
    from askance.stages.cases import Images, check_named, read_neighbours
    from askance.stages.uncertainties import read_heads

    check_named("curate.upstream", upstream, sets)
    this, losses = Run("curate"), FeatureStore.open(probe)
    seeds = _seeds(read_heads(models, losses), head)
    summaries = []
    with atomic(out) as folder, progress("curate", len(sets), "sets") as advance:
        for name in sets:
            store = FeatureStore.open(stores / f"{name}.zarr")
            for saved in seeds:
                saved.check_backbone(store.backbone, str(store.path))
            table = read_neighbours(neighbours / f"{name}.parquet", store=store)
            images = Images(store, table["row"].to_numpy())
            labels = _labels(images, losses) if name in upstream else None
            found = curated(name, images, table, seeds, labels, uncertain, similarity)
            for kind, rows in found._asdict().items():
                (folder / kind).mkdir(parents=True, exist_ok=True)
                pq.write_table(rows, folder / kind / f"{name}.parquet")
            summaries.append(summary(name, found, shown))
            advance(1)
        about: dict[str, Any] = {"head": seeds[0].name, "seeds": [saved.seed for saved in seeds]}
        about |= {"uncertain": uncertain, "similarity": similarity, "versions": versions()}
        write_json(folder / "summary.json", about | {"sets": summaries})
        write_json(folder / "curves.json", [x for each in summaries for x in _curve(each)])
    this.log(out, sum(each["images"] for each in summaries), "images")
    print("\n".join([f"{out}: by {seeds[0].name}", *map(_line, summaries)]))


def _seeds(heads: list[list["SavedHead"]], name: str) -> list["SavedHead"]:
    """Return the seeds of a head; of none named, the report's: the first without a map."""
    if not name:
        return min(heads, key=lambda seeds: seeds[0].head.mapped)
    found = {seeds[0].name: seeds for seeds in heads}
    if name not in found:
        raise ValueError(f"expected one of the heads {', '.join(found)}, got {name!r}: train it")
    return found[name]


def _labels(images: "Images", losses: "FeatureStore") -> dict[str, np.ndarray]:
    """Return what a classifier that never saw them says of the images' labels, as columns."""
    from scipy.special import softmax

    from askance.eval.curation import suspects
    from askance.stages.cases import columns_of, logits

    store, columns = images.store, np.asarray(losses.array("classifier/label")[:])
    column, places = columns_of(store, losses), images.places
    fold, classifiers = _unseen(store, losses)

    def probabilities() -> Iterator[np.ndarray]:
        return (softmax(some, axis=1) for some in logits(images, classifiers, fold[places]))

    found = suspects(probabilities, column[places], len(columns))
    return vars(found) | {"suggested": columns[found.suggested]}


def _unseen(
    store: "FeatureStore", losses: "FeatureStore"
) -> tuple[Int64[np.ndarray, " n"], list["Classifier"]]:
    """Return which of some classifiers never saw each image, and these classifiers.

    Raises:
        ValueError: the probe was fitted to these images, but as another store has them.
    """
    from askance.features.classify import Classifier
    from askance.features.targets import check_same

    if "fold" not in losses.group or losses.content["index"] != store.content["index"]:
        return np.zeros(len(store.rows), np.int64), [losses.classifier]
    check_same(store, losses)
    weights, biases = (np.asarray(losses.array(f"folds/{n}")[:]) for n in ("weight", "bias"))
    return losses.read("fold").astype(np.int64), list(map(Classifier, weights, biases))


def curated(
    name: str,
    images: "Images",
    neighbours: pa.Table,
    seeds: list["SavedHead"],
    labels: dict[str, np.ndarray] | None,
    uncertain: float,
    similarity: float,
) -> Curated:
    """Join all that is known of a set's queries, its classes and near-duplicates.

    `labels` are of the queries. Images of one percentile, as all that are less certain than the
    upstream ones, are ordered by their ranks among themselves, the mean over seeds.
    """
    from askance.eval.abstention import curve
    from askance.eval.curation import by_class, kinds, ranks
    from askance.eval.ranks import levels, midranks
    from askance.stages.cases import Images
    from askance.stages.uncertainties import percentile, uncertainty

    store, places, label = images.store, images.places, images.label
    every = uncertainty(seeds, Images(store, store.rows), "plain")  # the gallery's, too
    upstream, among = percentile(seeds, every), np.mean([*map(midranks, every)], axis=0)
    doubt = levels(upstream) * float(len(among)) + levels(among)
    upstream, own = upstream[places], doubt[places]
    hit, everything = neighbours["hit"].to_numpy(), _named(store)
    nearest = np.searchsorted(store.rows, neighbours["neighbour"].to_numpy())
    pairs = _near_duplicates(images, nearest, neighbours["similarity"].to_numpy(), similarity)
    group = pairs.group[places]
    found = everything.take(pa.array(places))
    columns = {
        "percentile": upstream,
        "rank": ranks(own, np.zeros_like(label)),
        "rank_in_class": ranks(own, label),
        "hit": hit,
        "group": np.where(group < 0, -1, store.rows[group]),
    }
    if labels is not None:
        suspect = labels["suggested"] != label
        columns |= labels | {"suggested_class": _names(store, labels["suggested"])}
        columns |= {"suspect": suspect, "kind": kinds(upstream >= uncertain, suspect)}
    for column, values in columns.items():
        found = found.append_column(column, pa.array(values))
    classes, ends = (vars(by_class(values, hit, label)) for values in (upstream, own))
    classes |= {end: found["key"].take(pa.array(ends[end])) for end in ("uncertain", "certain")}
    classes |= {"class": _names(store, classes["label"])}
    safe = curve(store.slices("plain"), store.labels, doubt, places, nearest)
    tables = found, pa.table(classes), _pairs(everything, pairs), pa.Table.from_pylist(safe)
    return Curated(*(t.add_column(0, "set", pa.repeat(name, len(t))) for t in tables))


def _named(store: "FeatureStore") -> pa.Table:
    """Return what is known of every done row without looking at it."""
    split = store.index.table["split"].take(pa.array(store.rows))
    columns = {"row": store.rows, "key": store.keys, "label": store.labels}
    return pa.table(columns | {"class": _names(store, store.labels), "split": split})


def _names(store: "FeatureStore", label: Integer[np.ndarray, " m"]) -> pa.Array:
    """Return the names of labels; `class 3` where the source has numbers only."""
    found, which = np.unique(label, return_inverse=True)
    known = store.index.classes
    return pa.array([known.get(x, f"class {x}") for x in found.tolist()]).take(pa.array(which))


def _near_duplicates(
    images: "Images",
    nearest: Int64[np.ndarray, " q"],
    similarity: Float64[np.ndarray, " q"],
    above: float,
) -> "Duplicates":
    """Return the near-duplicates among all done rows, by the neighbours of the queries."""
    from askance.eval.curation import near_duplicates

    n = len(images.store.rows)
    neighbour, cosine = np.zeros(n, np.int64), np.full(n, -np.inf)
    neighbour[images.places], cosine[images.places] = nearest, similarity
    return near_duplicates(neighbour, cosine, above)


def _pairs(images: pa.Table, pairs: "Duplicates") -> pa.Table:
    """Return a row per pair of near-duplicates, with what is known of both images."""
    first, second = images.take(pairs.first), images.take(pairs.second)
    group = images["row"].take(pa.array(pairs.group[pairs.first]))
    columns = {"group": group, "similarity": pairs.similarity, "exact": pairs.exact}
    for what in ("label", "split"):
        columns[f"cross_{what}"] = pc.not_equal(first[what], second[what])
    for what in images.column_names:
        columns |= {f"first_{what}": first[what], f"second_{what}": second[what]}
    return pa.table(columns)


def summary(name: str, found: Curated, shown: int) -> dict[str, Any]:
    """Return a set's counts, and the first rows of each of its lists, as JSON has them.

    `lists` has, of images, `uncertain` and `certain`, and, where labels were asked about,
    `ambiguous` (the most uncertain first), `mislabelled` and `both` (first where the suggested
    class is the most probable against the label's); `pairs` of near-duplicates, of two labels or
    splits first, then the most similar; and `classes`, the most uncertain first. `safe` is safe
    retrieval, all of it.
    """
    from askance.eval.curation import class_agreement

    images, classes, pairs, safe = found
    crossing = [(column, "descending") for column in ("cross_label", "cross_split", "similarity")]
    lists = {
        "uncertain": images.sort_by("rank"),
        "certain": images.sort_by([("rank", "descending")]),
        "pairs": pairs.sort_by(crossing),
        "classes": classes.sort_by([("mean", "descending")]),
    }
    if "kind" in images.column_names:
        margin = pc.subtract(images["suggested_confidence"], images["confidence"])
        by_margin = images.append_column("margin", margin).sort_by([("margin", "descending")])
        orders = {"ambiguous": lists["uncertain"], "mislabelled": by_margin, "both": by_margin}
        lists |= {kind: t.filter(pc.equal(t["kind"], kind)) for kind, t in orders.items()}
    value, reason = class_agreement(classes["mean"].to_numpy(), classes["recall"].to_numpy())
    return {
        "name": name,
        "images": len(images),
        **_counts(images, pairs),
        "class_agreement": defined(value),
        "reason": reason,
        "safe": [row | {"recall": defined(row["recall"])} for row in safe.to_pylist()],
        "lists": {kind: table.slice(0, shown).to_pylist() for kind, table in lists.items()},
    }


def _curve(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the recall by the share of images that is kept, as `dvc plots` reads it."""
    for row in summary["safe"]:
        if row["rule"] == "global":
            yield {"set": summary["name"]} | {
                name: row[name] for name in ("case", "share", "recall")
            }


def _counts(images: pa.Table, pairs: pa.Table) -> dict[str, Any]:
    """Return how many images are of each kind (None: not asked about), and the duplicates."""
    from askance.eval.curation import KINDS

    kinds = None
    if "kind" in images.column_names:
        kinds = {kind: pc.sum(pc.equal(images["kind"], kind)).as_py() for kind in KINDS}
    grouped = images["group"].filter(pc.greater_equal(images["group"], 0))
    duplicates = {"images": len(grouped), "groups": len(grouped.unique()), "pairs": len(pairs)}
    flags = ("exact", "cross_label", "cross_split")
    duplicates |= {flag: pc.sum(pairs[flag], min_count=0).as_py() for flag in flags}
    return {"kinds": kinds, "duplicates": duplicates}


def _line(summary: dict[str, Any]) -> str:
    twins, kinds = summary["duplicates"], summary["kinds"] or {}
    text = f"{summary['name']}: {summary['images']:,} images, {twins['images']:,} near-duplicates"
    text += f" in {twins['groups']:,} groups, {twins['cross_label']:,} pairs of two labels"
    return "; ".join([text, *(f"{count:,} {kind}" for kind, count in kinds.items())])


main = command(run)

if __name__ == "__main__":
    typer.run(main)
