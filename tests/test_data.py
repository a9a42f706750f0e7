"""Reading images of every kind, and opening data sets of every kind."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion import data
from diffusion.data import DataError, fit, open_dataset, read_image, resize_shorter

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [255, 255, 255], [0, 0, 0]]], dtype=np.uint8)
ALPHA = np.array([[0, 64, 128], [192, 254, 255]], dtype=np.uint8)


def chw(levels: np.ndarray) -> np.ndarray:
    """8-bit [H, W] or [H, W, C] as the float32 [C, H, W] that reading it must give."""
    return np.atleast_3d(levels).transpose(2, 0, 1).astype(np.float32) / 255


def over_white(levels: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    opacity = alpha / 255.0
    return chw(levels) * opacity + 1 - opacity


def check(image: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert image.dtype == np.float32
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    np.testing.assert_allclose(image, expected, rtol=0, atol=tolerance)


@contextmanager
def fails(*words: object) -> Iterator[None]:
    """Expect a DataError of one line that holds all the words."""
    with pytest.raises(DataError) as caught:
        yield
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message


# Kinds of images


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), (GREY > 127).astype(np.float32)[None])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)
    check(read_image(path), chw(GREY))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "tga"])
def test_colour(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}")
    check(read_image(tmp_path / f"a.{suffix}"), chw(COLOUR))


def test_forced_modes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    check(read_image(path, "RGB"), chw(COLOUR))
    luma = np.array([[0.299, 0.587, 0.114], [(2.99 + 11.74 + 3.42) / 255, 1, 0]])
    check(read_image(path, "L"), luma[None], 1e-6)

    sixteen = np.array([[0, 1000], [30000, 65535]], dtype=np.uint16)
    Image.fromarray(sixteen).save(path)
    check(read_image(path, "RGB"), np.repeat((sixteen / np.float32(65535))[None], 3, axis=0))
    check(read_image(path, "L"), (sixteen / np.float32(65535))[None])


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([200, 10, 20, 0, 100, 250, 7, 8, 9])
    colours = np.array([[200, 10, 20], [0, 100, 250], [7, 8, 9]], dtype=np.uint8)
    expected = colours[[[0, 1], [2, 1]]]

    image.save(tmp_path / "opaque.png")
    check(read_image(tmp_path / "opaque.png"), chw(expected))

    image.save(tmp_path / "partial.png", transparency=bytes([255, 51, 0]))
    with Image.open(tmp_path / "partial.png") as written:
        assert written.mode == "P"
    alpha = np.array([[255, 51], [0, 51]])
    check(read_image(tmp_path / "partial.png"), over_white(expected, alpha), 1e-6)

    image.save(tmp_path / "index.gif", transparency=2)
    check(read_image(tmp_path / "index.gif"), over_white(expected, np.array([[255, 255], [0, 255]])))

    # Palettes count as colour, and Pillow stores these few greys as one.
    Image.fromarray(GREY).save(tmp_path / "grey.gif")
    check(read_image(tmp_path / "grey.gif"), np.repeat(chw(GREY), 3, axis=0))


def test_alpha(tmp_path: Path) -> None:
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]).save(tmp_path / "la.png")
    check(read_image(tmp_path / "la.png"), over_white(GREY), 1e-6)

    Image.fromarray(np.dstack([COLOUR, ALPHA])).save(tmp_path / "rgba.png")
    check(read_image(tmp_path / "rgba.png"), over_white(COLOUR), 1e-6)

    Image.fromarray(np.dstack([COLOUR, np.full_like(ALPHA, 255)])).save(tmp_path / "opaque.png")
    check(read_image(tmp_path / "opaque.png"), chw(COLOUR))


def test_transparent_colour_key(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=51)
    whitened = GREY.copy()
    whitened[GREY == 51] = 255
    check(read_image(tmp_path / "grey.png"), chw(whitened))

    Image.fromarray(COLOUR).save(tmp_path / "rgb.png", transparency=(10, 20, 30))
    whitened = COLOUR.copy()
    whitened[1, 0] = 255
    check(read_image(tmp_path / "rgb.png"), chw(whitened))

    Image.fromarray(GREY > 127).save(tmp_path / "bit.png", transparency=0)
    check(read_image(tmp_path / "bit.png"), np.ones((1, 2, 3)))


SIXTEEN = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(SIXTEEN).save(tmp_path / f"a.{suffix}")
    check(read_image(tmp_path / f"a.{suffix}"), (SIXTEEN / np.float32(65535))[None])


def test_16_bit_pgm(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes())
    check(read_image(tmp_path / "a.pgm"), (SIXTEEN / np.float32(65535))[None])


def test_dark_16_bit_grey_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)).save(tmp_path / "a.png")
    check(read_image(tmp_path / "a.png"), np.full((1, 2, 2), 200 / 65535), 1e-9)


def test_big_endian_16_bit_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes("I;16B", (3, 2), SIXTEEN.astype(">u2").tobytes()).save(path)
    with Image.open(path) as written:
        assert written.mode == "I;16B"
    check(read_image(path), (SIXTEEN / np.float32(65535))[None])


def test_integer_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(SIXTEEN.astype(np.int32)).save(path)
    check(read_image(path), (SIXTEEN / np.float32(65535))[None])
    for wrong in (-1, 65536):
        Image.fromarray(np.array([[0, 1], [2, wrong]], dtype=np.int32)).save(path)
        with fails(path, wrong, "65535"):
            read_image(path)


@pytest.mark.parametrize(("top", "scale"), [(0.5, 1), (1, 1), (1.5, 255), (255, 255), (256, 65535), (65535, 65535)])
def test_float_tiff(tmp_path: Path, top: float, scale: int) -> None:
    values = np.array([[0, 0.25], [0.125, top]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    check(read_image(tmp_path / "a.tif"), values[None] / scale)


@pytest.mark.parametrize("wrong", [-0.1, 65536, np.nan, np.inf, -np.inf])
def test_float_tiff_out_of_range(tmp_path: Path, wrong: float) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 1], [0.5, wrong]], dtype=np.float32)).save(path)
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
    check(read_image(tmp_path / "a.jpg"), chw(np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8)), 2 / 255)


def test_ycbcr(tmp_path: Path) -> None:
    Image.new("YCbCr", (16, 16), (76, 85, 255)).save(tmp_path / "a.tif", compression="tiff_lzw")
    check(read_image(tmp_path / "a.tif"), chw(np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8)), 2 / 255)


def test_lab(tmp_path: Path) -> None:
    # CIE L*a*b* of sRGB red under D50: 54.3, 80.8, 69.9; Pillow stores L* as 255 / 100 and offsets a*, b* by 128.
    path = tmp_path / "a.tif"
    Image.new("LAB", (2, 2), (round(54.3 * 2.55), 128 + 81, 128 + 70)).save(path)
    with Image.open(path) as written:
        assert written.mode == "LAB"
    check(read_image(path), chw(np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)), 6 / 255)


@pytest.mark.parametrize(("mode", "values"), [("HSV", (0, 255, 254)), ("YCbCr", (76, 85, 255))])
def test_modes_without_a_common_format(monkeypatch: pytest.MonkeyPatch, mode: str, values: tuple[int, ...]) -> None:
    # Pillow writes no HSV file, and decodes most YCbCr files to RGB: the opened image is put in place of a file.
    monkeypatch.setattr(Image, "open", lambda file, formats: Image.new(mode, (2, 2), values))
    check(read_image(io.BytesIO()), chw(np.full((2, 2, 3), (254, 0, 0), dtype=np.uint8)))


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    first.save(path, save_all=True, append_images=[second], lossless=True)
    with Image.open(path) as written:
        assert written.n_frames == 2
    check(read_image(path), chw(np.full((4, 4, 3), (255, 0, 0), dtype=np.uint8)))


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


def test_missing_and_folder(tmp_path: Path) -> None:
    with fails(tmp_path / "no.png", "no such file"):
        read_image(tmp_path / "no.png")
    with fails(tmp_path, "folder"):
        read_image(tmp_path)
    with fails("two lines.png"):
        read_image("two\nlines.png")


@pytest.mark.parametrize("content", [b"", b"not an image\n", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with fails(path):
        read_image(path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path, "EPS")
    with fails(path, "not an image"):
        read_image(path)


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
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)
    with fails(path, "damaged"):
        read_image(path)


@pytest.mark.parametrize("limit", [5, 2], ids=["warning", "error"])
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with fails(path, "too large", f"{limit} pixels"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6)
    check(read_image(path), chw(COLOUR))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_too_small(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("L", shape).save(path)
    with fails(path, f"{shape[0]} x {shape[1]} image: at least 2 x 2 pixels are needed"):
        read_image(path)


# Resizing


def test_fit_crops_the_centre() -> None:
    image = np.random.default_rng(0).random((3, 6, 10), dtype=np.float32)
    check(fit(image, 6), image[:, :, 2:8])
    check(fit(image.transpose(0, 2, 1), 6), image.transpose(0, 2, 1)[:, 2:8])


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


# Data sets


def save(path: Path, level: int | tuple[int, ...], mode: str = "RGB", side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), level).save(path)


def levels(dataset: data.ImageDataset) -> list[int]:
    """First value of each image, in 8-bit levels: the constant images of these tests are told apart by it."""
    return [round(float(image[0, 0, 0]) * 255) for image in dataset]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six constant images, written in an order that is not the one to read them in, among files to leave out."""
    root = tmp_path / "pictures"
    for name, level in [("b.png", 40), ("a/z.png", 20), ("c/d/e.PNG", 50), ("a.png", 30), ("a/b/c.bmp", 10)]:
        save(root / name, (level, level, level + 1))
    save(root / "z.tif", 60, "L", side=12)
    for hidden in (".hidden.png", ".git/x.png", "c/.cache/x.png"):
        save(root / hidden, 99, "L")
    (root / "notes.txt").write_text("not an image")
    (root / "dataset.json").write_text('{"labels": null}')
    return root


# "a.png" precedes "a/..." since "." sorts before "/".
IN_ORDER = [30, 10, 20, 40, 50, 60]


def zipped(folder: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, path.relative_to(folder))
    return archive


def test_digits() -> None:
    digits = open_dataset("digits", None, None)
    assert (len(digits), digits.size, digits.channels, digits.name) == (1797, 16, 1, "digits")
    assert "1797" in digits.description and "\n" not in digits.description
    assert digits.labels.dtype == np.int64 and digits.labels.shape == (1797,)
    assert digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    images = np.stack(list(digits))
    assert images.shape == (1797, 1, 16, 16) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1


def test_digits_at_their_own_size() -> None:
    digits = open_dataset("digits", 8, None)
    first = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    check(digits[0][:, :3], np.array([first], dtype=np.float32) / 16)
    check(digits[-1][:, :1], np.array([[[0, 0, 10, 14, 8, 1, 0, 0]]], dtype=np.float32) / 16)
    assert sum(int(image.sum() * 16) for image in digits) == 561718
    check(open_dataset("digits", 8, None, grey=False)[0], np.repeat(digits[0], 3, axis=0))


def test_digits_equal_the_original() -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    digits = open_dataset("digits", 8, None)
    np.testing.assert_array_equal(np.stack(list(digits))[:, 0] * 16, original.images)
    np.testing.assert_array_equal(digits.labels, original.target)


def test_halves_are_disjoint_and_together_everything() -> None:
    whole = open_dataset("digits", 8, None)
    even, odd = (data.half(whole, split) for split in ("even", "odd"))
    assert (len(even), len(odd)) == (899, 898) and (even.name, odd.name) == ("digits[even]", "digits[odd]")
    assert "the 899 of even number" in even.description and (even.channels, even.size) == (1, 8)
    for number in range(len(whole)):
        one = (even, odd)[number % 2]
        assert np.array_equal(one[number // 2], whole[number]) and one.labels[number // 2] == whole.labels[number]
    assert list(data.numbers_of("even", 5)) == [0, 2, 4] and list(data.numbers_of("odd", 5)) == [1, 3]
    assert data.half(whole, "all") is whole and list(data.numbers_of("all", 3)) == [0, 1, 2]
    with pytest.raises(IndexError):
        odd[898]


def test_the_only_image_has_no_other_half(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    one = open_dataset(str(tmp_path), 8, None)
    assert len(data.half(one, "even")) == 1
    with pytest.raises(DataError, match="1 image has none of odd number; at least 2 are needed"):
        data.half(one, "odd")


@pytest.mark.parametrize("name", ["digits", "my faces", "a[b]", "[even]", "x[even]y", "hf:owner/name"])
@pytest.mark.parametrize("split", ["all", "even", "odd"])
def test_the_name_of_a_half_tells_which(name: str, split: str) -> None:
    assert data.whole_and_half(data.name_of_half(name, split)) == (name, split)


def test_folder(folder: Path) -> None:
    dataset = open_dataset(str(folder), None, None)
    assert (len(dataset), dataset.size, dataset.channels, dataset.name) == (6, 64, 3, "pictures")
    assert dataset.labels is None
    assert "6 colour images" in dataset.description and str(folder) in dataset.description
    assert levels(dataset) == IN_ORDER
    check(dataset[0], np.repeat(chw(np.full((64, 64), 30)), 3, axis=0) + chw(np.full((64, 64, 3), (0, 0, 1))), 1e-6)
    with pytest.raises(IndexError):
        dataset[6]


def test_folder_order_does_not_depend_on_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = os.walk

    def backwards(*args, **options):
        for directory, folders, names in walk(*args, **options):
            folders.sort(reverse=True)
            yield directory, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert levels(open_dataset(str(folder), 8, None)) == IN_ORDER


def test_links_are_followed_but_not_in_loops(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.png", 70)
    (folder / "c" / "up").symlink_to(folder)
    (folder / "c" / "side").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "c")
    assert levels(open_dataset(str(folder), 8, None)) == [30, 10, 20, 40, 50, 70, 60]


def test_grey_or_colour(tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / f"{index:02}.png", index, "RGB" if index == 32 else "L", side=2)
    dataset = open_dataset(str(tmp_path), 2, None)
    assert dataset.channels == 1 and dataset[32].shape == (1, 2, 2)
    assert "40 grey images" in dataset.description
    assert open_dataset(str(tmp_path), 2, None, grey=False)[0].shape == (3, 2, 2)

    save(tmp_path / "31.png", 31, "RGB", side=2)
    assert open_dataset(str(tmp_path), 2, None)[0].shape == (3, 2, 2)
    assert open_dataset(str(tmp_path), 2, None, grey=True)[31].shape == (1, 2, 2)


def test_each_file_is_decoded_once_if_all_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(file, mode, name):
        decoded.append(name)
        return read_image(file, mode, name)

    monkeypatch.setattr(data, "read_image", counting)
    dataset = open_dataset(str(folder), 8, None)
    assert decoded == []
    once, again = list(dataset), list(dataset)
    assert len(decoded) == 6
    np.testing.assert_array_equal(once, again)

    monkeypatch.setattr(data, "_CACHE_BYTES", 6 * 3 * 8 * 8 - 1)
    too_large = open_dataset(str(folder), 8, None)
    np.testing.assert_array_equal(list(too_large), once)
    np.testing.assert_array_equal(list(too_large), once)
    assert len(decoded) == 18


def test_files_are_rounded_to_8_bits(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint16) * 1000, (64, 64))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = open_dataset(str(tmp_path), 24, None)[0]
    check(image, fit(read_image(tmp_path / "a.png"), 24), 0.5001 / 255)
    check(image, chw(np.rint(image[0] * 255)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_equals_folder(folder: Path, tmp_path: Path, compression: int) -> None:
    dataset = open_dataset(str(zipped(folder, tmp_path / "p.zip", compression)), 8, None)
    assert (len(dataset), dataset.channels, dataset.name) == (6, 3, "p.zip")
    np.testing.assert_array_equal(list(dataset), list(open_dataset(str(folder), 8, None)))


def test_zip_in_threads_processes_and_pickles(tmp_path: Path) -> None:
    for index in range(24):
        save(tmp_path / "in" / f"{index:02}.png", index, "L")
    archive = zipped(tmp_path / "in", tmp_path / "p.zip")
    dataset = open_dataset(str(archive), 8, None)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        forked = processes.map(dataset.__getitem__, range(24), chunksize=1)
    with ThreadPoolExecutor(4) as threads:
        threaded = list(threads.map(dataset.__getitem__, range(24)))
    for images in (forked, threaded, pickle.loads(pickle.dumps(open_dataset(str(archive), 8, None)))):
        assert [round(float(image[0, 0, 0]) * 255) for image in images] == list(range(24))


def test_processes_and_threads_do_not_share_a_zip_handle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Counting(zipfile.ZipFile):
        def __init__(self, *args, **options):
            opened.append(args)
            super().__init__(*args, **options)

    archive = zipped(folder, tmp_path / "p.zip")
    monkeypatch.setattr(zipfile, "ZipFile", Counting)
    dataset = open_dataset(str(archive), 8, None)
    dataset[0], dataset[1]
    assert len(opened) == 1
    with ThreadPoolExecutor(1) as thread:
        thread.submit(dataset.__getitem__, 2).result()
    assert len(opened) == 2
    monkeypatch.setattr(os, "getpid", lambda: -1)
    dataset[3], dataset[4]
    assert len(opened) == 3


# Data sets that cannot be opened


def test_bad_files_are_left_out_with_a_warning(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("text")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    save(folder / "small.png", 1, side=1)
    with pytest.warns(UserWarning, match="3 of 9 image files .*: broken.png, dangling.png, small.png;") as record:
        dataset = open_dataset(str(folder), 8, None)
    assert levels(dataset) == IN_ORDER
    assert len(record) == 1 and record[0].filename == __file__

    (folder / "dangling.png").unlink()
    with pytest.warns(UserWarning, match="2 of 8 image files .*: broken.png, small.png;"):
        assert levels(open_dataset(str(zipped(folder, tmp_path / "p.zip")), 8, None)) == IN_ORDER


def test_the_share_of_bad_files_decides(tmp_path: Path) -> None:
    for index in range(54):
        save(tmp_path / f"{index:02}.png", index, "L", side=2)
    for index in range(6):
        (tmp_path / f"bad{index}.png").write_text("text")
    with pytest.warns(UserWarning, match="6 of 60 .*: bad0.png, bad1.png, bad2.png, bad3.png, bad4.png, ...;"):
        assert len(open_dataset(str(tmp_path), 2, None)) == 54
    (tmp_path / "bad6.png").write_text("text")
    with fails(tmp_path, "7 of 61", "bad0.png", "bad4.png, ...;"):
        open_dataset(str(tmp_path), 2, None)


def test_no_image_left(tmp_path: Path) -> None:
    with fails(tmp_path, "no image files"):
        open_dataset(str(tmp_path), 8, None)
    (tmp_path / "a.png").write_text("text")
    with fails(tmp_path, "1 of 1", "a.png"):
        open_dataset(str(tmp_path), 8, None)


def test_damage_found_late_names_the_file(folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-30])
    for path in (folder, zipped(folder, tmp_path / "p.zip")):
        dataset = open_dataset(str(path), 8, None)
        assert len(dataset) == 6
        with fails(path / "b.png"):
            dataset[3]

    dataset = open_dataset(str(folder), 8, None)
    (folder / "a.png").unlink()
    with fails(folder / "a.png", "no such file"):
        dataset[0]


def test_corrupt_archives(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "p.zip")
    content = archive.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        archive.write_bytes(damaged)
        with fails(archive, "damaged"):
            open_dataset(str(archive), 8, None)
    # Local headers overwritten: the directory can be read, no member can.
    archive.write_bytes(content.replace(b"PK\3\4", b"PK\0\0"))
    with fails(archive, "6 of 6"):
        open_dataset(str(archive), 8, None)


def test_encrypted_archive(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "p.zip")
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\1\2")
    while (start := content.find(b"PK\1\2", start)) >= 0:
        content[start + 8 : start + 10] = struct.pack("<H", 1)
        start += 4
    archive.write_bytes(content)
    with fails(archive, "without password"):
        open_dataset(str(archive), 8, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", ["did you mean 'digits'", "folder", ".zip"]),
        ("FFHQ", ["did you mean 'ffhq'"]),
        ("nowhere/at/all", ["no such folder or archive", "folder", ".zip", "'digits'", "'ffhq'"]),
        ("nowhere.zip", ["no such folder or archive"]),
        ("", ["no such folder or archive"]),
        ("two\nlines", ["two lines"]),
    ],
)
def test_unknown_names(name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with fails(*words):
        open_dataset(name, None, None)


def test_a_single_file_is_no_data_set(folder: Path) -> None:
    with fails(folder / "a.png", "single file", "folder"):
        open_dataset(str(folder / "a.png"), None, None)


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_size_too_small(size: int) -> None:
    with fails(f"size {size}", "at least 2"):
        open_dataset("digits", size, None)


# FFHQ


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no data folder named in the environment."""
    monkeypatch.delenv("BEYOND_BLUR_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_ffhq_is_looked_for_in_order(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, named = elsewhere / "root", elsewhere / "named"
    monkeypatch.setenv("BEYOND_BLUR_DATA", str(named))

    def found(size: int | None = None) -> int:
        dataset = open_dataset("ffhq", size, root)
        assert dataset.name == "ffhq" and dataset.size == (size or 128)
        return levels(dataset)[0]

    # From the last place to the first: each new one comes before all the earlier.
    save(Path("data/images1024x1024/00000/00000.png"), 1)
    assert found() == 1
    save(Path("data/thumbnails128x128/00000.png"), 2)
    assert found() == 2
    save(named / "images1024x1024/00000.png", 3)
    assert found() == 3
    save(root / "thumbnails128x128/00000/00000.png", 4)
    assert found() == 4
    for level, name in [(5, "ffhq-128x128.zip"), (6, "ffhq-32x32.zip"), (7, "ffhq.zip")]:
        save(elsewhere / name[:-4] / "img.png", level)
        zipped(elsewhere / name[:-4], root / name)
        assert (found(), found(32)) == {5: (5, 4), 6: (5, 6), 7: (7, 7)}[level]
    save(root / "ffhq/00000.png", 8)
    assert found() == 8


def test_missing_ffhq_says_where_to_get_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ["https://github.com/NVlabs/ffhq-dataset", "thumbnails128x128", "70,000", "2 GB", "CC BY-NC-SA 4.0"]
    with fails(*source, elsewhere / "root" / "thumbnails128x128", "--data FOLDER"):
        open_dataset("ffhq", None, elsewhere / "root")
    with fails(Path("data") / "thumbnails128x128"):
        open_dataset("ffhq", None, None)
    monkeypatch.setenv("BEYOND_BLUR_DATA", str(elsewhere / "named"))
    with fails("ffhq-64x64.zip", elsewhere / "named" / "thumbnails128x128"):
        open_dataset("ffhq", 64, None)
