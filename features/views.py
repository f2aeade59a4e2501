"""Views: one transform of an image each, from a decoded picture to uint8 pixels.

Every random choice depends on (seed, key, number of the view) alone: not on worker, order, batch
or resume. The pixels leave as uint8; normalisation happens on the device.
"""

import io
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from askance.pipeline.seeding import generator

PreprocessName = Literal["own", "published"]
Precision = Literal["float32", "bfloat16"]

MAX_ASPECT = 100  # of a picture: a resized strip would fill the memory

# Part of every store's fingerprint: raise it when any view's pixels change, or stores made before
# would be continued (test_the_pixels_of_all_views_are_those_of_this_version).
RENDERING = 1

CROP_FRACTION = (0.1, 0.75)  # spec E.5

AREA = (0.08, 1.0)  # of the random resized crop
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
JITTER = 0.4  # brightness, contrast, saturation: a factor from 1 - 0.4 to 1 + 0.4
INTERPOLATIONS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


class View(StrEnum):
    """A kind of view; a store may hold several of one kind, numbered by their place."""

    PLAIN = "plain"
    AUGMENT = "augment"
    CROP = "crop"


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of its pixels.

    `size` is the side in pixels; the plain view resizes the shorter side to size / `crop` before
    the centre crop; `mean` and `std` are per channel, for values from 0 to 1.
    """

    size: int
    crop: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def decode(content: bytes) -> Image.Image:
    """Decode an encoded image to upright RGB.

    Grey, palette, CMYK, 16-bit and transparent images are converted (16-bit by their high byte,
    transparency onto white); an animation gives its first frame; the EXIF orientation is applied.

    Raises:
        ValueError: not an image, damaged, cut, above 178 million pixels, or a strip above 100:1.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
        upright = upright_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"expected an image of ordinary size, got a bomb: {error}") from error
    except UnidentifiedImageError:
        raise ValueError(f"expected an image, got {len(content)} bytes of something else") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder comes up with on damaged bytes
        raise ValueError(f"expected a whole image, got a damaged one: {error}") from error
    if max(upright.size) > MAX_ASPECT * min(upright.size):
        raise ValueError(f"expected an image, got a strip of {upright.width} x {upright.height}")
    return upright


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn a loaded picture upright and into RGB, as `decode` does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255
        high_byte = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def render(
    image: Image.Image,
    views: tuple[View, ...],
    preprocessing: Preprocessing,
    seed: int,
    key: str,
) -> UInt8[np.ndarray, "v h w 3"]:
    """Render all views of one image, decoded once."""
    pixels = [_render(image, kind, preprocessing, seed, key, v) for v, kind in enumerate(views)]
    return np.stack(pixels)


def _render(
    image: Image.Image,
    kind: View,
    preprocessing: Preprocessing,
    seed: int,
    key: str,
    number: int,
) -> UInt8[np.ndarray, "h w 3"]:
    match kind:
        case View.AUGMENT:
            view = augment(image, preprocessing.size, generator("view", seed, key, number))
        case View.PLAIN:
            view = plain(image, preprocessing)
        case View.CROP:
            fraction = crop_fraction(seed, key)
            view = enlarged_centre(plain(image, preprocessing), fraction)
    return np.asarray(view)


def plain(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize the shorter side to size / crop, then cut the centre: the evaluation transform."""
    size = preprocessing.size
    shorter = math.floor(size / preprocessing.crop)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    return image.resize((width, height), resampling).crop((left, top, left + size, top + size))


def crop_fraction(seed: int, key: str) -> float:
    """Return the share of the side that the crop view of `key` keeps, uniform in 0.1 to 0.75."""
    return float(generator("crop", seed, key).uniform(*CROP_FRACTION))


def enlarged_centre(image: Image.Image, fraction: float) -> Image.Image:
    """Cut the centre square of `fraction` of the side and enlarge it back, bilinearly.

    Source: URL benchmark, arXiv 2307.03810, "cropped has bigger uncertainty". The original
    enlarges the normalised float tensor; here it is the uint8 picture, at most half a grey level
    away.
    """
    size = image.width
    side = max(1, round(size * fraction))
    start = round((size - side) / 2)
    # Cropped first: `resize(box=...)` would mix in pixels from outside of the box.
    centre = image.crop((start, start, start + side, start + side))
    return centre.resize((size, size), Image.Resampling.BILINEAR)


def augment(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Augment one training view: random resized crop, flip, colour jitter.

    Source: the training transform of arXiv 2402.16569 (crop area 0.08 to 1, aspect 3/4 to 4/3
    log-uniform, bilinear or bicubic by chance, flip by chance, then brightness, contrast and
    saturation by a factor of 0.6 to 1.4 each, in random order).
    """
    box = random_box(image.width, image.height, random)
    resampling = INTERPOLATIONS[int(random.integers(2))]
    view = image.crop(box).resize((size, size), resampling)
    if random.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = random.uniform(1 - JITTER, 1 + JITTER, size=3)
    for number in random.permutation(3):
        view = enhancers[number](view).enhance(float(factors[number]))
    return view


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw the box (left, upper, right, lower) of a random resized crop.

    After ten boxes that don't fit, the largest centred box within the range of aspects.
    """
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*AREA)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
