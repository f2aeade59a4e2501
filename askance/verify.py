"""The `askance verify` command: whether a store is what was written, and what extract would write.

Every file is compared with its hash, a sample of embeddings with what their pictures give, and all
losses with what embedding and classifier give. With --repair, what is damaged is made again.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from askance.features.recipe import Recipe
from askance.features.views import View
from askance.pipeline.artifacts import Place, place
from askance.pipeline.command import command
from askance.pipeline.progress import progress

if TYPE_CHECKING:
    from askance.features.blocks import Block
    from askance.features.index import Index
    from askance.features.verify import Finding, Findings, Told
    from askance.features.writer import StoreWriter

Said = dict[str, Any]  # what a manifest says


def run(
    store: Annotated[Place, typer.Argument(parser=place, help="the store: a folder, or a URL")],
    *,
    data: Annotated[
        Path | None, typer.Option(help="folder of the prepared set; default: where it was")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="pretrained, or a checkpoint; default: as extract was told")
    ] = "",
    device: Annotated[
        str, typer.Option(help="auto: of the store's kind where there is one; cpu, cuda, ...")
    ] = "auto",
    sample: Annotated[
        float, typer.Option(min=0, max=1, help="share of the rows to embed again; 0: none")
    ] = 0.001,
    repair: Annotated[bool, typer.Option(help="make again what is damaged")] = False,
) -> None:
    """Check every file, a sample of the embeddings and all losses of a store.

    Each finding is a line; the exit code is 1 if anything is wrong or could not be checked.
    """
    findings = _check(store, data, weights, device, sample)
    for _ in range(2 if repair else 0):  # some damage shows only once other damage is mended
        if not _show(findings):
            break
        for line in _repair(store, data, weights, device, findings):
            print(line, flush=True)
        findings = _check(store, data, weights, device, sample)
        print("after the repair:")
    if bad := _show(findings):
        raise ValueError(
            f"expected a whole store, got {bad} findings in {store}"
            + (": --repair makes again what is damaged" if not repair else "")
        )
    print(f"{store}: {', '.join(f.what for f in findings if f.level == 'ok')}")


def _show(findings: "list[Finding]") -> int:
    """Print all that is not ok; return how many are no mere hints."""
    for finding in findings:
        if finding.level != "ok":
            print(finding)
    return sum(finding.level in ("wrong", "not checked") for finding in findings)


def _check(
    store: Place, data: Path | None, weights: str, device: str, sample: float
) -> "list[Finding]":
    from askance.features.blocks import plan
    from askance.features.index import read_index
    from askance.features.store import MANIFEST
    from askance.features.verify import Finding, check_accounts, check_files

    told = _told(store)
    size = sum(told.sizes[file] for file in told.files if file in told.sizes)
    with progress(f"verify {store.name}", size, "bytes") as advance:
        found = list(check_files(told, advance))
    found.append(Finding("ok", f"{len(told.sizes)} files, {sum(told.sizes.values()):,} bytes"))
    if {MANIFEST, *told.created} & {finding.file for finding in found}:
        what = "accounts, embeddings and losses: the files of the store's creation are damaged"
        return [*found, Finding("not checked", what)]
    said, index = told.sealed[MANIFEST], read_index(store / "status")
    found += [*check_accounts(told, index), Finding("ok", f"{len(index)} rows")]
    bad = {finding.block for finding in found}
    blocks = plan(len(index), said["content"]["block"])
    whole = [b for b in blocks if b.number in told.records and b.number not in bad]
    if "recipe" not in said["made"]:
        return [*found, Finding("ok", "a probe's store: no embeddings to check")]
    found += _check_scores(store, said, whole)
    if not sample or "imported" in said["content"]:  # whose pictures are not known
        return [*found, Finding("ok", "no row embedded again")]
    index = replace(index, folder=_data(said, data))
    recipe = _recipe(said, weights, device)
    return [*found, *_check_sample(told, index, recipe, whole, sample)]


def _told(store: Place) -> "Told":
    from askance.features.store import MANIFEST
    from askance.features.verify import Told

    told = Told.read(store)
    if not {MANIFEST, "zarr.json"} & told.sizes.keys():
        raise ValueError(f"expected a store at {store}, got none: run extract")
    return told


def _data(said: Said, data: Path | None) -> Path:
    return data or Path(said["made"]["data"])


def _recipe(said: Said, weights: str, device: str) -> Recipe:
    made = said["made"]["recipe"]
    views = tuple(View(view) for view in made["views"])
    if device == "auto" and said["content"]["device"] == "cpu":
        device = "cpu"
    changes = {"views": views, "weights": weights or made["weights"], "device": device}
    return Recipe(**(made | changes))


def _check_scores(store: Place, said: Said, blocks: "list[Block]") -> "Findings":
    from askance.features.recompute import check_scores
    from askance.features.store import FeatureStore

    if said["content"]["classifier"] and blocks:
        rows = sum(len(block.rows) for block in blocks)
        with progress(f"losses of {store.name}", rows, "rows") as advance:
            yield from check_scores(FeatureStore(store), blocks, advance)


def _check_sample(
    told: "Told", index: "Index", recipe: Recipe, blocks: "list[Block]", share: float
) -> "Findings":
    from askance.features.embed import Embedder
    from askance.features.recompute import check_known, check_refused, check_sample, draw
    from askance.features.store import MANIFEST, FeatureStore
    from askance.features.verify import Finding
    from askance.features.writer import StoreWriter

    try:
        embedder = Embedder.load(recipe)
        writer = StoreWriter(told.path, embedder.layout(index), index)
    except (OSError, ValueError) as error:
        yield Finding("not checked", f"embeddings: {error}")
        return
    changed = _changed(told.sealed[MANIFEST], writer)
    if "weights" in changed:
        yield Finding("wrong", f"other weights than the store was made with: {recipe.weights}")
    elif changed - {"device"}:
        what = f"embeddings: other {', '.join(sorted(changed))} in this version than in the store"
        yield Finding("not checked", what)
    else:
        store = FeatureStore(told.path)
        yield from check_known(store, writer)
        tasks = draw(index, store.fingerprint, blocks, recipe.images, share)
        count = sum(len(task.samples) for task in tasks)
        with progress(f"embed {told.path.name}", count, "img") as advance:
            try:
                yield from check_sample(store, embedder, tasks, advance)
            except OSError as error:  # not of one shard: a disk or a server is gone
                yield Finding("not checked", f"embeddings: {error}")
                return
        refused = {b: [int(row) for row in told.records[b.number]["refused"]] for b in blocks}
        yield from check_refused(embedder, index, {b: rows for b, rows in refused.items() if rows})


def _changed(said: Said, writer: "StoreWriter") -> set[str]:
    names = said["content"].keys() | writer.content.keys()
    return {name for name in names if said["content"].get(name) != writer.content.get(name)}


def _repair(
    store: Place, data: Path | None, weights: str, device: str, findings: "list[Finding]"
) -> Iterator[str]:
    """Make again what is damaged, and nothing else; yield a line on each.

    Raises:
        ValueError: what it takes is not there: the recipe, the index, the same weights.
    """
    from askance.features.embed import Embedder
    from askance.features.repair import embed_again, find_index, restore, said_by
    from askance.features.store import ACCOUNT, MANIFEST, REFUSALS
    from askance.features.writer import StoreWriter

    told = _told(store)
    files, bad = {finding.file for finding in findings}, {finding.block for finding in findings}
    if bad == {None} and not files & {MANIFEST, ACCOUNT, REFUSALS, *told.created}:
        return
    said = said_by(told)
    if "recipe" not in said["made"]:
        raise ValueError(f"expected a store of embeddings, got {store}: run probe again")
    if "imported" in said["content"]:
        raise ValueError(f"expected a store of extract, got {store}: remove it, and import again")
    index = find_index(store, said["content"]["index"], _data(said, data))
    embedder = Embedder.load(_recipe(said, weights, device))
    layout = replace(embedder.layout(index), made=said["made"])
    writer = StoreWriter(store, layout, index)
    if changed := _changed(said, writer):
        raise ValueError(
            f"expected what {store} was made with, got other {', '.join(sorted(changed))}: repair"
            " with the same device, weights and version"
        )
    yield from restore(writer, told, files)
    blocks = [block for block in writer.blocks if block.number in bad]
    with writer:
        with progress(f"repair {store.name}", sum(len(b.rows) for b in blocks), "img") as advance:
            yield from embed_again(writer, embedder, told, blocks, advance)
        if not writer.missing():
            try:
                writer.finish()
            except ValueError as error:  # a block that is left as it is
                yield str(error)


main = command(run)

if __name__ == "__main__":
    typer.run(main)
