"""Reading images of every kind, and making them small."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data.images import (
    fit,
    fitting,
    is_grey,
    natural_key,
    open_image,
    read_image,
    resize_shorter,
    shorter_to,
    value_range,
)
from diffusion.size import Size
from tests.pictures import check, chw, fails

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [255, 255, 255], [0, 0, 0]]], dtype=np.uint8)
ALPHA = np.array([[0, 64, 128], [192, 254, 255]], dtype=np.uint8)
SIXTEEN = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
RED = chw(np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8))


def over_white(levels: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    opacity = alpha / 255.0
    return chw(levels) * opacity + 1 - opacity


def whitened(levels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The image with white at some pixels."""
    result = levels.copy()
    result[where] = 255
    return chw(result)


# Kinds of images


@pytest.mark.parametrize(
    ("levels", "suffix"),
    [
        *((GREY, suffix) for suffix in ("png", "bmp", "tif", "pgm")),
        *((COLOUR, suffix) for suffix in ("png", "bmp", "tif", "ppm", "tga")),
    ],
)
def test_grey_and_colour(tmp_path: Path, levels: np.ndarray, suffix: str) -> None:
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    check(read_image(tmp_path / f"a.{suffix}"), chw(levels))


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.fromarray(GREY > 127), {}, (GREY > 127).astype(np.float32)[None]),
        (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), {}, over_white(GREY)),
        (Image.fromarray(np.dstack([COLOUR, ALPHA])), {}, over_white(COLOUR)),
        (Image.fromarray(np.dstack([COLOUR, np.full_like(ALPHA, 255)])), {}, chw(COLOUR)),
        (Image.fromarray(GREY), {"transparency": 51}, whitened(GREY, GREY == 51)),
        (Image.fromarray(COLOUR), {"transparency": (10, 20, 30)}, whitened(COLOUR, (COLOUR == (10, 20, 30)).all(2))),
        (Image.fromarray(GREY > 127), {"transparency": 0}, np.ones((1, 2, 3))),
        (Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)), {}, np.full((1, 2, 2), 200 / 65535)),
    ],
    ids=["1-bit", "grey-alpha", "colour-alpha", "opaque", "grey-key", "colour-key", "1-bit-key", "dark-16-bit-stays-dark"],
)
def test_kinds_of_png(tmp_path: Path, image: Image.Image, options: dict, expected: np.ndarray) -> None:
    image.save(tmp_path / "a.png", **options)
    check(read_image(tmp_path / "a.png"), expected, 1e-6)


def test_grey_of_16_bits_with_transparency_is_grey(tmp_path: Path) -> None:
    """PNG's colour type 4, which Pillow decodes as colour."""
    (tmp_path / "a.png").write_bytes(png(np.dstack([SIXTEEN, np.full((2, 3), 65535)]), 4))
    with open(tmp_path / "a.png", "rb") as file:
        assert is_grey(open_image(file, "a.png"))
    check(read_image(tmp_path / "a.png"), (SIXTEEN / np.float32(65535))[None])


def png(words: np.ndarray, kind: int) -> bytes:
    """A PNG file of [H, W, C] values of 16 bits, of a colour type that Pillow cannot write."""
    header = struct.pack(">2I5B", words.shape[1], words.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_colours_of_16_bits_keep_them(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    opacity = words[..., 3:] / np.float32(65535)
    over = words[..., :3] / np.float32(65535) * opacity + (1 - opacity)
    (tmp_path / "colour.png").write_bytes(png(words[..., :3], 2))
    (tmp_path / "alpha.png").write_bytes(png(words, 6))
    tifffile = pytest.importorskip("tifffile")
    for order, name in itertools.product("<>", (None, "zlib")):
        tifffile.imwrite(tmp_path / f"{name}.tif", words[..., :3], photometric="rgb", compression=name, byteorder=order)
        check(read_image(tmp_path / f"{name}.tif"), (words[..., :3] / np.float32(65535)).transpose(2, 0, 1))
    check(read_image(tmp_path / "colour.png"), (words[..., :3] / np.float32(65535)).transpose(2, 0, 1))
    check(read_image(tmp_path / "alpha.png"), over.transpose(2, 0, 1), 1e-6)
    tifffile.imwrite(tmp_path / "planes.tif", words[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    with fails("planes.tif", "16 bits in a plane for each channel"):
        read_image(tmp_path / "planes.tif")


def test_forced_modes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    check(read_image(path, "RGB"), chw(COLOUR))
    luma = np.array([[0.299, 0.587, 0.114], [(2.99 + 11.74 + 3.42) / 255, 1, 0]])
    check(read_image(path, "L"), luma[None], 1e-6)
    Image.fromarray(SIXTEEN).save(path)
    for mode, channels in (("RGB", 3), ("L", 1)):
        check(read_image(path, mode), np.repeat((SIXTEEN / np.float32(65535))[None], channels, axis=0))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([200, 10, 20, 0, 100, 250, 7, 8, 9])
    expected = np.array([[200, 10, 20], [0, 100, 250], [7, 8, 9]], dtype=np.uint8)[[[0, 1], [2, 1]]]

    image.save(tmp_path / "opaque.png")
    check(read_image(tmp_path / "opaque.png"), chw(expected))
    image.save(tmp_path / "partial.png", transparency=bytes([255, 51, 0]))
    with Image.open(tmp_path / "partial.png") as written:
        assert written.mode == "P"
    check(read_image(tmp_path / "partial.png"), over_white(expected, np.array([[255, 51], [0, 51]])), 1e-6)
    image.save(tmp_path / "index.gif", transparency=2)
    check(read_image(tmp_path / "index.gif"), over_white(expected, np.array([[255, 255], [0, 255]])))
    # Palettes count as colour, and Pillow stores these few greys as one.
    Image.fromarray(GREY).save(tmp_path / "grey.gif")
    check(read_image(tmp_path / "grey.gif"), np.repeat(chw(GREY), 3, axis=0))


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("png", Image.fromarray(SIXTEEN).save),
        ("tif", Image.fromarray(SIXTEEN).save),
        ("tif", Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()).save),
        ("tif", Image.fromarray(SIXTEEN.astype(np.int32)).save),
        ("pgm", lambda path: path.write_bytes(b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes())),
    ],
    ids=["png", "tif", "big-endian", "integer", "pgm"],
)
def test_16_bit_grey(tmp_path: Path, suffix: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / f"a.{suffix}")
    check(read_image(tmp_path / f"a.{suffix}"), (SIXTEEN / np.float32(65535))[None])


@pytest.mark.parametrize(("top", "scale"), [(0.5, 1), (1, 1), (16, 255), (255, 255), (5000, 65535), (65535, 65535)])
def test_float_tiff(tmp_path: Path, top: float, scale: int) -> None:
    values = np.array([[0, 0.25], [0.125, top]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), values[None] / scale)


@pytest.mark.parametrize(
    ("extremes", "expected"),
    [
        ([(0, 0)], (0, 1)),
        ([(0, 1.02), (-0.03, 0.4)], (0, 1)),
        ([(0, 0.9), (0.1, 0.8), (0, 3.7)], (0, 1)),
        ([(-1, 1.01), (-0.9, 0.2), (0.1, 0.8)], (-1, 1)),
        ([(0, 0.5), (0, 200), (3, 251)], (0, 255)),
        ([(0, 0), (0, 0), (-5, 255)], (0, 255)),
        ([(100, 40_000)], (0, 65535)),
        ([(np.nan, np.nan), (0, 255)], (0, 255)),
    ],
)
def test_the_range_is_that_of_most_pictures(extremes: list, expected: tuple[float, float]) -> None:
    assert value_range(extremes, "set") == expected


@pytest.mark.parametrize("extremes", [[(0, 3.7)], [(-2, 2)], [(0, 0.5), (0, 200)], [(-100, 100)], [(0, 1e6)], [(-0.06, 1)]])
def test_no_range_is_guessed(extremes: list) -> None:
    with fails("set: values from", "; expected 0 to 1, -1 to 1 or 0 to 255; rescale or clip them"):
        value_range(extremes, "set")


def test_a_person_counts() -> None:
    names = ["frame10.png", "frame2.png", "a.png", "frame02.png", "9.png", "10.png", "frame2b3.png", "frame2b12.png"]
    assert sorted(names, key=natural_key) == [
        *("9.png", "10.png", "a.png", "frame02.png", "frame2.png", "frame2b3.png", "frame2b12.png", "frame10.png")
    ]


@pytest.mark.parametrize(
    ("kind", "wrong"), [*((np.int32, w) for w in (-1, 65536)), *((np.float32, w) for w in (-1, 3.7, 1e5, np.nan, np.inf, -np.inf))]
)
def test_values_out_of_range(tmp_path: Path, kind: type, wrong: float) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 1], [2, wrong]], dtype=kind)).save(path)
    with fails(path, f"{wrong:g}" if np.isfinite(wrong) else "NaN or infinite"):
        read_image(path)


def test_cmyk(tmp_path: Path) -> None:
    cmyk = np.zeros((2, 2, 4), dtype=np.uint8)
    cmyk[0, 1], cmyk[1, 0], cmyk[1, 1] = [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]
    expected = np.array([[[255, 255, 255], [0, 255, 255]], [[255, 0, 0], [0, 0, 0]]], dtype=np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), chw(expected))
    # Adobe stores the inks of a JPEG inverted; a solid colour survives the compression.
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    check(read_image(tmp_path / "a.jpg"), RED, 2 / 255)


# Red: in CIE L*a*b* 54.3, 80.8, 69.9 under D50, with L* stored as 255 / 100 and a*, b* offset by 128.
@pytest.mark.parametrize(
    ("mode", "values", "options", "tolerance"),
    [("YCbCr", (76, 85, 255), {"compression": "tiff_lzw"}, 2), ("LAB", (round(54.3 * 2.55), 128 + 81, 128 + 70), {}, 6)],
)
def test_other_colour_spaces(tmp_path: Path, mode: str, values: tuple[int, ...], options: dict, tolerance: int) -> None:
    Image.new(mode, (16, 16), values).save(tmp_path / "a.tif", **options)
    check(read_image(tmp_path / "a.tif"), RED, tolerance / 255)


@pytest.mark.parametrize(("mode", "values"), [("HSV", (0, 255, 255)), ("YCbCr", (76, 85, 255))])
def test_modes_without_a_common_format(monkeypatch: pytest.MonkeyPatch, mode: str, values: tuple[int, ...]) -> None:
    # Pillow writes no HSV file, and decodes most YCbCr files to RGB: the opened image is put in place of a file.
    monkeypatch.setattr(Image, "open", lambda file, formats: Image.new(mode, (16, 16), values))
    check(read_image(io.BytesIO()), RED, 1 / 255)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    first.save(path, save_all=True, append_images=[second], lossless=True)
    with Image.open(path) as written:
        assert written.n_frames == 2
    check(read_image(path), RED)


# What each EXIF orientation asks for, as the stored image made upright.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("levels", [COLOUR, SIXTEEN], ids=["colour", "16-bit"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str, levels: np.ndarray) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(levels).save(path, exif=exif)
    upright = UPRIGHT[orientation](levels)
    check(read_image(path), chw(upright) if levels is COLOUR else (upright / np.float32(65535))[None])


def test_open_file(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        check(read_image(file), chw(COLOUR))
        assert not file.closed
    with fails("member.png"):
        read_image(io.BytesIO(b"nothing"), name="member.png")
    check(read_image(str(tmp_path / "a.png")), chw(COLOUR))


# Images that cannot be read


def test_files_that_are_no_images(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "no.png", "no such file"), (tmp_path, "folder"), ("two\nlines.png", "no such file")):
        with fails(str(path).replace("\n", " "), word):
            read_image(path)
    path = tmp_path / "a.png"
    for content in (b"", b"not an image\n", b"\x89PNG\r\n\x1a\n", b"GIF89a"):
        path.write_bytes(content)
        with fails(path):
            read_image(path)
    # PostScript is a program: it is not run.
    Image.fromarray(COLOUR).save(path, "EPS")
    with fails(path, "not an image"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "webp", "bmp", "ppm", "tga", "jp2"])
def test_truncated_at_every_length(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    for length in range(0, len(content) // 2, 7):
        path.write_bytes(content[:length])
        with fails(path):
            read_image(path)


def test_damaged_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    content = path.read_bytes()
    place = content.index(b"IDAT") + 6
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    with fails(path, "damaged"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [5, 2], ids=["warning", "error"])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with fails(path, "too large", f"{limit} pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    check(read_image(path), chw(COLOUR))


def test_a_small_file_with_huge_dimensions(tmp_path: Path) -> None:
    """A PNG of a few bytes that declares 60,000 x 60,000 pixels: refused before anything is decoded."""
    size = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with fails(tmp_path / "a.png", "too large to decode safely"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_too_small(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("L", shape).save(path)
    with fails(path, f"{shape[0]} x {shape[1]} image: at least 2 x 2 pixels are needed"):
        read_image(path)


# Resizing


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        (6, slice(None), slice(2, 8)),
        ((6, 10), slice(None), slice(None)),
        ((6, 5), slice(None), slice(2, 7)),
        ((2, 10), slice(2, 4), slice(None)),
        ("3x10", slice(1, 4), slice(None)),
    ],
)
def test_fit_crops_the_centre_to_the_aspect(size: object, rows: slice, columns: slice) -> None:
    image = np.random.default_rng(0).random((3, 6, 10), dtype=np.float32)
    check(fit(image, size), image[:, rows, columns])
    sides = Size.of(size)
    check(fit(image.transpose(0, 2, 1), Size(sides.width, sides.height)), image.transpose(0, 2, 1)[:, columns, rows])


def test_fit_to_an_aspect_is_cropping_and_then_resizing() -> None:
    image = np.random.default_rng(0).random((1, 24, 90), dtype=np.float32)
    # Twelve rows a third of the height each, and as wide as high by 3 to 2: 36 of the 90 columns.
    check(fit(image, (8, 12)), fit(image[:, :, 27:63], (8, 12)))
    assert fit(image, (100, 3)).shape == (1, 100, 3) and fit(image, (2, 1000)).shape == (1, 2, 1000)


def test_fit_averages_when_shrinking() -> None:
    # Plain subsampling would keep the contrast of a one-pixel checkerboard; averaging leaves its mean.
    board = (np.indices((32, 32)).sum(0) % 2).astype(np.float32)[None]
    check(fit(board, 8), np.full((1, 8, 8), 0.5), 0.01)
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 64))
    inner = fit(ramp, 16)[:, :, 3:-3]  # the kernel reaches three new pixels
    np.testing.assert_allclose(inner, ramp.reshape(1, 64, 16, 4).mean(3)[:, ::4, 3:-3], rtol=0, atol=1e-4)


def test_kernels() -> None:
    # One bright column, and how far it spreads; the negative lobes are clipped to 0.
    column = np.zeros((1, 32, 32), dtype=np.float32)
    column[:, :, 16] = 1
    # Keys's cubic with a = -1/2: w(1/4) = 111/128 and w(3/4) = 29/128.
    enlarged = fit(column, 64)[0, 0]
    np.testing.assert_allclose(enlarged[30:36], np.array([0, 29, 111, 111, 29, 0]) / 128, rtol=0, atol=1e-6)
    # Lanczos with three lobes is positive again between two and three new pixels away; a cubic ends at two.
    shrunk = fit(column, 8)[0, 0]
    assert (shrunk > 0).tolist() == [False, True, False, True, True, False, True, False]


def test_resizing_stays_in_range_and_keeps_constants() -> None:
    edge = np.zeros((1, 16, 16), dtype=np.float32)
    edge[:, :, 8:] = 1
    for size in (6, 40):
        resized = fit(edge, size)
        assert resized.dtype == np.float32
        assert resized.min() == 0 and resized.max() == 1
        check(fit(np.full((3, 16, 16), 0.3, dtype=np.float32), size), np.full((3, size, size), 0.3), 1e-6)


def test_resize_shorter_keeps_the_aspect() -> None:
    image = np.random.default_rng(0).random((1, 20, 31), dtype=np.float32)
    assert resize_shorter(image, 10).shape == (1, 10, 16)
    assert resize_shorter(image.transpose(0, 2, 1), 40).shape == (1, 62, 40)
    check(resize_shorter(image, 20), image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_a_part_of_a_picture_is_read_in_strips_and_is_the_same(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    picture = Image.fromarray(levels[..., 0] * np.uint16(257)) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    file, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    picture.save(file, "png", exif=turned)
    whole = read_image(file, "RGB")
    monkeypatch.setattr("diffusion.data.images.STRIP", 200)
    assert np.array_equal(read_image(file, "RGB"), whole) and whole.shape == (3, 53, 37)
    check(read_image(file, "RGB", cut=lambda own: fitting(own, Size(9, 12))), fit(whole, (9, 12)), 3e-7)
    check(read_image(file, "RGB", cut=partial(shorter_to, length=11)), resize_shorter(whole, 11), 3e-7)
