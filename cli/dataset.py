"""Make pairs of clean and degraded pictures, by turbulent air or a process, for training and tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from cli import console
from cli.video import is_film, open_film, read_still
from diffusion.data.pairs import ARCHIVES, Gallery, PairOptions, open_gallery, unusable, write_pairs
from diffusion.data.prepare import THREADS
from diffusion.degradation import Degrade, ProcessOperator, Ranges, Sensor
from diffusion.methods import METHODS, named_method
from lbm_warp import Operator, OpticalTurbulence
from lbm_warp.checks import InputError, amount

PROCESS = f"Degrade by a process instead of optical turbulence: {', '.join(METHODS)}, or one of an installed package."
STRENGTHS = 1.0, 6.0  # D / r0 of optical turbulence, from hardly visible to strong


@dataclass(frozen=True)
class Dataset:
    """Options of ``python -m cli.dataset``."""

    data: str
    """The clean pictures: a folder or ZIP archive of images, one image, a film, parquet files, or a set by name as for
    cli.train."""
    out: Path | None = None
    """Folder for the pairs, outputs/<name>-pairs by default. The same command goes on where it was interrupted."""
    process: Annotated[str | None, tyro.conf.arg(help=PROCESS)] = None
    draw: Annotated[tuple[tuple[str, float, float], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME FROM TO")] = ()
    """Draw a number from a range, anew for each pair: level and peclet of a process, d_over_r0 (1 to 6 unless given), cn2, wind
    [m/s], outer_scale, aperture, path [m] or view [rad] of the air, shot_noise or read_noise of the camera (standard deviation at
    white and at black, in units of white)."""
    burst: int = 1
    """Degraded frames of each scene."""
    interval: float | None = None
    """Seconds from frame to frame of a burst, in air that the wind moves; by default every frame has air of its own."""
    spherical: bool = True
    """The scene is at the end of the air; --no-spherical: it is far behind it (a plane wave)."""
    long_exposure: bool = False
    """The mean over all moments of the air: more blur, no shifts."""
    flow: bool = True
    """Write the flow of each pair, too: tilt in pixels, or velocity."""
    workers: int = THREADS
    """Pairs made at a time. The results do not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    pairs: Annotated[PairOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PairOptions)


def make(options: Dataset) -> None:
    """Open the pictures, make the pairs, say what was left out."""
    out = options.out or Path("outputs") / f"{Path(options.data).resolve().stem}-pairs"
    source = Path(options.data).expanduser()
    if source.is_dir() and source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out} is inside of the folder of pictures, {options.data}; choose a folder elsewhere")
    degrade = Degrade(ranges(options), options.burst, options.interval, options.flow, console.pick_device(options.device))
    about = {name: value for name, value in asdict(options).items() if name in ("process", "draw", "burst", "interval", "flow")}
    gallery = pictures(options)
    made = write_pairs(gallery, out, degrade, options.pairs, workers=options.workers, about=about)
    if made.left_out:
        print(f"left out: {unusable(made.left_out, len(gallery.names))}")
    if made.over_white:
        print(f"{amount(made.over_white, 'pair')} of pictures with transparent parts, which are shown over white")
    print(f"wrote {amount(made.new, 'pair')} to {out}" + "; the others were there" * made.resumed)


def ranges(options: Dataset) -> Ranges:
    """What is drawn for each pair."""
    given = {name: (first, last) for name, first, last in options.draw}
    if twice := [name for name, times in Counter(name for name, *_ in options.draw).items() if times > 1]:
        raise InputError(f"--draw {twice[0]} is given twice; leave one of them out")
    level = given.pop("level", None)
    if level and not all(end.is_integer() for end in level):
        raise InputError(f"--draw level takes whole numbers, got {level[0]:g} {level[1]:g}")
    operator: Operator
    if options.process is None:
        strength = "cn2" if "cn2" in given else "d_over_r0"
        given = {strength: STRENGTHS} | given
        air: dict[str, Any] = {strength: given[strength][1]}
        operator = OpticalTurbulence(**air, spherical=options.spherical, long_exposure=options.long_exposure)
        level = level or (operator.levels, operator.levels)
    else:
        console.check_left_out(options, "is for optical turbulence; leave out --process or this", "spherical", "long_exposure")
        forward = named_method(options.process).forward
        operator = ProcessOperator(forward.operator, forward.scales)
    return Ranges(Sensor(operator), level and (int(level[0]), int(level[1])), given)


def pictures(options: Dataset) -> Gallery:
    """The clean pictures."""
    path = Path(options.data).expanduser()
    if not path.is_file() or path.suffix.lower() in ARCHIVES:
        return open_gallery(options.data, options.pairs.size)
    if not is_film(path):
        read_still(path)  # which says what it leaves out
        return open_gallery(options.data)
    film, status = open_film(path), path.stat()
    for remark in film.remarks:
        print(f"{path}: {remark}")
    frames = (partial(lambda frame: (frame, False), frame) for frame in film.read())
    names = [f"{path.name}, frame {number}" for number in range(film.count)]
    return Gallery(names, frames, [status.st_size, status.st_mtime_ns], film=True)


# What --help shows; --help-all shows the rest.
COMMON = (
    "--data --out --pairs --size --crop --process --draw --burst --interval --held-out --format --shards --seed --device".split()
)
main = partial(console.run, "dataset", make, partial(tyro.cli, Dataset), common=COMMON)


if __name__ == "__main__":
    main()
