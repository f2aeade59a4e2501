"""Training: heads and seeds side by side on one stream of batches, with the paper's optimiser."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from askance.heads.catalogue import find
from askance.heads.head import Batch, Head, Need, Setup

BETAS, EPS, WEIGHT_DECAY = (0.8, 0.95), 1e-8, 1e-4
EPOCHS, WARM_UP, WARM_UP_FROM = 460, 25.0, 1e-4  # the paper's pseudo-epochs
REFERENCE_BATCH = 256

Score = Callable[[Head], float]


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


class Trainee:
    """One head with one seed, and its optimiser."""

    def __init__(self, head: Head, seed: int, *, bfloat16: bool = False) -> None:
        self.head, self.seed = head.train(), seed
        self.bfloat16 = bfloat16 and head.in_bfloat16
        self.adamw = optimiser(head)

    def step(self, batch: Batch, number: int, rate: float) -> Float[Tensor, ""]:
        """Take one optimiser step at a learning rate; return the objective before it, detached.

        What it draws depends on the seed and the step's number alone, so that a training goes on
        after a kill as if there had been none.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        device = batch.embedding.device.type
        # torch.manual_seed seeds every kind of device, absent ones too: a tenth of a small step.
        seed = torch.default_generator.manual_seed if device == "cpu" else torch.manual_seed
        # Hashed: of a CPU's seed torch takes the lower 32 bits alone.
        seed(zlib.crc32(f"{self.seed} {number}".encode()))
        dtype = torch.bfloat16 if self.bfloat16 else next(self.head.parameters()).dtype
        batch = batch._replace(embedding=batch.embedding.to(dtype))
        with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
            objective = self.head.objective(batch)
        objective.backward()
        self.adamw.step()
        self.adamw.zero_grad()
        return objective.detach()


@dataclass
class Best:
    """The best a listed head has been: after `step` steps, by its `score`, NaN if undefined."""

    score: float
    step: int
    state: dict[str, Tensor]


class Training:
    """Every listed head with every seed, each taking a step on the same batch.

    Heads that differ in their answer alone (`Head.twin`) share one trainee.

    Args:
        names: of trained heads in the catalogue.
        seeds: of the initial weights, and of what objectives draw.
        setup: what the heads are built from, on the device to train on.
        rate: the learning rate of each step.
        bfloat16: round the matrix products of those heads that allow it.
    """

    def __init__(
        self,
        names: Sequence[str],
        seeds: Sequence[int],
        setup: Setup,
        rate: Callable[[int], float],
        *,
        bfloat16: bool,
    ) -> None:
        self.names, self.seeds, self.setup, self.rate = list(names), list(seeds), setup, rate
        self.done = 0
        self.best: dict[tuple[str, int], Best] = {}
        self._trainees: dict[tuple[str, int], Trainee] = {}
        self._objectives: list[Float[Tensor, " t"]] = []
        self._blocks: list[tuple[int, ...]] = []
        for name in dict.fromkeys(find(n).twin or n for n in self.names):
            for seed in self.seeds:
                torch.manual_seed(seed)
                head = find(name)(setup).to(setup.weight.device)
                self._trainees[name, seed] = Trainee(head, seed, bfloat16=bfloat16)

    def step(self, rows: Batch | None, pairs: Batch | None, blocks: tuple[int, ...]) -> None:
        """Let every trainee take a step, on `pairs` if it needs two views, else on `rows`.

        `blocks` are those the batch was drawn from: what an error names.
        """
        rate, objectives = self.rate(self.done), []
        for trainee in self._trainees.values():
            batch = pairs if Need.PAIRS in trainee.head.needs else rows
            assert batch is not None
            objectives.append(trainee.step(batch, self.done, rate))
        self.done += 1
        self._objectives.append(torch.stack(objectives))
        self._blocks.append(blocks)

    def objectives(self) -> dict[str, float]:
        """Return each trainee's mean objective since the last call, over seeds, and forget them.

        Raises:
            ValueError: one is not finite.
        """
        values = torch.stack(self._objectives).double().cpu()  # here, not at every step: it waits
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step, place = bad[0].tolist()
            (name, seed), blocks = list(self._trainees)[place], self._blocks[step]
            raise ValueError(
                f"expected a finite objective, got {values[step, place]} for {name} (seed {seed})"
                f" at step {self.done - len(values) + step}, on rows of"
                f" {'block' if len(blocks) == 1 else 'the blocks'} {_shortened(blocks)}: lower"
                " train.lr, or verify the store"
            )
        self._objectives, self._blocks = [], []
        mean = dict(zip(self._trainees, values.mean(0).tolist(), strict=True))
        count = len(self.seeds)
        names = dict.fromkeys(name for name, _ in self._trainees)
        return {n: sum(mean[n, seed] for seed in self.seeds) / count for n in names}

    def validate(self, score: Score) -> dict[str, float]:
        """Score every listed head as it is now, larger is better, and keep the best of each.

        Only a larger score replaces the best, so the earliest wins; where none is defined, the
        last is kept. Returns the mean over seeds.

        Raises:
            ValueError: a head can't be scored.
        """
        found: dict[str, float] = {}
        for name in self.names:
            scores = []
            for seed in self.seeds:
                scores.append(self._scored(name, seed, score))
                head = self._trainees[find(name).twin or name, seed].head
                best = self.best.get((name, seed))
                if best is None or math.isnan(best.score) or scores[-1] > best.score:
                    state = {key: value.clone() for key, value in head.state_dict().items()}
                    self.best[name, seed] = Best(scores[-1], self.done, state)
            found[name] = sum(scores) / len(scores)
        return found

    def _scored(self, name: str, seed: int, score: Score) -> float:
        try:
            return score(self.head(name, seed))
        except ValueError as error:
            raise ValueError(f"{name} (seed {seed}) after step {self.done}: {error}") from error

    def head(self, name: str, seed: int) -> Head:
        """Return a copy of a listed head as it is now, for use."""
        state = self._trainees[find(name).twin or name, seed].head.state_dict()
        return self._filled(name, state)

    def kept(self, name: str, seed: int) -> Head:
        """Return the best a listed head has been, for use."""
        return self._filled(name, self.best[name, seed].state)

    def _filled(self, name: str, state: dict[str, Tensor]) -> Head:
        head = find(name)(self.setup).to(self.setup.weight.device)
        head.load_state_dict(state)
        return head.eval().requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """Return all that `restore` needs: tensors, numbers and their containers."""
        return {
            "done": self.done,
            "trainees": [
                (key, trainee.head.state_dict(), trainee.adamw.state_dict())
                for key, trainee in self._trainees.items()
            ],
            "best": [(key, vars(best)) for key, best in self.best.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of a training with the same arguments."""
        self.done = state["done"]
        for key, head, adamw in state["trainees"]:
            self._trainees[key].head.load_state_dict(head)
            self._trainees[key].adamw.load_state_dict(adamw)
        self.best = {key: Best(**best) for key, best in state["best"]}


def _shortened(blocks: tuple[int, ...]) -> str:
    names = ", ".join(map(str, blocks[:8]))
    return names if len(blocks) <= 8 else f"{names}, ... ({len(blocks)} of them)"
