"""Columns: what users hand over, numpy arrays or torch tensors, as checked numpy arrays."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

# By name: the kinds of numbers that a column may hold, and its axes. Others are floats, (n,).
KINDS = {
    **dict.fromkeys(("hit", "correct", "positive", "downstream"), "b"),
    "label": "iu",
    "votes": "iuf",
}
AXES = {"embedding": "nd", "votes": "nc"}
MENDS = {
    "b": "pass {} == 1, say, as one column",
    "iu": "number the classes, say by np.unique({}, return_inverse=True)[1], as one column",
    "iuf": "pass one count per class and row",
    "f": "pass floats, say {} * 1.0",
}
NAMES = {"b": "booleans", "iu": "integers", "iuf": "numbers", "f": "floats"}


@runtime_checkable
class Array(Protocol):
    """A numpy array or a torch tensor, on any device."""

    @property
    def shape(self) -> Any: ...  # noqa: ANN401
    @property
    def dtype(self) -> Any: ...  # noqa: ANN401


def columns(**given: Array) -> list[np.ndarray]:
    """Return arrays or tensors as numpy arrays, after a look at their types and shapes.

    Floats keep their precision; those that numpy lacks (bfloat16) become float32.

    Raises:
        ValueError: a column of another type or shape than its name stands for, or of another
            length than the first.

    Example:
        >>> columns(uncertainty=np.array([0.1, 0.2]), hit=np.array([True, False]))
        [array([0.1, 0.2]), array([ True, False])]
    """
    found = {name: _numpy(values) for name, values in given.items()}
    first = next(iter(found))
    for name, array in found.items():
        kind, axes = KINDS.get(name, "f"), AXES.get(name, "n")
        if array.dtype.kind not in kind or array.ndim != len(axes):
            shape = f"({', '.join(axes)})" if len(axes) > 1 else f"({axes},)"
            raise ValueError(
                f"expected {NAMES[kind]} of shape {shape} in {name}, got {array.dtype} of shape"
                f" {array.shape}: {MENDS[kind].format(name)}"
            )
        if len(array) != len(found[first]):
            raise ValueError(
                f"expected one row per row of {first} in {name}, got {len(array)} rows and"
                f" {len(found[first])}: pass columns of the same rows"
            )
    return list(found.values())


def _numpy(values: Any) -> np.ndarray:  # noqa: ANN401
    """Move a tensor to the processor's memory; small floats widen, without loss."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        narrow = values.is_floating_point() and values.itemsize < 4
        values = (values.float() if narrow else values).numpy()
    return np.asarray(values)
