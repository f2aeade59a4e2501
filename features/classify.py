"""What a frozen linear classifier says of an embedding: logits, loss, entropy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Integer
from scipy.special import logsumexp


@dataclass(frozen=True)
class Classifier:
    """A frozen linear map: logits = embedding @ weight.T + bias."""

    weight: Float32[np.ndarray, "c d"]
    bias: Float32[np.ndarray, " c"]

    def logits(self, embedding: Float32[np.ndarray, "*n d"]) -> Float32[np.ndarray, "*n c"]:
        """Return the logits of each embedding."""
        # As one product: NumPy would make one of each leading index.
        flat = embedding.reshape(-1, embedding.shape[-1]) @ self.weight.T + self.bias
        return flat.reshape(*embedding.shape[:-1], len(self.bias))


def scores(
    logits: Float32[np.ndarray, "n v c"], label: Integer[np.ndarray, " n"]
) -> dict[str, Float32[np.ndarray, "n v"]]:
    """Return `loss`, `logsumexp` and `entropy` of each row and view, in nats.

    The loss is the cross-entropy against `label`, a column of the logits. A row of NaN logits
    (refused) gives NaN.
    """
    normaliser = logsumexp(logits, axis=-1)
    own = np.take_along_axis(logits, label[:, None, None], axis=-1)[..., 0]
    expected = (np.exp(logits - normaliser[..., None]) * logits).sum(axis=-1)
    return {
        "loss": normaliser - own,
        "logsumexp": normaliser,
        "entropy": np.maximum(normaliser - expected, 0),
    }


def top(logits: Float32[np.ndarray, "n v c"], k: int) -> dict[str, np.ndarray]:
    """Return the k largest logits of each row and view, largest first, and their columns."""
    index = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    return {
        "logits_top": np.take_along_axis(logits, index, axis=-1),
        "logits_top_index": index.astype(np.int32),
    }
