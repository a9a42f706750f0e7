"""Write pieces of photographs that Debian's packages carry, for the preset photographs, and whole ones that are never learned.

    python -m tools.photographs data/photographs                    # pieces.zip, test/*.png, sources.json
    python -m cli.train --preset photographs --data data/photographs/pieces.zip --no-grids --precision bf16 --hours 4
    python -m tools.photographs data/photographs --run runs/pieces-photographs      # the model that is bundled

Every picture is shrunk by a half at least, each pixel the mean of those that it covers, so that marks of JPEG and of the camera's
own sharpening go. Drawings, flat pictures and pictures that are nearly the same as another one are left out, by numbers. The
licences of the packages allow them to be passed on (assets/LICENSES.md).
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from cli import console
from diffusion.data.images import read_image
from diffusion.files import load_tensors, save_tensors
from diffusion.photographs import as_stored
from diffusion.rng import seeds
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.tiles import LEVELS, MODEL, NINETY, NOISES, DegradationEstimator, tiles
from lbm_warp.checks import InputError
from lbm_warp.heat import blur
from lbm_warp.random import normal

# Packages, and the files in them that may be photographs: pictures, and Qt's resource files, which hold some.
SOURCES = {
    "lomiri-wallpapers-16.04": ("*.jpg",),
    "lomiri-wallpapers-20.04": ("*.jpg",),
    "mate-backgrounds": ("nature/*.jpg",),
    "plasma-workspace-wallpapers": ("images/2560x1600.jpg",),
    "lxqt-themes": ("wallpapers/*.jpg", "wallpapers/*.png"),
    "palapeli-data": ("collection/*.jpg",),
    "gcompris-qt-data": tuple(
        f"{name}.rcc" for name in ("erase", "explore_monuments", "explore_farm_animals", "explore_world_animals")
    ),
}
PIECE = 64
# Shorter sides of the shrunk pictures [pixels], the largest for which a picture is shrunk by a half at least and the smaller ones.
SIDES = (1080, 720, 480, 340)
MOST = 800  # pieces of a picture
# Share of flat blocks of 8 x 8 pixels (deviation below one step of eight bits) from which on a picture is taken for a drawing, and
# the difference of thumbnails (root mean square, standardised) below which two pictures are the same.
FLAT, SAME, THUMBNAIL = 0.55, 0.3, 16
EVERY = 7  # picture is kept from the training
# Of these those that tools.restored compares methods on; the intervals are corrected on the others.
COMPARED = ("explore_monuments-35", "explore_world_animals-6", "flowers", "panther-chameleon-female")
PATCHES = 16  # of every photograph, which an estimate of blur and noise is measured on


@dataclass(frozen=True)
class Photographs:
    """Options of ``python -m tools.photographs``."""

    folder: tyro.conf.Positional[Path] = Path("data/photographs")
    """Where to: a folder that does not exist yet."""
    packages: Path | None = None
    """Folder of the packages (apt-get download) if they are there already."""
    run: Path | None = None
    """Make the bundled model of a run that was trained on the pieces of this folder, which is there."""
    model: Path = MODEL
    """Where to."""


@dataclass
class Photograph:
    """A picture of a package, shrunk."""

    name: str
    package: str
    image: Image.Image
    flat: float = field(init=False)
    thumbnail: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        grey = np.asarray(self.image.convert("L"), dtype=np.float64)
        blocks = grey[: grey.shape[0] // 8 * 8, : grey.shape[1] // 8 * 8].reshape(grey.shape[0] // 8, 8, -1, 8)
        self.flat = float((blocks.std(axis=(1, 3)) < 1.0).mean())
        small = np.asarray(self.image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float64)
        self.thumbnail = (small - small.mean()) / max(small.std(), 1e-9)

    def like(self, other: Photograph) -> bool:
        """Whether the two are nearly the same picture, mirrored or not."""
        return any(np.sqrt(((self.thumbnail - one) ** 2).mean()) < SAME for one in (other.thumbnail, other.thumbnail[:, ::-1]))


def run(options: Photographs) -> None:
    """Write the folder, whole or not at all."""
    folder = options.folder
    if options.run is not None:
        bundle(options.run, folder, options.model)
        return
    if folder.exists():
        raise InputError(f"{folder}: exists; choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        found = list(photographs(options.packages or _download(Path(aside)), Path(aside)))
        kept = chosen(found)
        whole = Path(aside) / folder.name
        (whole / "test").mkdir(parents=True)
        pieces = 0
        with zipfile.ZipFile(whole / "pieces.zip", "w") as archive:
            for number, photograph in enumerate(kept):
                if number % EVERY == EVERY - 1:
                    photograph.image.save(whole / "test" / f"{photograph.name}.png")
                    continue
                for place, piece in enumerate(cut(photograph.image, number)):
                    data = io.BytesIO()
                    piece.save(data, "PNG")
                    archive.writestr(f"{photograph.name}/{place:04d}.png", data.getvalue())
                    pieces += 1
        names = [(photograph.package, photograph.name, number % EVERY == EVERY - 1) for number, photograph in enumerate(kept)]
        (whole / "sources.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
        whole.rename(folder)
    print(f"wrote {pieces:,} pieces of {len(kept) - len(kept) // EVERY} photographs, {len(kept) // EVERY} for tests, to {folder}")


def bundle(run: Path, folder: Path, model: Path) -> None:
    """Write the model that restores photographs: the averaged weights of a run in 16 bits, and what tells blur and noise."""
    pipeline = Pipeline.from_pretrained(run)
    model.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "prior.safetensors"):
        (model / name).write_bytes((run / name).read_bytes())
    save_tensors(model / "ema.safetensors", {name: weight.half() for name, weight in load_tensors(run / "ema.safetensors").items()})
    known = (model / LEVELS).is_file()  # they do not depend on the weights, and take minutes
    estimator = DegradationEstimator.load(model) if known else DegradationEstimator.measured(_patches(folder / "pieces.zip"))
    others = [path for path in sorted((folder / "test").glob("*.png")) if path.stem not in COMPARED]
    estimator.factors = factors(pipeline, [read_image(path, "RGB") for path in others])
    estimator.save(model)
    print(f"wrote {model}; factors of the deviations {', '.join(f'{factor:.2f}' for factor in estimator.factors)}")


def factors(pipeline: Pipeline, pictures: list[np.ndarray]) -> torch.Tensor:
    """What the deviations are multiplied by so that 90 % intervals hold 90 % of the pixels of pictures that were not learned, for
    every noise, over a few blurs."""
    found = []
    for noise in NOISES:
        ratios = []
        for number, picture in enumerate(pictures):
            x = torch.from_numpy(middle(picture, 96))[None]
            sigma = (0.0, 1.0, 2.0, 3.0)[number % 4]
            z = degraded(x, sigma, noise, number)
            tile = next(tiles(pipeline, z[0].numpy(), sigma, noise))
            ratios.append(np.abs(tile.mean - x[0].numpy()) / (NINETY * tile.deviation))
        found.append(np.quantile(np.stack(ratios), 0.9))
    return torch.tensor(found)


def degraded(x: torch.Tensor, sigma: float, noise: float, seed: int) -> torch.Tensor:
    """Pictures [N, C, H, W] with blur and noise, as a file holds them."""
    eps = normal(seeds(seed, "degraded", np.arange(len(x))), x.shape, x.device)
    return as_stored(blur(x, torch.full((len(x),), sigma, dtype=torch.float64), periodic=False) + noise * eps)


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    """The square of this side in the middle of a picture [C, H, W]."""
    top, left = ((length - side) // 2 for length in picture.shape[1:])
    return np.ascontiguousarray(picture[:, top : top + side, left : left + side])


def _patches(pieces: Path) -> list[torch.Tensor]:
    """Some pieces of every photograph, float32 [P, 3, PIECE, PIECE] each."""
    with zipfile.ZipFile(pieces) as archive:
        names: dict[str, list[str]] = {}
        for name in archive.namelist():
            names.setdefault(name.partition("/")[0], []).append(name)
        some = [one[:: max(1, len(one) // PATCHES)][:PATCHES] for one in names.values()]
        read = [[torch.from_numpy(read_image(io.BytesIO(archive.read(name)), "RGB")) for name in one] for one in some]
    return [torch.stack(one) for one in read]


def _download(folder: Path) -> Path:
    """The packages, by apt-get."""
    try:
        subprocess.run(["apt-get", "download", *SOURCES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"apt-get download {' '.join(SOURCES)}: {error}; it needs a Debian of release 12") from None
    return folder


def photographs(packages: Path, scratch: Path) -> Iterator[Photograph]:
    """Every picture that the packages carry, shrunk, in the order of their names."""
    for package, patterns in SOURCES.items():
        archives = sorted(packages.glob(f"{package}_*.deb"))
        if not archives:
            raise InputError(f"{packages}: no {package}_*.deb; apt-get download {package}")
        root = scratch / package
        subprocess.run(["dpkg-deb", "-x", archives[0], root], check=True)
        for path in sorted(path for pattern in patterns for path in root.rglob(pattern) if not path.is_symlink()):
            for number, data in enumerate(_pictures(path)):
                with Image.open(io.BytesIO(data)) as opened:
                    drawn, image = "A" in opened.getbands(), opened.convert("RGB")
                place = path.parents[2].name if path.parent.name == "images" else path.stem
                if not drawn and min(image.size) // 2 >= SIDES[-1]:
                    yield Photograph(f"{place}-{number}" if path.suffix == ".rcc" else place, package, shrunk(image, SIDES[0]))


def _pictures(path: Path) -> Iterator[bytes]:
    """The picture of a file, or those in a resource file of Qt, which begin with RIFF, their length and WEBP."""
    data = path.read_bytes()
    if path.suffix != ".rcc":
        yield data
        return
    for found in re.finditer(rb"RIFF(.{4})WEBP", data, re.DOTALL):
        yield data[found.start() : found.start() + 8 + int.from_bytes(found[1], "little")]


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A picture with this shorter side, or half its own if that is smaller: area averaging."""
    factor = max(2.0, min(image.size) / side)
    size = int(image.width / factor), int(image.height / factor)
    return image.resize(size, Image.Resampling.BOX, box=(0, 0, size[0] * factor, size[1] * factor))


def chosen(found: list[Photograph]) -> list[Photograph]:
    """Those that are neither drawn, nor flat, nor the same as an earlier one."""
    kept: list[Photograph] = []
    for photograph in found:
        if photograph.flat <= FLAT and not any(photograph.like(other) for other in kept):
            kept.append(photograph)
    return kept


def cut(image: Image.Image, seed: int) -> list[Image.Image]:
    """Pieces of a picture at several sizes, at random places; those with more to see are taken more often."""
    rng = np.random.default_rng(seed)
    pieces: list[Image.Image] = []
    weights: list[float] = []
    for side in (one for one in (min(image.size), *SIDES) if one <= min(image.size)):
        factor = min(image.size) / side
        size = (int(image.size[0] / factor), int(image.size[1] / factor))
        if pieces and side == min(image.size):
            continue
        smaller = image if factor == 1.0 else image.resize(size, Image.Resampling.BOX)
        for _ in range(2 * size[0] * size[1] // PIECE**2):
            x, y = (int(rng.integers(length - PIECE + 1)) for length in size)
            piece = smaller.crop((x, y, x + PIECE, y + PIECE))
            pieces.append(piece)
            weights.append(0.02 + np.asarray(piece.convert("L"), dtype=np.float64).std() / 255.0)
    share = np.array(weights) / np.sum(weights)
    return [pieces[i] for i in rng.choice(len(pieces), min(MOST, len(pieces) // 2), replace=False, p=share)]


main = partial(console.run, "photographs", run, partial(tyro.cli, Photographs), package="tools")


if __name__ == "__main__":
    main()
