"""Views: one transform of an image each, from a decoded picture to uint8 pixels.

Every random choice depends on (seed, key, number of the view) alone: not on worker, order, batch
or resume. The pixels leave as uint8; normalisation happens on the device.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from askance.pipeline.seeding import generator

PreprocessName = Literal["own", "published"]
Precision = Literal["float32", "bfloat16"]

# The formats that are read, by the bytes a file begins with: no other decoder is ever reached.
READERS: dict[tuple[bytes, ...], type[ImageFile]] = {
    (b"\xff\xd8\xff",): JpegImageFile,
    (b"\x89PNG\r\n\x1a\n",): PngImageFile,
    (b"RIFF",): WebPImageFile,
    (b"GIF87a", b"GIF89a"): GifImageFile,
    (b"BM",): BmpImageFile,
    (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"): TiffImageFile,
    (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"): PpmImageFile,
}
MAX_PIXELS = 89_478_485  # of a picture: 358 MB as Pillow stores it, and where it begins to warn
MAX_ASPECT = 100  # of a picture: a resized strip would fill the memory

# Part of every store's fingerprint: raise it when any view's pixels change, or stores made before
# would be continued (test_the_pixels_of_all_views_are_those_of_this_version).
RENDERING = 2

CROP_FRACTION = (0.1, 0.75)  # spec E.5

AREA = (0.08, 1.0)  # of the random resized crop
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
JITTER = 0.4  # brightness, contrast, saturation: a factor from 1 - 0.4 to 1 + 0.4
INTERPOLATIONS = ("bilinear", "bicubic")


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

    JPEG, PNG, WebP, GIF, BMP, TIFF and PPM are read. Grey, palette, CMYK, 16-bit and transparent
    images are converted (16-bit by their high byte, transparency onto white); an animation gives
    its first frame; the EXIF orientation is applied.

    Raises:
        ValueError: not an image, damaged, cut, or - told from the header, before any memory is
            taken - above 89 million pixels or a strip above 100:1.
    """
    reader = next((reader for start, reader in READERS.items() if content.startswith(start)), None)
    if reader is None:
        raise ValueError(f"expected an image, got {len(content)} bytes of something else")
    with _damage_refused():
        image = reader(io.BytesIO(content))
        pixels = max(math.prod(image.size), _tile(image))
    width, height = image.size
    if pixels > MAX_PIXELS:
        raise ValueError(
            f"expected an image of at most {MAX_PIXELS:,} pixels, got {pixels:,} in one of"
            f" {width} x {height}: make it smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"expected an image, got a strip of {width} x {height}")
    with _damage_refused():
        image.load()
        return upright_rgb(image)


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"expected an image of at most {MAX_PIXELS:,} pixels, got more: {error}"
        ) from error
    except Exception as error:  # whatever a decoder comes up with on damaged bytes
        raise ValueError(f"expected a whole image, got a damaged one: {error}") from error


def _tile(image: ImageFile) -> int:
    """Return the pixels of a TIFF's tile: decoded whole, however small the picture is."""
    if not isinstance(image, TiffImageFile):
        return 0
    return image.tag_v2.get(TILEWIDTH, 0) * image.tag_v2.get(TILELENGTH, 0)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn a loaded picture upright and into RGB, as `decode` does."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255
        high_byte = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def render(
    image: Image.Image,
    views: tuple[View, ...],
    preprocessing: Preprocessing,
    seed: int,
    key: str,
) -> UInt8[np.ndarray, "v h w 3"]:
    """Render all views of one RGB image, decoded once.

    A view depends on its kind, `seed`, `key` and its place in `views` alone.
    """
    size = preprocessing.size
    centre = cache(lambda: plain(image, preprocessing))  # made once, where a view needs it
    pixels = np.empty((len(views), size, size, 3), np.uint8)
    for number, kind in enumerate(views):
        match kind:
            case View.AUGMENT:
                random = generator("view", seed, key, number)
                pixels[number] = augment(image, size, random)
            case View.PLAIN:
                pixels[number] = np.asarray(centre())
            case View.CROP:
                pixels[number] = np.asarray(enlarged_centre(centre(), crop_fraction(seed, key)))
    return pixels


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


def augment(
    image: Image.Image, size: int, random: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Augment one training view: random resized crop, flip, colour jitter.

    Source: the training transform of arXiv 2402.16569 (crop area 0.08 to 1, aspect 3/4 to 4/3
    log-uniform, bilinear or bicubic by chance, flip by chance, then brightness, contrast and
    saturation by a factor of 0.6 to 1.4 each, in random order).
    """
    box = random_box(image.width, image.height, random)
    interpolation = INTERPOLATIONS[int(random.integers(2))]
    planes = resized(np.array(image.crop(box)), size, interpolation)
    flip = random.random() < 0.5
    factors = random.uniform(1 - JITTER, 1 + JITTER, size=3).tolist()
    planes = jitter(planes, factors, random.permutation(3).tolist())
    return np.stack(tuple(planes[:, :, ::-1] if flip else planes), axis=-1)


def resized(
    image: UInt8[np.ndarray, "h w 3"], size: int, interpolation: str
) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """Resize to a square with antialiasing, as Pillow does, and part the channels.

    First along the rows, then the columns: within a level of Pillow's in that order, two in noise
    (its newer releases choose theirs by the work it takes). With AVX2 four times as fast as Pillow,
    and on the calling thread alone; the same bytes, slowly, without it.
    """
    import torch  # here: commands that render nothing start without it

    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    square = torch.nn.functional.interpolate(
        planes, (size, size), mode=interpolation, antialias=True
    )
    return square[0].numpy()


def jitter(
    planes: UInt8[np.ndarray, "3 h w"], factors: list[float], order: list[int]
) -> UInt8[np.ndarray, "3 h w"]:
    """Adjust brightness (0), contrast (1) and saturation (2) by `factors`, in `order`.

    Each moves the levels towards or away from a reference: black, the picture's mean grey, each
    pixel's grey. In fixed point of 16 bits, which holds 255 levels times a change of up to a half:
    at most one level per operation from Pillow's `ImageEnhance`, in a third of its time.
    """
    levels = planes.astype(np.int16)
    for number in order:
        match number:
            case 0:
                change = levels.copy()
            case 1:
                change = levels - math.floor(_grey(levels).mean() + 0.5)
            case _:
                change = levels - _grey(levels)
        change *= round((factors[number] - 1) * 256)
        change >>= 8
        change += levels
        levels = change.clip(0, 255, out=change)
    return levels.astype(np.uint8)


def _grey(levels: Int16[np.ndarray, "3 h w"]) -> Int16[np.ndarray, "h w"]:
    """Return the luma of ITU-R 601, its weights in 256ths."""
    red, green, blue = levels.view(np.uint16)
    return ((77 * red + 150 * green + 29 * blue + 128) >> 8).view(np.int16)


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
