"""What upstream rows teach: their losses and the columns of their labels, checked."""

import numpy as np
from jaxtyping import Float, Int64

from askance.features.store import FeatureStore


def check_same(features: FeatureStore, losses: FeatureStore) -> None:
    """Stop unless the losses were made from these features.

    Raises:
        ValueError: they were made from another store.
    """
    same = np.array_equal(losses.rows, features.rows)
    if losses.content.get("upstream") != features.fingerprint or not same:
        raise ValueError(
            f"expected the losses of {features.path}, got {losses.path}, made from another store:"
            " run probe again"
        )


def losses_of(features: FeatureStore, losses: FeatureStore, name: str) -> Float[np.ndarray, "n v"]:
    """Return the losses of all rows of the index, by the name of their array; refused ones NaN.

    Raises:
        ValueError: no such array; a loss that is not finite; losses that are all equal.
    """
    array = losses.array(name)
    loss = np.asarray(array[:])
    done = loss[features.rows]
    bad = features.rows[~np.isfinite(done).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"expected finite losses, got {loss[bad[0]]} in block {bad[0] // array.chunks[0]} of"
            f" {losses.path}: verify the store"
        )
    if len(done) and done.min() == done.max():
        raise ValueError(
            f"expected losses that differ, got {done.min()} in all rows of {losses.path}: there is"
            " nothing to rank"
        )
    return loss


def columns_of(features: FeatureStore, losses: FeatureStore) -> Int64[np.ndarray, " n"]:
    """Return the classifier's column of the label of each row of the index.

    Raises:
        ValueError: a done row's label is none of the classifier's.
    """
    label, own = (
        np.asarray(array[:])
        for array in (losses.array("classifier/label"), features.array("label"))
    )
    column = np.searchsorted(label, own).clip(max=len(label) - 1)
    bad = features.rows[(label[column] != own)[features.rows]]
    if len(bad):
        raise ValueError(
            f"expected one of the {len(label)} labels of {losses.path}, got {own[bad[0]]} for"
            f" {features.index.keys[bad[0]]} in {features.path}: run probe again"
        )
    return column
