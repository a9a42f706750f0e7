"""Photographs: read as their files hold them, frames of a scene carried onto each other, restored in tiles, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from cli.video import is_film, open_film, read_still
from diffusion.data.images import data_errors, open_image, read_image
from diffusion.data.pair_files import png, tiff
from diffusion.data.products import mark, save_image
from diffusion.files import write_json
from diffusion.sampling import tiles
from diffusion.sampling.burst import ROUNDS, align
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.checks import amount

RECORD = "restoration.json"
# What is drawn white in a map of what is not known, in units of the range.
WHITE = 0.3


@dataclass(frozen=True)
class Photograph:
    """A picture as its file holds it.

    Attributes:
        pixels: float32 [C, H, W] in [0, 1]; under transparency the colours themselves.
        alpha: uint8 [H, W], if it has transparency.
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
        pixels = read_still(path)
        with data_errors(str(path)), open(path, "rb") as file:
            image: Image.Image = open_image(file, str(path))
            deep = image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
            is_tiff = image.format == "TIFF"
            if not image.has_transparency_data:
                return cls(pixels, None, np.uint16 if deep else np.uint8, is_tiff)
            ImageOps.exif_transpose(image, in_place=True)
            *colours, alpha = np.asarray(image.convert("LA" if len(pixels) == 1 else "RGBA")).transpose(2, 0, 1)
        return cls(np.stack(colours).astype(np.float32) / 255.0, alpha, np.uint8, is_tiff)

    def quantised(self, values: np.ndarray) -> np.ndarray:
        """Values around [0, 1] in its dtype."""
        return np.rint(values.clip(0.0, 1.0) * np.iinfo(self.dtype).max).astype(self.dtype)

    def write(self, folder: Path, name: str, pixels: np.ndarray) -> str:
        """Write pixels [C, H, W] of its dtype, with its transparency, in its kind of file; returns the whole name."""
        pixels, deep = pixels.transpose(1, 2, 0), self.dtype is np.uint16
        name += ".tif" if deep and self.tiff else ".png"
        if deep:
            (folder / name).write_bytes((tiff if self.tiff else png)(pixels, mark("sample")))
        else:
            save_image(folder / name, pixels if self.alpha is None else np.dstack([pixels, self.alpha]), "sample")
        return name


@dataclass(frozen=True)
class Frames:
    """Frames of one scene, read again each time that they are asked for.

    Attributes:
        count: how many.
        read: makes an iterator of them, float32 [C, H, W] in [0, 1].
    """

    count: int
    read: Callable[[], Iterator[np.ndarray]]

    @classmethod
    def of(cls, pictures: tuple[Path, ...]) -> Frames | None:
        """Those of several pictures, of a folder or of a film; None for a single picture."""
        if len(pictures) > 1:
            return cls(len(pictures), lambda: (read_image(path) for path in pictures))
        if not is_film(pictures[0]):
            return None
        film = open_film(pictures[0])
        for remark in film.remarks:
            print(f"{pictures[0]}: {remark}")
        return cls(film.count, film.read)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(frame) for frame in self.read())


def restored_photograph(
    folder: Path, pictures: tuple[Path, ...], model: Path, device: torch.device, blur: float | None, noise: float | None
) -> list[str]:
    """Restore a photograph in tiles; write it with its own bits and transparency, the map of what is not known, and the record.

    Args:
        folder: where to.
        pictures: a picture; or several, a folder or a film: frames of one scene behind moving air. Of these the mean of the aligned
            frames is written too, and no map: the blur of air is not the Gaussian that the model's intervals are for.
        model: folder of a model of photographs.
        device: where the network works.
        blur, noise: if they are known.

    Returns:
        Names of what it wrote.
    """
    record: dict[str, object] = {"pictures": [str(path) for path in pictures]}
    if frames := Frames.of(pictures):
        with tqdm(total=ROUNDS, unit="round", desc=f"aligning {amount(len(frames), 'frame')}") as bar:
            aligned = align(frames, callback=lambda *_: bar.update())
        of_file = Photograph.read(pictures[0]) if len(pictures) > 1 else None
        read = Photograph(aligned.picture.numpy(), None, of_file.dtype if of_file else np.uint8, bool(of_file and of_file.tiff))
        made = [read.write(folder, "aligned", read.quantised(read.pixels))]
        record["noise_of_frames"] = aligned.noise.tolist()
    else:
        read, made = Photograph.read(pictures[0]), []
    pipeline, known = Pipeline.from_pretrained(model, device=device), tiles.DegradationEstimator.load(model)
    (sigma, sigma_spread), (noise, noise_spread) = known(read.pixels).given(blur, noise).moments()
    print(f"blur {sigma:.2f} +- {sigma_spread:.2f} px, noise {noise:.3f} +- {noise_spread:.3f} of the range")
    record |= {"size": list(read.pixels.shape[1:]), "sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
    restored, spread = np.empty(read.pixels.shape, read.dtype), np.empty(read.pixels.shape[1:], np.uint8)
    half, inside = tiles.NINETY * known.factor(noise), 0.0
    for tile in tiles.tiles(pipeline, read.pixels, sigma, noise):
        restored[:, tile.rows, tile.columns] = read.quantised(tile.mean)
        width = half * tile.deviation.mean(axis=0)
        spread[tile.rows, tile.columns] = np.rint(255.0 * (width / WHITE).clip(0.0, 1.0))
        inside += float(width.sum()) / spread.size
    made = [read.write(folder, "restored", restored), *made]
    if not frames:
        save_image(folder / "spread.png", spread[..., None], "figure")
        print(f"90 % of the pixels lie within +- {inside:.3f} on average (spread.png: white is +- {WHITE:g})")
        record |= {"half_width_90_percent": inside, "white": WHITE}
        made.append("spread.png")
    write_json(folder / RECORD, record)
    return made
