"""prepare: named sources, or tar shards as they are, to a set: shards and their index."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.pipeline.artifacts import atomic
from askance.pipeline.command import command
from askance.pipeline.runs import Run

if TYPE_CHECKING:
    import pyarrow as pa


def run(
    set_folder: Annotated[Path, typer.Argument(help="data/<set>; an earlier one is replaced")],
    sources: Annotated[
        list[str], typer.Option("--source", help="NAME option=value ...; repeat to unite several")
    ],
) -> None:
    """Make a set out of sources: list and label their samples, and pack those without a shard.

    Sources: cifar10, digits, emoji, orl, folder path=..., shards path=...

    Published sets (docs/data.md), read from path=... or downloaded: caltech101, cifar100, dtd,
    flowers102, pets, sun397 and svhn; cifar10h (votes=...). From path=... only: resisc45, benthic,
    pig, treeversity, turkey and cifar10h-folds.

    Archives that you have (docs/data.md): cub, cars, sop and imagenet21k, each with path=...

    Filters: split=..., classes=..., folds=N fold=..., limit=N (images per class).
    """
    from askance.features.index import write_index
    from askance.features.sources.selection import parse
    from askance.features.sources.sets import contents, label, pack, unite

    this = Run("prepare")
    _check_replaceable(set_folder)
    selections = [parse(line) for line in sources]
    table, classes = label(unite(selections))
    _check_apart(set_folder, table)
    with atomic(set_folder) as folder:
        table = pack(folder, set_folder.resolve().name, table, selections)
        write_index(folder, table, classes, contents(folder, table))
    this.log(set_folder, len(table), "images")
    print(f"{set_folder}: {_summary(table)}")


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but a set: the argument may be a slip of the hand."""
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name != "index.parquet" and not name.endswith(".tar")]
    if foreign or (names and "index.parquet" not in names):
        raise ValueError(
            f"expected a new folder or a prepared set to replace, got {folder} with"
            f" {(foreign or names)[0]!r}: name another folder, or remove it yourself"
        )


def _check_apart(folder: Path, table: "pa.Table") -> None:
    """Refuse to replace a folder that holds the very shards to index."""
    for shard in filter(None, table["shard"].unique().to_pylist()):
        if folder.resolve() in Path(shard).resolve().parents:
            raise ValueError(
                f"expected shards outside of the set's folder, which is replaced, got {shard}: name"
                " another folder for the set"
            )


def _summary(table: "pa.Table") -> str:
    labels, shards = (len(table[column].unique()) for column in ("label", "shard"))
    counts = [
        (pair["values"], pair["counts"]) for pair in table["split"].value_counts().to_pylist()
    ]
    splits = "".join(f", {count:,} {split}" for split, count in sorted(counts) if split)
    return f"{len(table):,} images, {labels:,} classes, {shards:,} shards{splits}"


main = command(run)

if __name__ == "__main__":
    typer.run(main)
