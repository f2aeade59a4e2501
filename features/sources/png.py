"""Pixels to PNG bytes: lossless."""

import io

from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image


def encode(pixels: UInt8[ndarray, "h w"] | UInt8[ndarray, "h w 3"]) -> bytes:
    """Encode a grey or an RGB image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
