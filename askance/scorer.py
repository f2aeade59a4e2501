"""An estimator for arrays, as scikit-learn has them: the head alone, without any pipeline.

Comes in: embeddings and losses, from anywhere. Goes out: uncertainties and percentiles.
"""

from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from askance.eval.ranks import spearman
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, quantiles, save
from askance.heads.fit import Training, paper_schedule, peak_rate
from askance.heads.head import Batch, Head, Need, Setup
from askance.heads.percentile import percentile
from askance.pipeline.devices import device as device_called

CPU = torch.device("cpu")
FLOATS = {"dtype": np.float32, "force_writeable": True}  # torch warns of what it can't write
LEAST = {"steps": 1, "batch": 2, "width": 1, "depth": 1}
ON_LOSSES = [name for name, kind in HEADS.items() if kind.needs == {Need.LOSS}]


class UncertaintyScorer(RegressorMixin, BaseEstimator):  # type: ignore[misc] # untyped
    """Learns from embeddings and losses which embeddings are likely to be wrong.

    `X` is a matrix with an embedding per row: numpy, torch on the CPU, pandas, polars, pyarrow. `y`
    has a loss per row, any number that is larger where the embedding served worse; losses of a
    classifier that was fitted to the same rows are too small (`cross_val_predict` gives others).
    Only the order of uncertainties means anything, so a constant added to all losses changes
    nothing. Works in pipelines and searches; where columns have very different scales, put a
    `StandardScaler` before it.

    Args:
        head: "ranking" to learn the order of the losses, or "squared" to learn their values.
        steps: of the optimiser; 600 steps of 256 rows take about five seconds of one core.
        batch: rows of a step, an even number; all rows where they are fewer.
        lr: learning rate at batch 256; goes with the square root of the batch.
        width: of the hidden layers.
        depth: number of hidden layers.
        random_state: of initial weights and of the order of rows. The same one gives the same head.
        device: to train on: auto, cpu, cuda, cuda:1, ...; the fitted head stays on the CPU.

    Attributes:
        head_: the fitted head, a torch module.
        quantiles_: the 0, 0.1, ..., 100 % quantiles of the uncertainty over the rows of `fit`.

    Source: ours; the head, its objective and its schedule are those of arXiv 2402.16569.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 4))
        >>> scorer = UncertaintyScorer(steps=50, lr=1e-2, width=16).fit(X, X[:, 0])
        >>> scorer.score(X, X[:, 0]) > 0.9
        True
    """

    head_: Head
    quantiles_: Float[np.ndarray, "1001"]

    def __init__(
        self,
        head: str = "ranking",
        *,
        steps: int = 600,
        batch: int = 256,
        lr: float = 1e-3,
        width: int = 512,
        depth: int = 2,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.head, self.steps, self.batch, self.lr = head, steps, batch, lr
        self.width, self.depth = width, depth
        self.random_state, self.device = random_state, device

    def fit(self, X: object, y: object) -> "UncertaintyScorer":  # noqa: N803
        """Train a head on embeddings (n, d) and losses (n,).

        Raises:
            ValueError: values that are not finite, fewer than two rows, or no such head.
        """
        self._check()
        rows, loss = validate_data(self, X, y, ensure_min_samples=2, y_numeric=True, **FLOATS)
        embedding, loss = torch.from_numpy(rows), loss.astype(np.float64)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            self.head_ = self._trained(embedding, torch.from_numpy(np.float32(loss - loss.min())))
        try:
            self.quantiles_ = quantiles(self.head_.uncertainty(embedding))
        except ValueError as error:
            raise ValueError(f"{error}: lower lr ({self.lr}), or scale the columns") from error
        return self

    def predict(self, X: object) -> Float[np.ndarray, " n"]:  # noqa: N803
        """Return the uncertainty of each row; larger is less certain."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, **FLOATS)
        return self.head_.uncertainty(torch.from_numpy(rows)).numpy()

    def percentile(self, X: object) -> Float[np.ndarray, " n"]:  # noqa: N803
        """Return the share of the rows of `fit` that are more certain, from 0 to 1."""
        uncertainty = torch.from_numpy(self.predict(X))
        return percentile(torch.from_numpy(self.quantiles_), uncertainty).numpy()

    def score(self, X: object, y: object) -> float:  # noqa: N803
        """Return the rank correlation of uncertainty and loss, -1 to 1; NaN if one is constant."""
        check_consistent_length(X, y)
        return spearman(self.predict(X), column_or_1d(y).astype(np.float64))

    def save(self, path: Path | str, backbone: dict[str, Any]) -> None:
        """Write the head, for `askance.load` and the commands.

        Args:
            path: of the file, `<name>.safetensors`.
            backbone: where the embeddings came from: `askance.open_store(...).backbone`.
        """
        check_is_fitted(self)
        sizes = self._setup(self.n_features_in_).sizes
        note = {name: getattr(self, name) for name in ("steps", "batch", "lr")}
        kept = (self.head, self.random_state, self.head_, self.quantiles_, sizes, backbone, note)
        save(Path(path), SavedHead(*kept))

    def _check(self) -> None:
        if self.head not in ON_LOSSES:
            raise ValueError(
                f"expected a head that learns from losses alone ({', '.join(ON_LOSSES)}),"
                f" got {self.head!r}"
            )
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} from {least} on, got {getattr(self, name)}")

    def _trained(self, embedding: Float[Tensor, "n d"], loss: Float[Tensor, " n"]) -> Head:
        on, batch = device_called(self.device), min(self.batch, len(loss)) // 2 * 2
        embedding, loss = embedding.to(on), loss.to(on)
        rate = paper_schedule(self.steps, peak_rate(self.lr, batch))
        setup = self._setup(embedding.shape[1], on)
        training = Training([self.head], [self.random_state], setup, rate, bfloat16=False)
        column = torch.zeros(batch, dtype=torch.int64, device=on)
        for rows in _batches(len(loss), batch, self.steps, self.random_state):
            training.step(Batch(embedding[rows], loss[rows], column), None, ())
        return training.head(self.head, self.random_state).cpu()

    def _setup(self, dim: int, on: torch.device = CPU) -> Setup:
        no_class = torch.zeros(0, device=on)
        return Setup(dim, self.width, self.depth, no_class.view(0, dim), no_class)


def _batches(rows: int, batch: int, steps: int, seed: int) -> Iterator[Int64[Tensor, " b"]]:
    """Yield the rows of each step; an epoch deals each once, but for those too few for a batch."""
    random = torch.Generator().manual_seed(seed)
    epochs = (torch.randperm(rows, generator=random).split(batch) for _ in repeat(None))
    return islice(chain.from_iterable(epoch[: rows // batch] for epoch in epochs), steps)
