"""The recipe: all that decides how pictures become arrays, as `extract` was asked for it."""

from dataclasses import dataclass
from typing import Literal

from askance.features.views import Precision, PreprocessName, View

LogitsKept = Literal["none", "top", "full"]
StoredType = Literal["float16", "float32"]
ClassifierKind = Literal["none", "own"]


@dataclass(frozen=True)
class Recipe:
    """The options of `extract`; small and picklable, so that any worker can follow it.

    `batch` counts pictures of one forward pass, all views together. `threads` and `device` decide
    nothing but speed (a device's kind is in the fingerprint all the same: it rounds differently).
    """

    views: tuple[View, ...]
    backbone: str
    weights: str = "pretrained"
    size: int = 0
    preprocess: PreprocessName = "own"
    precision: Precision = "float32"
    compile: bool = False
    dtype: StoredType = "float16"
    classifier: ClassifierKind = "none"
    logits: LogitsKept = "none"
    seed: int = 0
    batch: int = 32
    block: int = 1024
    threads: int = 2
    device: str = "auto"

    @property
    def images(self) -> int:
        """Images in one forward pass: all views of an image are computed together."""
        return max(1, self.batch // len(self.views))
