"""The `askance score` command: how likely the embedding of each of some images is to be wrong."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from askance.pipeline.artifacts import Place, place
from askance.pipeline.command import TooManyRefusedError, command
from askance.pipeline.progress import progress
from askance.pipeline.provenance import versions
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.features.blocks import Block, Task
    from askance.features.embed import Embedded, Embedder
    from askance.model import Model
    from askance.parts import Parts

ROWS = 1024  # of a part, the unit of writing and resuming
FORMATS = (".parquet", ".csv", ".jsonl")
NOT_FINITE = "expected a finite uncertainty, got NaN or infinity"


def run(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="folders, images, tars, tables of places, patterns; also s3://, gs://, https://"
        ),
    ],
    *,
    out: Annotated[
        Place, typer.Option(parser=place, help="the table to write: .parquet, .csv or .jsonl")
    ],
    model: Annotated[
        str, typer.Option(help="a run's folder, a head's file, a released folder, or owner/name")
    ] = ".",
    head: o.HeadName = "",
    seed: o.HeadSeed = None,
    weights: o.ModelWeights = "",
    column: Annotated[str, typer.Option(help="of tables: with places; url, path or file")] = "",
    embedding: Annotated[bool, typer.Option("--embedding", help="write embeddings, too")] = False,
    html: Annotated[Path | None, typer.Option(help="a contact sheet to write, too")] = None,
    refusals: o.Refusals = 0.0,
    batch: o.Batch = 32,
    threads: o.Threads = 2,
    device: o.Device = "auto",
) -> None:
    """Score images: write the uncertainty of each; go on where an earlier run stopped."""
    from askance.features.embed import Embedder
    from askance.features.listing import list_images
    from askance.features.recipe import Recipe
    from askance.features.views import View
    from askance.model import load
    from askance.parts import Parts
    from askance.pipeline.devices import device as pick
    from askance.sheet import write_sheet

    table = _checked(paths, out, embedding, html)
    images = list_images(paths, column)
    loaded = load(model, weights, head=head, seed=seed).to(pick(device))
    about = _about(loaded) | {"images": _digest(images), "embedding": embedding, "batch": batch}
    recipe = Recipe((View.PLAIN,), about["backbone"], batch=batch, threads=threads)
    with Parts(table, about, len(images), ROWS) as parts:
        print(parts.message, flush=True)
        for part in _embedded(Embedder(recipe, loaded.backbone, None), images, parts):
            parts.write(part.block, _scores(loaded, part, images, embedding))
        refused, first = _refused(parts.files)
        if html is not None:
            write_sheet(html, parts.files, images, about)
        parts.finish()
    print(f"{out}: {len(images):,} images, {refused:,} refused")
    if refused > refusals * len(images):
        raise TooManyRefusedError(
            f"expected at most {refusals:.2%} of {len(images):,} images refused, got {refused:,};"
            f" the first: {first['key']!r} ({first['refused']}); all are told in the column refused"
            f" of {out}: mend them, remove {out} and score again, or raise --refusals"
        )


def _checked(paths: list[str], out: Place, embedding: bool, html: Path | None) -> Path:
    """Return the path of the table, or refuse, before any work, what could not be written."""
    taken = {Path(path).resolve() for path in paths}
    if not isinstance(out, Path):
        raise typer.BadParameter(f"expected a path on this machine as --out, got {out}")
    if out.suffix not in FORMATS:
        raise typer.BadParameter(f"expected --out to end in {', '.join(FORMATS)}, got {out}")
    if embedding and out.suffix == ".csv":
        raise typer.BadParameter(
            "expected --out to end in .parquet or .jsonl with --embedding, got .csv, which has no"
            " columns of vectors"
        )
    for file in filter(None, (out, html)):
        if file.resolve() in taken:
            raise typer.BadParameter(
                f"expected --out and --html to be new files, got {file} for something else, too"
            )
        taken.add(file.resolve())
        if file.is_dir():
            raise IsADirectoryError(f"expected a file to write, got the folder {file}: name a file")
    return out


def _about(model: "Model") -> dict[str, Any]:
    """Return all about the model that decides a score."""
    from askance.features.embed import COMPUTATION
    from askance.features.views import RENDERING
    from askance.heads.checkpoint import tensors_hash

    tensors = model.head.state_dict() | {"quantiles": model.quantiles}
    return {
        **model.saved.backbone,
        "head": f"{model.saved.name}-{model.saved.seed}",
        "tensors": tensors_hash(tensors),
        "rendering": RENDERING,
        "computation": COMPUTATION,
        "device": model.device.type,
        "versions": versions(),
    }


def _digest(images: pa.Table) -> str:
    total = hashlib.sha256()
    for batch in images.combine_chunks().to_batches(max_chunksize=ROWS):
        total.update(batch.serialize())
    return total.hexdigest()


def _embedded(embedder: "Embedder", images: pa.Table, parts: "Parts") -> "Iterator[Embedded]":
    """Embed the images of the parts that are missing."""
    missing = parts.missing()
    if not missing:
        return
    rows = sum(len(block.rows) for block in missing)
    with progress(f"score {parts.out.name}", rows, "images") as advance:
        for part in embedder.embed(_task(images, block) for block in missing):
            yield part
            advance(len(part.rows))


def _task(images: pa.Table, block: "Block") -> "Task":
    from askance.features.blocks import Task

    samples = images.slice(block.start, len(block.rows))
    samples = samples.append_column("row", pa.array(block.rows, pa.int64()))
    return Task(block, samples.append_column("label", pa.array(np.zeros(len(samples), np.int32))))


def _scores(model: "Model", part: "Embedded", images: pa.Table, embedding: bool) -> pa.Table:
    """Return the rows of a part; what is not known of an image is null, and `refused` says why."""
    import torch

    rows = part.arrays["embedding"][:, 0]
    found = model.head.uncertainty(torch.from_numpy(rows).to(model.device))
    uncertainty, percentile = (x.cpu().numpy() for x in (found, model.percentile(found)))
    why = dict.fromkeys(np.flatnonzero(~np.isfinite(uncertainty)).tolist(), NOT_FINITE)
    why |= {row - part.block.start: reason for row, reason in part.refused.items()}
    bad = np.isin(np.arange(len(rows)), list(why))
    columns = {
        "key": images["key"].slice(part.block.start, len(rows)),
        "uncertainty": pa.array(uncertainty, mask=bad),
        "percentile": pa.array(percentile, mask=bad | np.isnan(percentile)),
        "refused": pa.array([why.get(place) for place in range(len(rows))], pa.string()),
    }
    if embedding:
        values = pa.array(rows.ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            values, rows.shape[1], mask=pa.array(bad)
        )
    return pa.table(columns)


def _refused(files: list[Path]) -> tuple[int, dict[str, str]]:
    """Return how many images were refused, and the first of them."""
    import pyarrow.dataset as ds

    table = ds.dataset([str(file) for file in files])
    found = table.filter(ds.field("refused").is_valid())
    return found.count_rows(), next(iter(found.head(1, columns=["key", "refused"]).to_pylist()), {})


main = command(run)

if __name__ == "__main__":
    typer.run(main)
