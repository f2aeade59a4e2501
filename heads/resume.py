"""The state of a training on disk, so that a killed one goes on as if nothing had happened."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from askance.heads.fit import Training
from askance.pipeline.artifacts import atomic, digest, remove, sha256

SAVE_EVERY = 30.0  # seconds between two savings, at least
CODE = (
    "heads/*.py", "features/*.py", "pipeline/seeding.py", "eval/holdout.py",
    "eval/ranks.py", "stages/sample.py", "stages/train.py",
)  # fmt: skip

History = list[dict[str, Any]]


class State:
    """Saves a training and its history at a path, and takes them up again.

    `content` is the data and options that decide the training; the code and the libraries that do
    are added to it. A state of another content is never continued.
    """

    def __init__(self, path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        root = Path(__file__).parents[1]
        code = [sha256(file) for pattern in CODE for file in sorted(root.glob(pattern))]
        made_by = [torch.__version__, np.__version__, code]
        self.path, self.identity = path, digest([content, made_by])
        self._saved = time.monotonic()

    def restore(self, training: Training) -> History:
        """Set a training to where it was saved, if it was, and return its history until there."""
        try:
            found = torch.load(
                self.path, weights_only=True, map_location=training.setup.weight.device
            )
        except FileNotFoundError:
            return []
        if found["identity"] != self.identity:
            return []
        training.restore(found["training"])
        return found["history"]

    def save(self, training: Training, history: History) -> None:
        """Save both, if the last time is long enough ago."""
        if time.monotonic() - self._saved < SAVE_EVERY:
            return
        state = {"identity": self.identity, "training": training.state(), "history": history}
        with atomic(self.path) as temporary:
            torch.save(state, temporary)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove what was saved: the training is over."""
        remove(self.path)
