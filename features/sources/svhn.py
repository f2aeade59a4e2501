"""SVHN: 99,289 photos of house numbers, 32 x 32 pixels, whose class is the digit in the middle."""

from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt8

from askance.features.sources import png
from askance.features.sources.published import Published
from askance.features.sources.tfds import deal


class Svhn(Published):
    """SVHN in its original order, without `extra`; 90 % of its training images are `train`."""

    name = "svhn"
    files = (
        (
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        (
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    )
    holds = ("train_32x32.mat", "test_32x32.mat")

    def samples(self) -> pa.Table:
        """List the 73,257 training images, then the 26,032 test images.

        Raises:
            ValueError: the files have another form.
            OSError: the set could not be fetched.
        """
        (_, trained), (_, tested) = self._parts
        return pa.table(
            {
                "key": [f"train/{n:06}" for n in range(len(trained))]
                + [f"test/{n:06}" for n in range(len(tested))],
                "class": [str(label) for label in np.concatenate([trained, tested])],
                "split": deal(range(len(trained)), train=90, val=10) + ["test"] * len(tested),
            }
        )

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG."""
        (trained, _), (tested, _) = self._parts
        images, row = (trained, row) if row < len(trained) else (tested, row - len(trained))
        return "png", png.encode(np.ascontiguousarray(images[row]))

    @cached_property
    def _parts(self) -> list[tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, " n"]]]:
        return [self._read(part) for part in ("train", "test")]

    def _read(self, part: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, " n"]]:
        """Return the images and their digits; the file has 10 for 0, and images along its end."""
        from scipy.io import loadmat

        path = self._root / f"{part}_32x32.mat"
        try:
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = np.moveaxis(content["X"], -1, 0), content["y"].ravel() % 10
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ValueError(f"expected arrays X and y in {path}, got {error!r}") from error
        if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"expected {len(labels)} images of 32 x 32 pixels in {path}, got {images.dtype}"
                f" {images.shape}: fetch the file again"
            )
        return images, labels.astype(np.int64)
