"""Pixels: what a model takes, from a picture or the path of one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from askance.features.reader import MAX_IMAGE
from askance.features.views import Preprocessing, decode, plain, upright_rgb

Picture = Image.Image | Path | str


@dataclass(frozen=True)
class Preprocess:
    """Turns a picture, or the path of one, into the pixels that a model takes.

    Resized and cut to the centre as the backbone wants it, uint8; the model normalises. Small and
    picklable: the transform of a data set whose workers load pictures.
    """

    preprocessing: Preprocessing

    def __call__(self, picture: object) -> UInt8[Tensor, "3 s s"]:
        """Return the pixels of a `Picture`.

        Raises:
            ValueError: not a picture.
            TypeError: neither a PIL image nor a path.
            OSError: its file can't be read.
        """
        if isinstance(picture, Image.Image):
            image = upright_rgb(picture)
        elif isinstance(picture, (str, Path)):
            image = _opened(Path(picture))
        else:
            raise TypeError(
                f"expected a PIL image or a path, got {type(picture).__name__}: pictures come as"
                " PIL images, as paths, or as a tensor batch of pixels"
            )
        return torch.from_numpy(np.array(plain(image, self.preprocessing))).permute(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    if not path.is_file() and path.exists():  # which might be waited for, or read, for ever
        raise ValueError(f"expected a picture, got a folder or device at {path}")
    if (size := path.stat().st_size) > MAX_IMAGE:
        raise ValueError(f"{path}: expected at most {MAX_IMAGE:,} bytes, got {size:,}")
    try:
        return decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
