"""The `askance plan` command: an extraction's cost beforehand, and against what became of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from askance.features.recipe import Recipe
from askance.pipeline.artifacts import Place, place
from askance.pipeline.command import command
from askance.stages import options

if TYPE_CHECKING:
    from askance.features.cost import Actual, StoreCost
    from askance.features.forecast import Forecast, Scheduled
    from askance.features.speed import Memory

TOP_ABOVE = 1_000  # classes: all logits of more take more than the embeddings


def run(
    data: Annotated[Path | None, typer.Argument(help="folder of a prepared set")] = None,
    store: Annotated[
        Place | None, typer.Argument(parser=place, help="where extract writes, or wrote")
    ] = None,
    *,
    imagenet21k: Annotated[
        bool, typer.Option("--imagenet21k", help="the paper's schedule; needs no DATA")
    ] = False,
    rate: Annotated[float, typer.Option(min=0, help="img/s in all; 0: measured here")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="to measure for")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="instead of tables")] = False,
    views: options.Views = [],  # noqa: B006 - typer's list
    backbone: options.BackboneName = "",
    weights: options.Weights = Recipe.weights,
    size: options.Size = Recipe.size,
    preprocess: options.Preprocess = Recipe.preprocess,
    precision: options.OfProducts = Recipe.precision,
    compile: options.Compile = Recipe.compile,  # noqa: A002
    dtype: options.OfEmbeddings = Recipe.dtype,
    classifier: options.OwnClassifier = Recipe.classifier,
    logits: options.Logits = Recipe.logits,
    seed: options.Seed = Recipe.seed,
    batch: options.Batch = Recipe.batch,
    block: options.BlockRows = Recipe.block,
    threads: options.Threads = Recipe.threads,
    refusals: options.Refusals = 0.0,
    retry: options.Retry = False,
    device: options.Device = Recipe.device,
    scheduler: options.Scheduler = "none",
    workers: options.Workers = 1,
) -> None:
    """Say what extract would take with the same options, and what it took where STORE is there.

    Options that cost nothing are taken all the same: a command line of extract's is one of plan's.
    """
    if not imagenet21k and not (data and views and backbone):
        raise typer.BadParameter("expected DATA, --views and --backbone, or --imagenet21k")
    from askance.features import forecast

    if data is None or imagenet21k:
        plans = forecast.imagenet21k(rate)
        print(_json([asdict(x) for x in plans]) if as_json else _schedule(plans))
        return
    recipe = Recipe(
        tuple(views), backbone, weights, size, preprocess, precision, compile, dtype, classifier,
        logits, seed, batch, block, threads, device,
    )  # fmt: skip
    found = forecast.forecast(data, store, recipe, rate, seconds, scheduler, workers)
    print(_json(asdict(found)) if as_json else _report(found))


def _json(content: object) -> str:
    return json.dumps(content, indent=1)


def _report(plan: "Forecast") -> str:
    pictures, to_do = plan.store.rows * plan.views, round(plan.rate * plan.hours * 3600)
    read, m = plan.reading, plan.measured
    facts = [
        ("set", f"{plan.data}: {plan.store.rows:,} images x {plan.views} views: {pictures:,} img"),
        ("reading", f"{read.shards:,} shards, {_size(read.image_bytes)} of images"),
        ("", f"by {read.reads:,} reads of {_size(read.read_bytes)} in all"),
        *_logits(plan),
        ("time", f"{_hours(plan.hours)} for {to_do:,} img at {plan.rate:,.1f} img/s"),
    ]
    if m:
        alone = f"decoding alone {m.decode:,.1f} a thread, the network alone {m.forward:,.1f}"
        facts.append(("", f"measured on {m.pictures:,} img: {m.rate:,.1f} img/s; {alone}"))
        facts.append(("", m.conditions))
    free = "not asked (no local place)" if plan.free is None else f"{_size(plan.free)} free"
    facts.append(("disk", f"{_size(plan.store.bytes)} in {plan.store.files:,} files; {free}"))
    lines = [f"{name:<9}{text}" for name, text in facts]
    lines += ["", *_table(_arrays(plan.store)), "", *_table(_memory(plan.memory))]
    if plan.actual:
        lines += ["", *_table(_deviations(plan, plan.actual))]
    return "\n".join(lines + [f"warning: {text}" for text in plan.warnings])


def _arrays(store: "StoreCost") -> list[list[str]]:
    table = [["array", "shape", "type", "chunk", "MiB", "files", "bytes"]]
    for x in store.arrays:
        sizes = [_mebi(x.chunk_bytes), f"{x.files:,}", _size(x.bytes)]
        table.append([x.name, _shape(x.shape), x.dtype, _shape(x.chunk), *sizes])
    beside = [f"{store.beside_files:,}", _size(store.beside_bytes)]
    table.append(["records, index, metadata", "", "", "", "", *beside])
    table.append(["in all", "", "", "", "", f"{store.files:,}", _size(store.bytes)])
    return table


def _logits(plan: "Forecast") -> list[tuple[str, str]]:
    if not plan.classes:
        return [("logits", "none: the backbone has no linear classifier")]
    embedding = next(array for array in plan.store.arrays if array.name == "embedding")
    sizes = ", ".join(f"{kept} {_size(taken)}" for kept, taken in plan.logits.items())
    factor = plan.logits["full"] / embedding.bytes
    best = "top" if plan.classes > TOP_ABOVE else "full"
    return [
        ("logits", f"{sizes}; full is {factor:.1f} times the embedding"),
        ("", f"take none: the classifier, stored too, gives all {plan.classes:,} back; to read"),
        ("", f"them without computing, {best}"),
    ]


def _memory(memory: "Memory") -> list[list[str]]:
    sides = [parts for parts in (memory.worker, memory.client) if parts]
    names = dict.fromkeys([*memory.worker, *memory.client])
    return [
        ["memory", "a worker", "the client"][: 1 + len(sides)],
        *([name, *(_size(parts.get(name, 0)) for parts in sides)] for name in names),
        ["in all, beside 0.4 GB of torch", *(_size(sum(parts.values())) for parts in sides)],
    ]


def _deviations(plan: "Forecast", there: "Actual") -> list[list[str]]:
    rows, store = plan.store.rows, plan.store
    rate = there.pictures / there.seconds if there.seconds else 0.0
    table = [["", "plan", "actual", "deviation"]]
    for name, told, found in (
        ("rows written", rows, there.written),
        ("rows refused", 0, there.refused),
        ("rows left", 0, there.left),
        ("files", store.files, there.files),
        ("bytes", store.bytes, there.bytes),
        ("img/s", plan.rate, rate),
        ("seconds", rows * plan.views / plan.rate, there.seconds),
    ):
        deviation = f"{found / told - 1:+.1%}" if told else ""
        table.append([name, _count(told), _count(found), deviation])
    return table


def _schedule(plans: "list[Scheduled]") -> str:
    from askance.features.forecast import CARDS, DECODED, READ, ROWS, VIEWS

    block = next(x for x in plans[0].store.arrays if x.name == "embedding").chunk[0]
    head = f"""\
ImageNet-21k-W as arXiv 2402.16569 trains on it: {READ:,} views, {READ / ROWS:.2f} passes over
about {ROWS:,} images. Here {VIEWS} views of each, {ROWS * VIEWS:,} img of 224 pixels; float16,
--block {block}.
"""
    foot = f"""
Hours are of the network alone, on img that are on the card; a core decodes and augments {DECODED}
img/s. The first run saves nothing: it embeds as many img as one training reads. Every head, loss
and seed after it embeds none. Hours are out of these tables:"""
    sources = [f"  {card}: {source}" for card, (_, source) in CARDS.items()]
    warnings = dict.fromkeys(text for x in plans for text in x.store.warnings)
    lines = [head, *_table(_backbones(plans)), foot, *sources]
    return "\n".join([*lines, *(f"warning: {text}" for text in warnings)])


def _backbones(plans: "list[Scheduled]") -> list[list[str]]:
    """Return a column per backbone: what its store takes, and its time on each card."""
    losses = ("loss", "logsumexp", "entropy")
    arrays = [{array.name: array for array in x.store.arrays} for x in plans]
    embeddings = [x["embedding"].bytes for x in arrays]
    logits = [x.logits["full"] for x in plans]
    table = [
        ["", *(x.backbone for x in plans)],
        ["embeddings", *map(_size, embeddings)],
        ["losses", *(_size(sum(x[name].bytes for name in losses)) for x in arrays)],
        ["store", *(_size(x.store.bytes) for x in plans)],
        ["top-32 logits more", *(_size(x.logits["top"]) for x in plans)],
        ["all logits more", *map(_size, logits)],
        ["  times embeddings", *(f"{a / b:.1f}" for a, b in zip(logits, embeddings, strict=True))],
        ["files", *(f"{x.store.files:,}" for x in plans)],
        ["chunk", *(_shape(x["embedding"].chunk) for x in arrays)],
        ["MiB", *(_mebi(x["embedding"].chunk_bytes) for x in arrays)],
    ]
    for card in plans[-1].hours:
        hours = [_hours(x.hours[card]) if card in x.hours else "-" for x in plans]
        cores = [f"{x.cores[card]:,}" if card in x.cores else "-" for x in plans]
        table += [[f"{card}: time", *hours], ["  cores to decode", *cores]]
    return table


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _size(count: int) -> str:
    """Say bytes in decimal units, the largest of them GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:,.{0 if count >= 1000 * one else 1}f} {unit}"
    return f"{count} B"


def _mebi(count: int) -> str:
    return f"{count / 2**20:,.2f}"


def _count(number: int | float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape)


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


main = command(run)

if __name__ == "__main__":
    typer.run(main)
