"""Generate new images with a trained run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from cli import archives, console, render
from cli.video import read_still, save_video
from diffusion.data.images import DataError, fit, read_image
from diffusion.files import owned, products, read_json, write_json
from diffusion.launcher import launch
from diffusion.sampling.pipeline import BUNDLED, Pipeline
from lbm_warp.checks import InputError, amount, check_integer, check_name, check_number

if TYPE_CHECKING:
    from accelerate import PartialState

RECORD = "sampling.json"
SHEETS = ("grid.png", "restoration.png", "reverse.mp4", "samples.npz", "samples.zip")
# Something is seen in a film where this share of the way to its last pictures is left.
SEEN = 0.97
GRID = 64
EACH = 8
RESTORATIONS = 8
VIDEO_PANEL = 96
VIDEO_SIZE = 1024


@dataclass(frozen=True)
class Variation:
    """Special ways of sampling; one at a time."""

    same_init: bool = False
    """Start all images from the same corrupted one, each with its own noise."""
    share_noise: bool = False
    """Give all images the same noise, each with its own start."""
    interpolate: int | None = None
    """Make rows of this many pictures between two samples: 0 and 1, 2 and 3, ..., or those that --seeds names."""
    from_image: Path | None = None
    """Corrupt this picture to --level and restore it; restoration.png shows the original, the corrupted and restored pictures."""
    level: tuple[int, ...] = ()
    """Levels to corrupt the picture to; by default K / 3, 2 K / 3 and K."""


@dataclass(frozen=True)
class Execution:
    """How the network runs; the images do not depend on it, up to rounding."""

    batch: int | None = None
    """Images at a time, by default chosen by memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the network; bf16 is faster on GPUs and rounds more."""
    compile: bool = False
    """Compile the network first (half a minute or more); needs a C++ compiler."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Results:
    """What is written besides the images and their grid."""

    video: bool = False
    """Write reverse.mp4: the grid from level K to level 0."""
    fps: int = 12
    """Frames (levels) per second of the video."""
    npz: bool = False
    """Write samples.npz: all images as arr_0, uint8 [N, H, W, C], the format that ADM's evaluation reads."""
    zip: bool = False
    """Write samples.zip: all images in the format that EDM, StyleGAN and --data read."""


@dataclass(frozen=True)
class Sample:
    """Options of ``python -m cli.sample``."""

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")] = None
    """Run folder that cli.train made, or owner/name on the Hugging Face Hub."""
    model: str | None = None
    """A bundled model instead of a run: digits (the default), fashion or emoji."""
    num: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of images (64; with --label all 8 of each class), of rows with --interpolate (6), or of restorations at each level
    with --from-image (6)."""
    seeds: tuple[str, ...] = ()
    """Numbers of the images to make instead of the first --num, such as 3 17 100-131; two for each row with --interpolate."""
    seed: int = 0
    """Seed of all images: image number i is a function of this seed and of i."""
    steps: int | None = None
    """Number of steps, at most the run's number of levels K; by default the process's own. Fewer are faster and coarser."""
    sampling_noise: float | None = None
    """Noise of the sampler in units of the training noise; by default the run's own."""
    label: str | None = None
    """Class of the images, by name or number, of a run that was trained with --classes; all: every class in turn, each a column of
    the grid. Open by default."""
    guidance: float = 1.0
    """Weight of the label, 0 or more: 1 is the network's own answer to it, more makes the images more typical and more alike."""
    best: bool = False
    """Use the weights with the best score during training (cli.train --score-every) instead of the last ones."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the run>-samples... by default. The same command makes only the images that are
    missing; sheets, archives and the film are made anew, or removed."""
    variation: Annotated[Variation, tyro.conf.OmitArgPrefixes] = Variation()
    results: Annotated[Results, tyro.conf.OmitArgPrefixes] = Results()
    execution: Annotated[Execution, tyro.conf.OmitArgPrefixes] = Execution()

    def validate(self) -> None:
        """Raise InputError if an option is out of its range or does not go with another."""
        console.check_at_least(self, num=1)
        console.check_at_least(self.variation, interpolate=2)
        console.check_at_least(self.results, fps=1)
        console.check_at_least(self.execution, batch=1)
        check_integer("--seed", self.seed, 0, 2**63 - 1)
        if self.sampling_noise is not None:
            check_number("--sampling-noise", self.sampling_noise, 0.0)
        picture, ways = self.variation.from_image, vars(self.variation).items()
        chosen = [f"--{name.replace('_', '-')}" for name, given in ways if name != "level" and given not in (None, False)]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} do not go together; choose one")
        if self.model is not None:
            check_name("model", self.model, BUNDLED)
        if self.run is not None and self.model is not None:
            raise InputError(f"RUN ({self.run}) and --model {self.model} do not go together; choose one")
        if self.seeds and self.num is not None:
            raise InputError("--seeds names the images, --num counts them; give one of the two")
        if picture is None and self.variation.level:
            raise InputError("--level goes with --from-image; for fewer steps use --steps")
        if picture is not None and (self.seeds or self.results.video):
            raise InputError("--from-image goes with --num, and without --seeds and --video")
        if self.execution.compile:
            console.check_compiler()


class Part(NamedTuple):
    """Images that are made in one call: the names of their files, the call, and the number of levels it visits."""

    names: list[str]
    draw: Callable[..., torch.Tensor]
    visits: int


def sample(options: Sample) -> None:
    """Read the run, sample new images from it, write them as they come."""
    options.validate()
    device = console.pick_device(options.execution.device)
    processes = None
    if launch().processes > 1:
        # Under torchrun or accelerate launch. Imported here: it takes a second that a single process need not wait for.
        from accelerate import PartialState

        if options.results.video:
            raise InputError("--video needs a single process; leave out torchrun or accelerate launch")
        processes = PartialState(cpu=device.type == "cpu")
        device = processes.device
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)

    run = BUNDLED[options.model or "digits"] if options.run is None else options.run
    how = options.execution
    pipeline = Pipeline.from_pretrained(run, device=device, precision=how.precision, batch=how.batch, best=options.best)
    picture = None
    if options.variation.from_image is not None:
        image = read_still(options.variation.from_image, "L" if pipeline.config.channels == 1 else "RGB")
        picture = torch.from_numpy(fit(image, pipeline.config.size))
    parts = _plan(options, pipeline, picture, world)
    names = [name for part in parts for name in part.names]
    record = _record(options, pipeline, picture)
    out = options.out or Path("outputs") / _default_name(options, record)
    # The first process works for all others in the folder, and writes all but the images.
    with owned(out) if rank == 0 else nullcontext():
        earlier = _same_images(out, record)
        with products(out, RECORD, *SHEETS) if rank == 0 else nullcontext(out) as folder:
            record = earlier | record | {"run": str(run), "images": len(names)}
            if rank == 0:
                write_json(out / RECORD, record)
            film = Film(pipeline, options.steps) if options.results.video else None
            new = _write_images(options, pipeline, parts, out, film, processes)
            if rank > 0:
                return
            files = [_file(out, name) for name in names]
            try:
                sheets = _write_sheets(options, pipeline, picture, folder, files, film)
            except DataError as error:  # an image of an earlier call
                raise InputError(f"{error}; remove it, and the same command makes it again") from None
            write_json(folder / RECORD, record)
    print(f"wrote {out / 'images'} ({amount(len(files), 'image')}, {new} new), {', '.join(str(out / sheet) for sheet in sheets)}")


def _write_images(
    options: Sample, pipeline: Pipeline, parts: Sequence[Part], out: Path, film: Film | None, processes: PartialState | None
) -> int:
    """Make the images that are missing, and those of the film, and write them as they come; returns how many were missing."""
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    if options.execution.compile:
        pipeline.network.compile()
    names = [name for part in parts for name in part.names]
    filmed = set(names[: film.most]) if film else set()
    missing = {name for name in names if not _file(out, name).exists()}
    todo = [part for part in parts if not missing.union(filmed).isdisjoint(part.names)]
    if processes is not None:
        # Before anything is written: all must see the same images missing.
        processes.wait_for_everyone()
    visits = sum(part.visits * len(part.names) for part in todo[rank::world])
    with tqdm(total=visits, desc="sampling", unit="level", disable=rank > 0) as progress:

        def on_level(level: int, u: torch.Tensor) -> None:
            progress.update(len(u))
            if film is not None:
                film.add(level, u)

        for part in todo[rank::world]:
            for name, image in zip(part.names, part.draw(callback=on_level).flatten(0, -4), strict=True):
                if name in missing:
                    render.save_image(_file(out, name), render.quantised(image), "sample")
    if processes is not None:
        processes.wait_for_everyone()
        processes.destroy_process_group()
    return len(missing)


def _write_sheets(
    options: Sample, pipeline: Pipeline, picture: torch.Tensor | None, out: Path, files: list[Path], film: Film | None
) -> list[str]:
    """Write what shows and holds all the images together; returns the names of the files, with a remark."""
    if picture is not None:
        written = ["restoration.png"]
        _draw_restorations(out / "restoration.png", options, pipeline, picture, files)
    else:
        shown, columns = _sheet(options, pipeline)
        written = ["grid.png" + (f" (the first {shown})" if len(files) > shown else "")]
        headings = pipeline.config.classes if pipeline.config.means_every_class(options.label) else ()
        render.save_grid(out / "grid.png", _read(files[:shown]), columns, headings)
    for kind, save in {"npz": archives.save_npz, "zip": archives.save_zip}.items():
        if getattr(options.results, kind):
            save(out / f"samples.{kind}", files)
            written.append(f"samples.{kind}")
    if film is not None:
        film.save(out / "reverse.mp4", options.results.fps, _sheet(options, pipeline)[1])
        written.append("reverse.mp4")
    return written


def _sheet(options: Sample, pipeline: Pipeline) -> tuple[int, int | None]:
    """Images in the grid at most, and its columns if they are not left open."""
    if pipeline.config.means_every_class(options.label):
        classes = len(pipeline.config.classes)
        return EACH * classes, classes
    return GRID, options.variation.interpolate


def _plan(options: Sample, pipeline: Pipeline, picture: torch.Tensor | None, world: int) -> list[Part]:
    """What makes all images, in their order."""
    how: dict[str, Any] = {name: getattr(options, name) for name in ("seed", "steps", "sampling_noise", "label", "guidance")}
    visited = partial(pipeline.method.sampler.visited, pipeline.forward, steps=options.steps)
    ordinary = picture is None and options.variation.interpolate is None
    # Refuses wrong ones before anything is written.
    pipeline.reverse(torch.zeros(1, dtype=torch.int64), options.label, options.guidance, np.arange(1) if ordinary else None)
    if picture is not None:
        count, parts = options.num or 6, []
        for level in _levels(options, pipeline):
            names = [f"level{level:03d}-{number:05d}" for number in range(count)]
            parts.append(Part(names, partial(pipeline.restore, picture, level, count, **how), len(visited(level))))
        return parts
    visits, points = len(visited()), options.variation.interpolate
    if points is not None:
        numbers: Sequence[int] = _numbers(options.seeds) if options.seeds else range(2 * (options.num or 6))
        if len(numbers) % 2:
            raise InputError(f"--interpolate needs --seeds in pairs, got {amount(len(numbers), 'number')}")
        if (images := len(numbers) // 2 * points) > console.MOST:
            raise InputError(f"--interpolate {points} would make {images:,} images, at most {console.MOST:,} are made")
        pairs, draw = zip(numbers[::2], numbers[1::2], strict=True), partial(pipeline.interpolate, points=points, **how)
        return [Part([f"{a:05d}-{b:05d}-{i:03d}" for i in range(points)], partial(draw, [(a, b)]), visits) for a, b in pairs]
    how |= {"same_init": options.variation.same_init, "share_noise": options.variation.share_noise}
    count = options.num or _sheet(options, pipeline)[0]
    numbers = list(dict.fromkeys(_numbers(options.seeds))) if options.seeds else range(count)
    size = min(pipeline.batch, -(-len(numbers) // world))
    chunks = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return [Part([f"{number:05d}" for number in chunk], partial(pipeline.sample, chunk, **how), visits) for chunk in chunks]


class Film:
    """Frames of the reverse process: as many of the first images as fit a screen."""

    def __init__(self, pipeline: Pipeline, steps: int | None) -> None:
        self.visited = pipeline.method.sampler.visited(pipeline.forward, steps=steps)
        size = pipeline.config.size
        rows, columns = (int(VIDEO_SIZE * min(1.0, size.shorter / VIDEO_PANEL) / side) for side in size)
        self.most = min(GRID, max(1, rows * columns))
        self.batches: list[list[list[np.ndarray]]] = []  # by batch and level the pictures

    def add(self, level: int, u: torch.Tensor) -> None:
        """Take the images [N, C, H, W] of a batch at a level; a batch begins at level K."""
        if level == self.visited[0]:
            self.batches.append([])
        first = sum(len(batch[0]) for batch in self.batches[:-1])
        self.batches[-1].append([render.to_pixels(image) for image in u[: max(self.most - first, 0)]])

    def frames(self, fps: int, columns: int | None) -> Iterator[np.ndarray]:
        """The frames of the video, uint8 [H, W, 3], from half a second before anything is seen; the last stays for two seconds."""
        # A batch that did not fit into memory ends early, and comes again in halves.
        whole = [batch for batch in self.batches if len(batch) == len(self.visited)]
        levels = list(zip(*whole, strict=True))
        for pictures in levels[max(_first_seen(levels) - fps // 2, 0) :]:
            panels = [render.enlarged(pixels, VIDEO_PANEL) for batch in pictures for pixels in batch]
            yield (frame := render.grid(panels, columns, gap=6))
        yield from [frame] * (2 * fps)

    def save(self, path: Path, fps: int, columns: int | None) -> None:
        """Write the video."""
        save_video(path, tqdm(self.frames(fps, columns), desc="encoding", unit="frame", leave=False), fps)


def _first_seen(levels: Sequence[Sequence[Sequence[np.ndarray]]]) -> int:
    """The place in a film, by level and batch, from which on its pictures are nearer to the last ones than flat ones or noise."""
    pictures = np.array([[pixels for batch in level for pixels in batch] for level in levels], dtype=np.float32)
    distance = np.abs(pictures - pictures[-1]).mean(axis=(1, 2, 3, 4))
    return max(np.flatnonzero(distance > SEEN * distance[0]).tolist(), default=-1) + 1


def _draw_restorations(path: Path, options: Sample, pipeline: Pipeline, picture: torch.Tensor, files: list[Path]) -> None:
    from cli import figures  # matplotlib takes longer to import than digits to sample

    levels = _levels(options, pipeline)
    rows = _read(files).unflatten(0, (len(levels), -1))[:, :RESTORATIONS]
    figure = figures.restorations(
        render.to_pixels(picture),
        [render.to_pixels(pipeline.corrupt(picture, level, options.seed)) for level in levels],
        [[render.to_pixels(image) for image in row] for row in rows],
        [f"level {level} of {pipeline.method.levels}" for level in levels],
    )
    figures.save_figure(path, figure)


def _levels(options: Sample, pipeline: Pipeline) -> tuple[int, ...]:
    last = pipeline.method.levels
    for level in options.variation.level:
        check_integer("--level", level, 1, last)
    return options.variation.level or tuple(sorted({-(-last * third // 3) for third in (1, 2, 3)}))


def _numbers(seeds: tuple[str, ...]) -> list[int]:
    """Numbers from words such as 3 and 100-131."""
    numbers: list[int] = []
    for word in seeds:
        ends = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", word, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if not first <= last:
            raise InputError(f"--seeds takes numbers of at most 18 digits and ranges such as 3 17 100-131, got {word!r}")
        if len(numbers) + last - first >= console.MOST:
            raise InputError(f"--seeds may name at most {console.MOST:,} images, got {word}")
        numbers.extend(range(first, last + 1))
    return numbers


def _read(files: Sequence[Path]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(read_image(file)) for file in files])


def _file(out: Path, name: str) -> Path:
    return out / "images" / f"{name}.png"


def _record(options: Sample, pipeline: Pipeline, picture: torch.Tensor | None) -> dict[str, object]:
    """Everything that an image depends on, but for its name."""
    return {
        "model": pipeline.fingerprint,
        "seed": options.seed,
        "steps": options.steps,
        "sampling_noise": options.sampling_noise,
        "label": options.label,
        "guidance": options.guidance,
        "precision": options.execution.precision,
        **{name: getattr(options.variation, name) for name in ("same_init", "share_noise", "interpolate")},
        "image": None if picture is None else hashlib.sha256(picture.numpy().tobytes()).hexdigest(),
    }


def _default_name(options: Sample, record: dict[str, object]) -> str:
    """The run's name, and what sets these samples apart from ordinary ones."""
    run = (options.model or "digits") if options.run is None else Path(options.run).resolve().name
    what = "samples" if options.variation.from_image is None else options.variation.from_image.stem
    plain = {"seed": 0, "precision": "fp32", "guidance": 1.0} | {name: record[name] for name in ("model", "image")}
    special = {name: value for name, value in record.items() if not (value is None or value is False or value == plain.get(name))}
    words = [name.replace("_", "-") + ("" if value is True else f"-{value}") for name, value in special.items()]
    return "-".join([run, what, *(["best"] if options.best else []), *words])


def _same_images(out: Path, record: dict[str, object]) -> dict[str, Any]:
    """What the record of a folder says, if its images are those of this record; that of a new folder lists no products.

    Raises:
        InputError: if the folder holds other images.
    """
    if not (out / RECORD).exists():
        if (out / "images").exists():
            raise InputError(f"{out}: holds images, and no sampling.json that says which; choose another --out")
        return {"files": []}
    there = read_json(out / RECORD)
    for name, value in record.items():
        if there.get(name) != value:
            what = f"{name} {there.get(name)}, not {value}" if name not in ("model", "image") else f"another {name}"
            raise InputError(f"{out}: holds images made with {what}; choose another --out, or remove the folder")
    return there


# What --help shows; --help-all shows the rest.
COMMON = (
    "--out --num --seed --steps --model --label --guidance --best --video --interpolate --from-image --npz --zip --device".split()
)
main = partial(console.run, "sample", sample, partial(tyro.cli, Sample), common=COMMON)


if __name__ == "__main__":
    main()
