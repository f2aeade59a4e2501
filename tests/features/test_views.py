"""Views: against torchvision's transforms, and the laws of seeded views."""

import io
import math
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from askance.features import views
from askance.features.views import (
    CROP_FRACTION,
    MAX_PIXELS,
    RENDERING,
    Preprocessing,
    View,
    augment,
    crop_fraction,
    decode,
    enlarged_centre,
    jitter,
    plain,
    random_box,
    render,
    resized,
)
from askance.pipeline.seeding import generator
from askance.pipeline.vision import import_torchvision

import_torchvision()
from torchvision.transforms import InterpolationMode, RandomResizedCrop  # noqa: E402
from torchvision.transforms import functional as tv  # noqa: E402

PREPROCESSING = Preprocessing(32, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXEL_MEANS = {2: [127.52311197916667, 93.6259765625, 128.19075520833334]}
SIDES = st.integers(1, 120)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@given(SIDES, SIDES)
def test_plain_view_equals_torchvisions_resize_and_centre_crop(width, height):
    image = picture(width, height)
    theirs = tv.resize(image, math.floor(32 / 0.875), InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(
        np.asarray(plain(image, PREPROCESSING)), np.asarray(tv.center_crop(theirs, [32, 32]))
    )


@given(st.integers(2, 200), st.integers(2, 200), st.integers(0, 50))
def test_random_box_lies_inside_and_keeps_the_range_of_aspects(width, height, seed):
    left, top, right, bottom = random_box(width, height, generator(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_box_covers_8_to_100_percent_with_aspects_from_3_4_to_4_3():
    boxes = np.array([random_box(1000, 1000, generator(seed)) for seed in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = w * h / 1e6, np.log(w / h)
    assert 0.079 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    torch.manual_seed(0)
    square = torch.zeros(1, 1000, 1000)
    theirs = [RandomResizedCrop.get_params(square, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    assert abs(area.mean() - np.mean([h * w / 1e6 for _, _, h, w in theirs])) < 0.015
    assert abs(aspect.mean()) < 0.01
    assert np.abs(aspect).max() <= np.log(4 / 3) + 0.01


def test_a_picture_too_narrow_for_any_box_gives_its_centre():
    assert random_box(1000, 10, generator(0)) == (493, 0, 506, 10)


def levels_apart(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))


@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 9))
def test_resizing_is_within_a_level_of_pillows_rows_then_columns(width, height, bicubic, seed):
    image = picture(width, height, seed)
    resampling = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    theirs = image.resize((32, height), resampling).resize((32, 32), resampling)
    ours = resized(np.array(image), 32, "bicubic" if bicubic else "bilinear").transpose(1, 2, 0)
    apart = levels_apart(ours, theirs)
    assert apart.max() <= 2  # noise is the worst case: a level in the rows, one in the columns
    assert (apart > 1).mean() < 0.01


FACTORS = st.floats(0.6, 1.4)
CONTRASTS = st.sampled_from([(0, 256), (0, 40), (200, 256), (100, 101)])


@given(st.sampled_from([0, 1, 2]), FACTORS, CONTRASTS, st.integers(0, 9))
def test_each_adjustment_is_at_most_a_level_from_pillows(number, factor, levels, seed):
    pixels = np.random.default_rng(seed).integers(*levels, size=(20, 30, 3)).astype(np.uint8)
    enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
    theirs = enhancer(Image.fromarray(pixels)).enhance(factor)
    ours = jitter(pixels.transpose(2, 0, 1), [factor] * 3, [number]).transpose(1, 2, 0)
    assert levels_apart(ours, theirs).max() <= 1


@given(st.tuples(FACTORS, FACTORS, FACTORS), st.permutations([0, 1, 2]), st.integers(0, 9))
def test_colour_jitter_is_torchvisions_up_to_rounding(factors, order, seed):
    image = picture(30, 20, seed)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    theirs = image
    for number in order:
        theirs = adjust[number](theirs, factors[number])
    ours = jitter(np.asarray(image).transpose(2, 0, 1), list(factors), order).transpose(1, 2, 0)
    assert levels_apart(ours, theirs).max() <= 5  # a level each, raised by up to 1.4 behind it


@given(st.integers(0, 1000))
def test_augment_equals_torchvisions_operations_with_the_same_draws(seed):
    image = picture(90, 70)
    random = generator(seed)
    box = random_box(90, 70, random)
    bicubic = bool(random.integers(2))
    flip = random.random() < 0.5
    factors = random.uniform(0.6, 1.4, size=3)
    mode = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    left, top, right, bottom = box
    view = tv.crop(image, top, left, bottom - top, right - left)
    view = view.resize((32, view.height), mode).resize((32, 32), mode)
    view = tv.hflip(view) if flip else view
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for number in random.permutation(3):
        view = adjust[number](view, factors[number])
    apart = levels_apart(augment(image, 32, generator(seed)), view)
    assert apart.max() <= 5
    assert apart.mean() < 1.1  # by far the worst draw: a factor that rounds to 1


def test_flip_and_interpolation_are_drawn_evenly():
    image = picture(40, 40)
    draws = [generator("even", seed) for seed in range(400)]
    flips = []
    for random in draws:
        random_box(40, 40, random)
        flips.append([random.integers(2), random.random() < 0.5])
    np.testing.assert_allclose(np.mean(flips, axis=0), 0.5, atol=0.08)
    assert augment(image, 32, generator(1)).shape == (32, 32, 3)


KINDS = st.lists(st.sampled_from(View), min_size=1, max_size=4)


@given(KINDS, KINDS, st.data(), st.text(max_size=8), st.integers(0, 3))
def test_a_view_depends_on_seed_key_number_and_kind_alone(kinds, others, data, key, seed):
    """Whatever is rendered beside it, before it and behind it."""
    image = picture(50, 40)
    number = data.draw(st.integers(0, len(kinds) - 1))
    before = data.draw(st.lists(st.sampled_from(View), min_size=number, max_size=number))
    beside = (*before, kinds[number], *others)
    here = render(image, tuple(kinds), PREPROCESSING, seed, key)[number]
    np.testing.assert_array_equal(here, render(image, beside, PREPROCESSING, seed, key)[number])


def test_views_of_other_seeds_keys_and_numbers_differ():
    image = picture(50, 40)
    names = [(0, "a"), (1, "a"), (0, "b")]
    every = [render(image, (View.AUGMENT,) * 3, PREPROCESSING, *name) for name in names]
    assert len({view.tobytes() for views in every for view in views}) == 9


def test_views_depend_neither_on_threads_nor_on_their_order():
    contents = picture(50, 40)
    kinds = (View.AUGMENT, View.PLAIN, View.CROP, View.AUGMENT)
    keys = [f"{i}" for i in range(60)]
    alone = [render(contents, kinds, PREPROCESSING, 0, key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        turned = pool.map(lambda key: render(contents, kinds, PREPROCESSING, 0, key), keys[::-1])
        np.testing.assert_array_equal(list(turned)[::-1], alone)


def test_crop_fractions_are_uniform_from_a_tenth_to_three_quarters():
    fractions = [crop_fraction(0, f"{i}") for i in range(2000)]
    assert CROP_FRACTION == (0.1, 0.75)
    assert 0.1 <= min(fractions) < 0.11
    assert 0.74 < max(fractions) <= 0.75
    assert abs(np.mean(fractions) - 0.425) < 0.01


def test_enlarged_centre_keeps_the_centre():
    grey = np.zeros((32, 32, 3), np.uint8)
    grey[8:24, 8:24] = 200
    np.testing.assert_array_equal(np.asarray(enlarged_centre(Image.fromarray(grey), 0.5)), 200)


def test_odd_but_whole_images_are_decoded(encode):
    rgb = picture(20, 10)
    for mode, extension in (
        ("L", "png"),
        ("CMYK", "jpg"),
        ("RGBA", "png"),
        ("P", "gif"),
        ("1", "png"),
    ):
        image = decode(encode(rgb.convert(mode), extension))
        assert (image.mode, image.size) == ("RGB", (20, 10)), mode


def test_16_bit_images_keep_their_high_byte(encode):
    deep = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    np.testing.assert_array_equal(np.asarray(decode(encode(deep))), 0x80)


def test_transparency_is_laid_onto_white(encode):
    clear = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    np.testing.assert_array_equal(np.asarray(decode(encode(clear))), 255)


def test_an_animation_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(np.asarray(decode(content))[0, 0], [255, 0, 0])


def test_the_exif_orientation_is_applied(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(picture(20, 10), "jpg", exif=exif)).size == (10, 20)


def test_damaged_images_are_refused(encode):
    with pytest.raises(ValueError, match="expected an image, got 9 bytes of something else"):
        decode(b"not image")
    with pytest.raises(ValueError, match="expected a whole image, got a damaged one"):
        decode(encode(picture(200, 200), "jpg")[:-2000])
    with pytest.raises(ValueError, match="expected an image, got 0 bytes"):
        decode(b"")


def test_a_lack_of_memory_is_no_damage(encode, monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setitem(views.READERS, (b"\xff\xd8\xff",), fail)
    with pytest.raises(MemoryError):
        decode(encode(picture(20, 10), "jpg"))


def test_damage_in_the_metadata_is_refused_like_any_other(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0x9286: b"comment"}
    whole = encode(picture(20, 10), "jpg", exif=exif)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(random.integers(2, 120))] = int(random.integers(256))
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017 - most of the damage is readable


def test_a_strip_is_refused_before_it_is_enlarged(encode):
    with pytest.raises(ValueError, match="expected an image, got a strip of 2000 x 1"):
        decode(encode(Image.new("RGB", (2000, 1))))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_every_format_of_the_index_is_read(encode, extension):
    content = encode(picture(20, 10), extension)
    theirs = Image.open(io.BytesIO(content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(theirs))


@pytest.mark.parametrize("kind", ["eps", "ico", "pcx", "tga", "jpeg2000", "avif", "icns"])
def test_no_other_decoder_of_pillows_is_reached(encode, kind):
    """Ghostscript among them, by a file that is called .jpg."""
    content = encode(picture(64, 64), kind)
    assert Image.open(io.BytesIO(content)).format.lower() == kind
    with pytest.raises(ValueError, match="expected an image, got .* bytes of something else"):
        decode(content)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_any_damage_is_refused_or_read(encode, extension):
    whole = encode(picture(20, 10), extension)
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole[: int(random.integers(1, len(whole) + 1))])
        damaged[int(random.integers(min(len(damaged), 60)))] = int(random.integers(256))
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017 - some of the damage is readable


CLAIMS = {  # how a header writes width and height
    "jpg": lambda w, h: struct.pack(">HH", h, w),
    "webp": lambda w, h: struct.pack("<HH", w, h),
    "gif": lambda w, h: struct.pack("<HH", w, h),
    "bmp": lambda w, h: struct.pack("<II", w, h),
    "tiff": lambda w, h: struct.pack("<HHIIHHII", 256, 4, 1, w, 257, 4, 1, h),
    "ppm": lambda w, h: b"%d %d" % (w, h),
}


@pytest.mark.parametrize("side", [9_460, 13_000, 16_383])  # Pillow warns, warns, refuses
@pytest.mark.parametrize("extension", CLAIMS)
def test_a_picture_that_says_it_is_huge_is_refused(encode, extension, side):
    claim, small = CLAIMS[extension], encode(picture(20, 10), extension)
    content = small.replace(claim(20, 10), claim(side, side))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="expected an image of at most 89,478,485 pixels, got"):
            decode(content)
    assert not warned


def test_the_limit_is_ours_whatever_pillows_is(encode, monkeypatch):
    assert MAX_PIXELS <= Image.MAX_IMAGE_PIXELS  # else Pillow would warn of what is accepted
    content = png(13_000, 13_000, rows=1)
    for limit in (None, 1, 10**9):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="got 169,000,000 in one of 13000 x 13000: make it"):
            decode(content)
    monkeypatch.undo()
    monkeypatch.setattr(views, "MAX_PIXELS", 200)
    assert decode(encode(picture(20, 10))).size == (20, 10)
    with pytest.raises(ValueError, match="at most 200 pixels, got 210 in one of 21 x 10"):
        decode(encode(picture(21, 10)))


def deflated(row, rows):
    """Compress a repeated row without holding the whole."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()


def png(width, height, *chunks, rows):
    """Encode a black picture of 1 bit a pixel, with further chunks (name, content)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = (b"IDAT", deflated(bytes(1 + -(-width // 8)), rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, pixels, (b"IEND", b""))
    )


def tiff(side, tile):
    """Encode a black square in a single deflated tile."""
    pixels = deflated(bytes(tile), tile)
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


PEAK = """
import pathlib, sys
from askance.features.views import decode
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
decode(pathlib.Path(sys.argv[1]).read_bytes())
for path in sys.argv[1:]:
    before = peak()
    try:
        decode(pathlib.Path(path).read_bytes())
    except ValueError:
        pass
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_no_bomb_takes_memory(tmp_path):
    """The peak is of the whole process: decoders allocate outside of Python."""
    text = b"name\0\0" + deflated(bytes(1 << 20), 200)
    bombs = {
        "whole": png(20, 10, rows=10),
        "pixels": png(13_000, 13_000, rows=13_000),
        "tile": tiff(64, 13_000),
        "text": png(20, 10, (b"zTXt", text), rows=10),
        "profile": png(20, 10, (b"iCCP", text), rows=10),
    }
    assert decode(tiff(64, 64)).size == (64, 64)
    for name, content in bombs.items():
        assert len(content) < 1 << 20
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in bombs]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True
    )
    assert max(int(line) for line in done.stdout.split()) < 30_000  # KiB; undefended: 169 MB up


@pytest.mark.parametrize("extension", ["gif", "tiff", "webp"])
def test_frames_behind_the_first_are_not_decoded(encode, extension):
    first, second = picture(40, 30, 1), picture(40, 30, 2)
    options = {} if extension != "webp" else {"lossless": True}
    alone = decode(encode(first, extension, **options))
    both = encode(first, extension, save_all=True, append_images=[second], **options)
    damaged = both if extension == "webp" else both[: -len(both) // 3]  # webp is checked as a whole
    np.testing.assert_array_equal(np.asarray(decode(damaged)), np.asarray(alone))


def test_the_smallest_picture_is_decoded_and_rendered(encode):
    image = decode(encode(picture(1, 1)))
    pixels = render(image, tuple(View), PREPROCESSING, 0, "k")
    assert pixels.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(pixels[0, 0, 0], np.asarray(image)[0, 0])


THREADS = """
import os, torch
import numpy as np
from PIL import Image
from askance.features.views import augment
from askance.pipeline.seeding import generator
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
for seed in range(9):
    augment(Image.new("RGB", (1500, 1000)), 224, generator(seed))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="counts threads in /proc, and needs AVX2",
)
def test_augment_starts_no_thread():
    """Pictures are rendered by many threads already."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 0


def test_the_pixels_of_all_views_are_those_of_this_version():
    """Pinned from a run of ours; where they change, RENDERING must, or old stores are continued."""
    views = render(picture(60, 50), (View.PLAIN, View.AUGMENT, View.CROP), PREPROCESSING, 0, "k")
    means = views.reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(means, PIXEL_MEANS[RENDERING], atol=1e-9)


def test_jitter_factors_reach_from_0_6_to_1_4():
    """The widest factors, told from a grey picture's brightness."""
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    levels = [np.asarray(augment(grey, 8, generator("jitter", s))).mean() for s in range(300)]
    assert 60 <= min(levels) < 66
    assert 134 < max(levels) <= 141
    assert ImageEnhance.Brightness(grey).enhance(1.4).getpixel((0, 0)) == (140, 140, 140)
