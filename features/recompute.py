"""Computing the numbers of a store anew: a sample of embeddings from its pictures, all scores.

Comes in: a store whose files are whole, and for the sample its backbone. Goes out: findings.
`askance.features.contract` says how far equal numbers may lie apart.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from askance.features.blocks import Block, Task, batches_of, task
from askance.features.classify import scores, top
from askance.features.contract import NARROWING, allowed, distance, logit_bounds, score_bounds
from askance.features.index import Index
from askance.features.store import DONE, FeatureStore
from askance.features.verify import Advance, Finding, Findings
from askance.features.writer import StoreWriter
from askance.pipeline.lanes import ahead
from askance.pipeline.provenance import machine, versions
from askance.pipeline.seeding import generator

if TYPE_CHECKING:
    from askance.features.embed import Embedded, Embedder

STORED_SCORES = ("loss", "logsumexp", "entropy", "logits", "logits_top", "logits_top_index")
LEAST = 32  # rows of a sample, unless there are fewer


def check_known(store: FeatureStore, writer: StoreWriter) -> Findings:
    """Compare with the arrays that are known before any picture is read."""
    layout = writer.layout
    for name, values in ({"label": writer.index.labels} | layout.known | layout.whole).items():
        if not np.array_equal(store.array(name)[:], values):
            yield Finding("wrong", "other values than extract gives it", name)


def draw(
    index: Index, fingerprint: str, blocks: list[Block], batch: int, share: float
) -> list[Task]:
    """Draw whole batches of `blocks` at random, always the same ones for one fingerprint.

    They hold `share` of the rows, at least 32, or all.
    """
    batches = [(block, row) for block in blocks for row in range(block.start, block.stop, batch)]
    wanted = max(LEAST, math.ceil(share * sum(len(block.rows) for block in blocks)))
    drawn = defaultdict(list)
    for place in generator("verify", fingerprint).permutation(len(batches)).tolist():
        block, row = batches[place]
        drawn[block].append(row)
        wanted -= min(batch, block.stop - row)
        if wanted <= 0:
            break
    return [batches_of(index, b, drawn[b], batch) for b in blocks if b in drawn]


def exact(content: dict[str, Any], made: dict[str, Any], device: str) -> bool:
    """Say whether a device here must give the very bits of a store made with `content`."""
    same = made["versions"] == versions() and made.get("machine", machine()) == machine()
    return same and content["device"] == device == "cpu" and not content["compile"]


@dataclass(frozen=True)
class Compared:
    """A task's rows against those stored: of each row and view the distance, and its bound.

    `strict` where they must be equal to the bit, whatever the bound.
    """

    block: int
    strict: bool
    lost: list[str]  # why done rows could not be read now
    rows: Shaped[np.ndarray, " m"]
    equal: Bool[np.ndarray, "m v"]
    apart: Float[np.ndarray, "m v"]
    limit: Float[np.ndarray, "m v"]

    @property
    def off(self) -> Bool[np.ndarray, "m v"]:
        return ~self.equal & (self.strict | ~(self.apart <= self.limit))


def check_sample(
    store: FeatureStore, embedder: "Embedder", tasks: list[Task], advance: Advance
) -> Findings:
    """Embed whole batches again, and compare them with what is stored.

    Where bits must be equal and are not, by no more than another rounding, it is tried once more
    as another number of threads rounds: with one, or with two.
    """
    made: Any = store.group.attrs["made"]
    strict = exact(store.content, made, embedder.backbone.device.type)
    found = []
    for embedded in embedder.embed(tasks):
        found.append(_compared(store, embedder, embedded, strict))
        advance(len(embedded.rows))
    again = [place for place, x in enumerate(found) if (x.off & (x.apart <= x.limit)).any()]
    with _other_threads():
        for place, embedded in zip(again, embedder.embed(tasks[p] for p in again), strict=True):
            other = _compared(store, embedder, embedded, strict)
            found[place] = min(found[place], other, key=lambda x: int(x.off.sum()))
    for compared in found:
        yield from _unequal(store, compared)
    yield from _summed(found)


@contextmanager
def _other_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summed(found: list[Compared]) -> Findings:
    lost = [why for compared in found for why in compared.lost]
    if lost:
        yield Finding("not checked", f"{len(lost)} rows, which can't be read now: {lost[0]}")
    near = [x.apart.max(initial=0, where=~x.equal & ~x.off) for x in found]
    if furthest := max(near, default=0):
        what = "other rounding, as another processor, thread count or version gives"
        yield Finding("hint", f"{what}: up to {furthest:.1e} between stored and new embeddings")
    rows, equal = (sum(len(x.rows) for x in found), sum(x.equal.all(axis=1).sum() for x in found))
    yield Finding("ok", f"{rows} rows embedded again, {equal} of them equal to the last bit")


def _compared(
    store: FeatureStore, embedder: "Embedder", embedded: "Embedded", strict: bool
) -> Compared:
    block, content = embedded.block, store.content
    all_rows = np.array(embedded.rows)
    status, whole = (
        np.asarray(store.array(name)[block.start : block.stop]) for name in ("status", "embedding")
    )
    done = status[all_rows - block.start] == DONE
    there = ~np.isin(all_rows, list(embedded.refused))
    rows = all_rows[done & there]
    kept = whole[rows - block.start]
    new = embedded.arrays["embedding"][done & there]
    on_cpus = content["device"] == embedder.backbone.device.type == "cpu"
    limit = allowed(new, content["dtype"], content["precision"], on_cpus)
    with np.errstate(over="ignore"):
        equal = (new.astype(kept.dtype) == kept).all(axis=-1)
    return Compared(
        block.number,
        strict,
        [embedded.refused[int(row)] for row in all_rows[done & ~there]],
        rows,
        equal,
        distance(kept.astype(np.float32), new),
        limit,
    )


def _unequal(store: FeatureStore, found: Compared) -> Findings:
    if not found.off.any():
        return
    first = tuple(np.argwhere(found.off)[0])
    apart, limit = found.apart[first], found.limit[first]
    what = f"{apart:.1e} from what its picture gives, {0 if found.strict else limit:.1g} allowed"
    if apart <= limit:
        what += " (another processor would explain it)"
    yield _of_rows(store, "embedding", found.block, found.rows, found.off, what)


def _of_rows(
    store: FeatureStore,
    name: str,
    block: int,
    rows: Shaped[np.ndarray, " m"],
    off: Bool[np.ndarray, "m v *c"],
    what: str,
) -> Finding:
    """Return the finding on the first value that is off, with the number of the other rows."""
    place, view = (int(x) for x in np.argwhere(off)[0][:2])
    row = int(rows[place])
    key = store.index.table["key"][row].as_py()
    more = int(off.any(axis=tuple(range(1, off.ndim))).sum()) - 1
    where = f"block {block}, row {row} ({key!r}), view {store.views[view]}"
    rest = f"; and {more} more rows of the block" if more else ""
    return Finding("wrong", f"{where}: {what}{rest}", name, block)


def check_refused(embedder: "Embedder", index: Index, refused: dict[Block, list[int]]) -> Findings:
    """Read refused rows again, and tell how many can be embedded by now."""

    def tasks() -> Iterable[Task]:
        for block, rows in refused.items():
            yield Task(block, task(index, block).samples.take(np.array(rows) - block.start))

    mended = sum(len(x.rows) - len(x.refused) for x in embedder.embed(tasks()))
    if mended:
        yield Finding("hint", f"{mended} refused images can be embedded now: extract --retry")


def check_scores(store: FeatureStore, blocks: list[Block], advance: Advance) -> Findings:
    """Compute losses and logits of all done rows again, from embedding and classifier."""
    with ThreadPoolExecutor(1) as pool:
        found = ahead(pool, partial(_check_block, store), blocks, 2)
        for block, findings in zip(blocks, found, strict=True):
            yield from findings
            advance(len(block.rows))
    yield Finding("ok", f"losses of {sum(len(b.rows) for b in blocks)} rows computed again")


def _check_block(store: FeatureStore, block: Block) -> list[Finding]:
    def read(name: str) -> np.ndarray:
        return np.asarray(store.array(name)[block.start : block.stop])

    done = np.flatnonzero(read("status") == DONE)
    if not len(done):
        return []
    stored = {name: read(name)[done] for name in STORED_SCORES if name in store.group}
    findings = []
    with np.errstate(all="ignore"):  # damaged embeddings may be anything
        computed = _computed(store, read("embedding")[done], read("label")[done], stored)
        for name, (kept, new, bound) in computed.items():
            off = ~(np.abs(kept.astype(np.float64) - new) <= bound)
            if off.any():
                first = tuple(np.argwhere(off)[0])
                what = f"{kept[first]:.6g} stored, {new[first]:.6g} +- {bound[first]:.1g} computed"
                rows = done + block.start
                findings.append(_of_rows(store, name, block.number, rows, off, what))
    return findings


def _computed(
    store: FeatureStore,
    embedding: np.ndarray,
    label: np.ndarray,
    stored: dict[str, np.ndarray],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return by array the stored scores, those computed again, and how far they may lie apart."""
    classifier, dtype = store.classifier, store.content["dtype"]
    embedding = embedding.astype(np.float32)
    logits = classifier.logits(embedding)
    new = scores(logits, label)
    bounds = score_bounds(classifier, embedding, logits, new["entropy"], dtype)
    found = {name: (stored[name], new[name], bounds[name]) for name in new}
    if store.content["logits"] == "none":
        return found
    relative, absolute = NARROWING["float16"]  # logits are stored so
    each = logit_bounds(classifier, embedding, dtype)
    each += relative * (np.abs(logits) + each) + absolute
    if store.content["logits"] == "full":
        return found | {"logits": (stored["logits"], logits, each)}
    kept, index = stored["logits_top"], stored["logits_top_index"]
    column = index.clip(0, logits.shape[-1] - 1)
    there, bound = (np.take_along_axis(x, column, axis=-1) for x in (logits, each))
    there[index != column] = np.nan
    best = top(logits, kept.shape[-1])["logits_top"]
    bound_of_best = np.broadcast_to(each.max(axis=-1, keepdims=True), best.shape)
    return found | {
        "logits_top_index": (kept, there, bound),
        "logits_top": (kept, best, bound_of_best),
    }
