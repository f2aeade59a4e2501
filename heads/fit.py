"""Training: a head, a stream of batches, the paper's optimiser and schedule."""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from askance.heads.head import Head
from askance.pipeline.seeding import generator

BETAS, EPS, WEIGHT_DECAY = (0.8, 0.95), 1e-8, 1e-4
EPOCHS, WARM_UP, WARM_UP_FROM = 460, 25.0, 1e-4  # the paper's pseudo-epochs
REFERENCE_BATCH = 256

Batch = tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]


def peak_rate(base: float, batch: int) -> float:
    """Scale the base rate by the square root of batch / 256 (the rule for Adam-like optimisers)."""
    return base * math.sqrt(batch / REFERENCE_BATCH)


def cosine(step: int, steps: int, warm_up: float, peak: float, start: float) -> float:
    """Return the learning rate at `step`: linear from `start`, then half a cosine to 0.

    The warm-up is not a prefix: after it the rate is 0.5 peak (1 + cos(pi step / steps)), so it
    never quite reaches the peak.

    Source: arXiv 2402.16569 (step and steps are its pseudo-epochs, 460 with 25 of warm-up).
    """
    if step < warm_up:
        return start + (peak - start) * step / warm_up
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def paper_schedule(steps: int, peak: float) -> Callable[[int], float]:
    """Return the paper's schedule squeezed into `steps` steps: warm-up 25/460 of them."""
    start = min(WARM_UP_FROM, peak)
    return lambda step: cosine(step, steps, steps * WARM_UP / EPOCHS, peak, start)


def optimiser(head: Head) -> torch.optim.AdamW:
    """Return AdamW as in the paper: weight decay on matrices only, the undecayed group first."""
    parameters = list(head.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)


def fit(head: Head, batches: Iterable[Batch], rate: Callable[[int], float]) -> list[float]:
    """Take one optimiser step per batch; return the objective before each step.

    Raises:
        ValueError: an objective that is not finite.
    """
    head.train()
    adamw = optimiser(head)
    history = []
    for step, (embedding, loss) in enumerate(batches):
        for group in adamw.param_groups:
            group["lr"] = rate(step)
        objective = head.objective(embedding, loss)
        history.append(objective.item())
        if not math.isfinite(history[-1]):
            raise ValueError(
                f"expected a finite objective, got {history[-1]} at step {step}: lower train.lr,"
                " or verify the store"
            )
        adamw.zero_grad()
        objective.backward()
        adamw.step()
    head.eval()
    return history


def shuffled(
    embedding: Float[Tensor, "n d"], loss: Float[Tensor, " n"], batch: int, steps: int, seed: int
) -> Iterator[Batch]:
    """Yield `steps` batches of rows, a fresh permutation whenever too few are left.

    All views of all images are rows alike, so the pairs of the ranking loss are random ones.

    Raises:
        ValueError: fewer rows than one batch.
    """
    if batch > len(loss):
        raise ValueError(f"expected at least train.batch={batch} rows, got {len(loss)}: lower it")
    random = generator("batches", seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = random.permutation(len(loss))
        rows, order = torch.from_numpy(order[:batch]), order[batch:]
        yield embedding[rows].float(), loss[rows]
