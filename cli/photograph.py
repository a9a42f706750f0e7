"""Photographs: read as their files hold them, frames of a scene carried onto each other, restored in tiles, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from cli.video import is_film, open_film, pictures_in, remark_on_others
from diffusion.data.images import data_errors, decoded, open_image, read_image
from diffusion.data.pair_files import png, tiff
from diffusion.data.products import mark, save_image
from diffusion.files import write_json
from diffusion.sampling import burst, tiles
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.checks import InputError, amount

RECORD = "restoration.json"
# Noise that does not tell a blurred picture from a soft one.
LITTLE = 0.01
# What is drawn white in a map of what is not known, in units of the range.
WHITE = 0.3


@dataclass(frozen=True)
class Photograph:
    """A picture as its file holds it.

    Attributes:
        pixels: float32 [C, H, W] in [0, 1]; under transparency the colours themselves.
        alpha: of its dtype, [1, H, W], if it has transparency.
        dtype: uint8 or uint16.
        tiff: whether the file is a TIFF file.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    dtype: type[np.uint8] | type[np.uint16]
    tiff: bool

    @classmethod
    def read(cls, path: Path) -> Photograph:
        """The first picture of a file."""
        with data_errors(str(path)), open(path, "rb") as file:
            image: Image.Image = open_image(file, str(path))
            remark_on_others(image, path)
            stored = _stored(image)
            layers = decoded(image, str(path), over_white=False)
        read = cls(layers, None, *stored)
        return read if len(layers) in (1, 3) else replace(read, pixels=layers[:-1], alpha=read.quantised(layers[-1:]))

    @classmethod
    def of_burst(cls, pixels: np.ndarray, path: Path) -> Photograph:
        """What became of frames, with the bits and the kind of file of the first; of those of a film, 8 and PNG."""
        if is_film(path):
            return cls(pixels, None, np.uint8, False)
        with data_errors(str(path)), open(path, "rb") as file:
            return cls(pixels, None, *_stored(open_image(file, str(path))))

    def quantised(self, values: np.ndarray) -> np.ndarray:
        """Values around [0, 1] in its dtype."""
        return np.rint(values.clip(0.0, 1.0) * np.iinfo(self.dtype).max).astype(self.dtype)

    def write(self, folder: Path, name: str, pixels: np.ndarray) -> str:
        """Write pixels [C, H, W] of its dtype, with its transparency, in its kind of file; returns the whole name."""
        deep = self.dtype is np.uint16
        pixels = (pixels if self.alpha is None else np.concatenate([pixels, self.alpha])).transpose(1, 2, 0)
        name += ".tif" if deep and self.tiff else ".png"
        if deep:
            (folder / name).write_bytes((tiff if self.tiff else png)(pixels, mark("sample")))
        else:
            save_image(folder / name, pixels, "sample")
        return name


def _stored(image: Image.Image) -> tuple[type[np.uint8] | type[np.uint16], bool]:
    """The dtype of an image that is not decoded yet, and whether it is of a TIFF file."""
    deep = image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    return np.uint16 if deep else np.uint8, image.format == "TIFF"


@dataclass(frozen=True)
class Frames:
    """Frames of one scene, read again each time that they are asked for.

    Attributes:
        count: how many.
        read: makes an iterator of them, float32 [C, H, W] in [0, 1].
        first: the file whose bits and kind what becomes of them has.
    """

    count: int
    read: Callable[[], Iterator[np.ndarray]]
    first: Path

    @classmethod
    def of(cls, pictures: tuple[Path, ...]) -> Frames | None:
        """Those of several pictures, of a folder or of a film; None for a single picture."""
        place = pictures[0]
        if len(pictures) > 1:
            return cls.of_files(pictures)
        if place.is_dir():
            files, remarks = pictures_in(place)
            found = cls.of_files(files)
        elif is_film(place):
            film = open_film(place)
            found, remarks = cls(film.count, film.read, place), film.remarks
        else:
            return None
        for remark in remarks:
            print(f"{place}: {remark}")
        return found

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Frames:
        """Those of pictures, in their own colours."""
        return cls(len(files), lambda: (read_image(path) for path in files), files[0])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(frame) for frame in self.read())


def restored_photograph(
    folder: Path,
    pictures: tuple[Path, ...],
    model: Path,
    device: torch.device,
    blur: float | None,
    noise: float | None,
    sampling: float | None,
    ensemble: bool,
) -> list[str]:
    """Restore a photograph in tiles; write it with its own bits and transparency, the map of what is not known, and the record.

    Args:
        folder: where to.
        pictures: a picture; or several, a folder or a film: frames of one scene behind moving air. Of these the mean of the aligned
            frames is written too.
        model: folder of a model of photographs.
        device: where the network works.
        blur, noise: of a picture, if they are known.
        sampling: of the camera of frames, if it is known: lambda / D in pixels.
        ensemble: average over the eight orientations of a tile.

    Returns:
        Names of what it wrote.

    Raises:
        InputError: if blur or noise is given with frames, or the sampling without.
    """
    record: dict[str, object] = {"pictures": [str(path) for path in pictures]}
    frames = Frames.of(pictures)
    if frames and (blur is not None or noise is not None):
        raise InputError("--blur and --noise are of one photograph; blur and noise of several frames follow from how they differ")
    if not frames and sampling is not None:
        raise InputError("--sampling goes with several frames; one photograph has --blur and --noise")
    sampling, guessed = burst.SAMPLING if sampling is None else sampling, False
    pipeline, known = Pipeline.from_pretrained(model, device=device), tiles.DegradationEstimator.load(model)
    if frames:
        others = iter(frames)
        first = next(others)
        if len(frames) > 1 and all(torch.equal(first, other) for other in others):
            raise InputError("the frames are all equal; air and noise are found by how frames differ: restore one of them alone")
        with tqdm(total=burst.ROUNDS, unit="round", desc=f"aligning {amount(len(frames), 'frame')}") as bar:
            aligned = burst.align(frames, callback=lambda *_: bar.update())
        read = Photograph.of_burst(aligned.picture.numpy(), frames.first)
        made = [read.write(folder, "aligned", read.quantised(read.pixels))]
        found, half = burst.restored(pipeline, known, aligned, sampling, ensemble), tiles.NINETY
        shift, strength = aligned.tilt**0.5, aligned.air(sampling).strength
        print(f"shifts of {shift:.2f} px: D / r0 = {strength:.1f}, if lambda / D is {sampling:g} px (--sampling)")
        if strength > 10.0:
            print("this is more than the model of air is right for: did the camera move, too?")
        record |= {"noise_of_frames": aligned.noise.tolist(), "shift": shift, "sampling": sampling, "d_over_r0": strength}
    else:
        read, made = Photograph.read(pictures[0]), []
        (sigma, sigma_spread), (noise, noise_spread) = known(read.pixels).given(blur, noise).moments()
        found, half = tiles.tiles(pipeline, read.pixels, sigma, noise, ensemble=ensemble), tiles.NINETY * known.factor(noise)
        print(f"blur {sigma:.2f} +- {sigma_spread:.2f} px, noise {noise:.3f} +- {noise_spread:.3f} of the range")
        if guessed := noise < LITTLE and blur is None:
            print("with so little noise a blurred picture looks like a soft one: this is a guess; if you know blur or noise, say")
            print("--blur and --noise")
        record |= {"sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
    restored, spread = np.empty(read.pixels.shape, read.dtype), np.empty(read.pixels.shape[1:], np.uint8)
    inside = 0.0
    for tile in found:
        restored[:, tile.rows, tile.columns] = read.quantised(tile.mean)
        width = half * tile.deviation.mean(axis=0)
        spread[tile.rows, tile.columns] = np.rint(255.0 * (width / WHITE).clip(0.0, 1.0))
        inside += float(width.sum()) / spread.size
    made = [read.write(folder, "restored", restored), *made, "spread.png"]
    save_image(folder / "spread.png", spread[..., None], "figure")
    begin = "if it is right, " if guessed else ""
    print(f"{begin}90 % of the pixels lie within +- {inside:.3f} on average (spread.png: white is +- {WHITE:g})")
    write_json(
        folder / RECORD,
        record | {"size": list(spread.shape), "ensemble": ensemble, "half_width_90_percent": inside, "white": WHITE},
    )
    return made
