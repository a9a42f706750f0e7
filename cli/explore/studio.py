"""What the page shows, as streams of messages: trajectories of pictures, samples of models, restorations."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cli import render
from cli.compare import describe, power_spectrum
from cli.corrupt import (
    PHOTOGRAPH,
    VIDEO_SIZE,
    Corrupt,
    FlowOptions,
    VideoOptions,
    by_flow,
    by_process,
    frame_widths,
    operator_of,
    peclet_of,
    pixels,
    process_of,
    save_video,
)
from cli.explore.pictures import Pictures
from cli.explore.stream import message, steps
from cli.restore import EXAMPLE, fitted
from cli.sample import Film, Results
from diffusion.corruption import Corruption, flow_operator
from diffusion.process import PROCESSES
from diffusion.rng import seeds
from diffusion.sampling.pipeline import BUNDLED, Pipeline
from diffusion.sampling.restoration import LevelEstimator, restore
from diffusion.sampling.samplers import visited_levels
from diffusion.size import Size
from lbm_warp import Schedule, energy_spectrum
from lbm_warp.checks import check_integer, check_name

SIZES = (128, 256, 512)
MOST_FRAMES = 240
FIELD = 64  # shorter side of the velocity field that is sent [cells]
FIELD_OF_FRAME = 32  # the same for every frame of a flow that moves
FINE = 256  # above this side only every fourth frame has a spectrum: it costs more than the corruption
MOST_MODELS = 3  # in memory
MOST_SAMPLES = 64
MOST_SAMPLED_PIXELS = 64 * 64**2
MODES: dict[str, dict[str, bool]] = {"new": {}, "same-init": {"same_init": True}, "share-noise": {"share_noise": True}}


@dataclass(frozen=True)
class Samples:
    """What is generated: the options of ``cli.sample``."""

    model: str = "digits"
    num: int = 16
    seed: int = 0
    levels: int | None = None
    label: str | None = None
    guidance: float = 1.0
    mode: str = "new"
    """new, same-init, share-noise or interpolate."""


@dataclass(frozen=True)
class Restored:
    """What is restored: the options of ``cli.restore``."""

    picture: str = "degraded"
    run: str = "emoji"
    level: int | None = None
    samples: int = 4
    seed: int = 0


class Studio:
    """Makes all that the page shows. Its methods give iterators of messages (``cli.explore.stream``) and keep nothing of a visitor.

    Args:
        device: where to compute.
        runs: folder with run folders.
    """

    def __init__(self, device: torch.device, runs: Path) -> None:
        self.device = device
        self.runs = runs
        self.pictures = Pictures({"chelsea": PHOTOGRAPH, "degraded": EXAMPLE})
        self._models: OrderedDict[str, Pipeline] = OrderedDict()
        self._estimators: OrderedDict[tuple[str, int], LevelEstimator] = OrderedDict()

    def warm_up(self) -> None:
        """Compile the kernels, or load them, before the first visitor waits for them."""
        for process in (None, "fluid", "beyond-blur"):
            for _ in self.trajectory(Corrupt(size=SIZES[0], peclet=1.0, process=process), "chelsea", 2):
                pass
        for _ in self.trajectory(Corrupt(size=SIZES[-1]), "chelsea", 2):
            pass

    def _picture(self, options: Corrupt, name: str) -> torch.Tensor:
        """A picture in the size that the options ask for, on the device, float32 [1, C, H, W]."""
        return torch.from_numpy(self.pictures.of_size(name, options.size))[None].to(self.device)

    def models(self) -> dict[str, Path]:
        """Folders of the models by name: the bundled ones, and all finished or running trainings in the folder of runs."""
        found = sorted(path.parent for path in self.runs.glob("*/config.json") if (path.parent / "ema.safetensors").is_file())
        return BUNDLED | {str(folder): folder for folder in found}

    def choices(self) -> dict[str, Any]:
        """What can be chosen: processes and models."""
        processes = {
            name: {"about": describe(process).replace("\n", "; "), "peclet": process.peclet, "control": not process.transport}
            for name, process in PROCESSES.items()
        }
        return {"processes": processes, "models": list(self.models()), "sizes": SIZES}

    def trajectory(self, options: Corrupt, name: str, frames: int) -> Iterator[bytes]:
        """A picture from clean to fully corrupted: a message about all of it, then one for every frame.

        Args:
            options: the picture's size, and how it is corrupted.
            name: name of the picture.
            frames: how many.
        """
        u0 = self._picture(options, name)
        scene = _scene(options, Size(*u0.shape[2:]), u0, frames)
        field = scene.field(FIELD)
        wavenumbers = power_spectrum(u0[0])[0]
        about = {"kind": "scene", "title": scene.title, "frames": frames, "height": u0.shape[2], "width": u0.shape[3]}
        about |= {"wavenumbers": wavenumbers.tolist(), "command": command(options, name), "peclet": scene.peclet}
        if field is not None:
            k, energy = energy_spectrum(field, scene.flow[0].boundary)
            about |= {"field": list(field.shape[2:]), "k": k.tolist(), "energy": energy.tolist()}
        yield message(about, None if field is None else field[0].numpy())
        for number, (_, u) in enumerate(scene.moments):
            yield self._frame(scene, number, u[0], frames)

    def _frame(self, scene: Scene, number: int, u: torch.Tensor, frames: int) -> bytes:
        """A picture [C, H, W] of a trajectory: its numbers, its pixels and, of a flow that moves, the velocity then."""
        about = {"kind": "frame", "number": number} | {name: float(values[number]) for name, values in scene.numbers.items()}
        about |= {"mean": u.double().mean().item(), "deviation": u.double().std(unbiased=False).item()}
        if min(u.shape[1:]) <= FINE or number % 4 == 0 or number == frames - 1:
            about["spectrum"] = power_spectrum(u)[1].tolist()
        field = scene.field(FIELD_OF_FRAME, about["sigma"]) if scene.moving else None
        body = render.to_pixels(u).tobytes()
        if field is not None:
            about["field"] = list(field.shape[2:])
            body += field[0].numpy().tobytes()
        return message(about, np.frombuffer(body, np.uint8))

    def film(self, options: Corrupt, name: str) -> bytes:
        """The video that ``cli.corrupt --video`` writes, MP4."""
        u0 = self._picture(options, name)
        options = replace(options, video=VideoOptions(video=True))
        trajectory = by_flow(options, u0) if options.process is None else by_process(options, u0)
        shown = (render.to_pixels(u[0]) for number, u in trajectory.moments if number in trajectory.frames)
        return _encoded(lambda path: save_video(path, (render.enlarged(frame, VIDEO_SIZE) for frame in shown), options.video.fps))

    def samples(self, wanted: Samples) -> Iterator[bytes]:
        """Samples of a model on their way from noise and flow: a message about all of it, then one for every step."""
        pipeline, draw, num, columns = self._drawing(wanted)
        (height, width), classes = pipeline.config.size, list(pipeline.config.classes)
        visited = visited_levels(pipeline.corruption, steps=wanted.levels)
        count = num * columns if wanted.mode == "interpolate" else num
        about = {"kind": "scene", "frames": len(visited), "height": height, "width": width, "count": count}
        about |= {"columns": columns, "classes": classes, "process": pipeline.config.process_name}
        yield message(about | {"command": _sample_command(wanted, num, columns)})

        def work(emit: Callable[[Any], None]) -> None:
            draw(callback=lambda level, u: emit((level, u)))

        for level, u in steps(work):
            about = {"kind": "frame", "level": level, "noise": float(pipeline.corruption.noise[level])}
            yield message(about, np.stack([render.to_pixels(image) for image in u]))

    def sampled_film(self, wanted: Samples) -> bytes:
        """The video that ``cli.sample --video`` writes, MP4."""
        pipeline, draw, _, columns = self._drawing(wanted)
        film = Film(pipeline, wanted.levels)
        draw(callback=film.add)
        return _encoded(lambda path: film.save(path, Results.fps, columns))

    def _drawing(self, wanted: Samples) -> tuple[Pipeline, Callable[..., torch.Tensor], int, int | None]:
        """The model, what draws the samples, their number (of rows, if they are interpolated), and the samples in a row."""
        pipeline = self._model(wanted.model)
        most = min(MOST_SAMPLES, MOST_SAMPLED_PIXELS // math.prod(pipeline.config.size))
        check_integer("number of samples", wanted.num, 1, max(1, most))
        check_name("mode", wanted.mode, (*MODES, "interpolate"))
        pipeline.batch = max(pipeline.batch, wanted.num)
        how = {name: getattr(wanted, name) for name in ("seed", "levels", "label", "guidance")}
        if wanted.mode != "interpolate":
            columns = len(pipeline.config.classes) if pipeline.config.means_every_class(wanted.label) else None
            return pipeline, partial(pipeline.sample, wanted.num, **how, **MODES[wanted.mode]), wanted.num, columns
        columns = min(8, wanted.num)
        num = wanted.num // columns
        pairs = [(2 * row, 2 * row + 1) for row in range(num)]
        return pipeline, partial(pipeline.interpolate, pairs, columns, **how), num, columns

    def restored(self, wanted: Restored) -> Iterator[bytes]:
        """A degraded picture, its level if it is not given, and samples of what it may have been, step by step."""
        pipeline = self._model(wanted.run)
        check_integer("samples", wanted.samples, 1, 16)
        mode = {1: "L", 3: "RGB"}[pipeline.config.channels]
        picture, size = fitted(pipeline, self.pictures.read(wanted.picture, mode))
        words = ["python", "-m", "cli.restore", *_positional(wanted.picture, "degraded"), "--run", wanted.run]
        words += _differing({"samples": (wanted.samples, 4), "seed": (wanted.seed, 0), "level": (wanted.level, None)})
        about = {"kind": "scene", "height": size.height, "width": size.width, "count": wanted.samples}
        yield message(about | {"command": shlex.join(words), "levels": pipeline.corruption.levels}, render.to_pixels(picture))
        level = wanted.level
        if level is None:
            yield message({"kind": "progress", "text": "Pictures of the model are degraded, to compare this one with them."})
            estimate = self._estimator(wanted.run, wanted.seed)(picture)
            level = estimate.quantile(0.5)
            (sigma, sigma_spread), (noise, noise_spread) = (estimate.spread(values) for values in (estimate.sigma, estimate.noise))
            about = {"kind": "estimate", "level": level, "low": estimate.quantile(0.05), "high": estimate.quantile(0.95)}
            about |= {"sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
            yield message(about | {"at": estimate.level.tolist(), "probability": estimate.probability.tolist()})
        pipeline = pipeline.at_size(size)
        pipeline.batch = max(pipeline.batch, wanted.samples)

        def work(emit: Callable[[Any], None]) -> None:
            drawn = restore(pipeline, picture, level, wanted.samples, wanted.seed, callback=lambda level, u: emit((level, u)))
            emit((None, drawn))

        for at, u in steps(work):
            if at is None:
                yield message(
                    {"kind": "result", "spread": float(u.std(dim=0, unbiased=False).mean())}, render.to_pixels(u.mean(dim=0))
                )
            else:
                yield message({"kind": "frame", "level": at}, np.stack([render.to_pixels(image) for image in u]))

    def _model(self, name: str) -> Pipeline:
        """A model by its name."""
        models = self.models()
        check_name("model", name, models)
        return _kept(self._models, name, lambda: Pipeline.from_pretrained(models[name], device=self.device))

    def _estimator(self, name: str, seed: int) -> LevelEstimator:
        """What finds the level of degraded pictures of a model, as ``cli.restore --seed`` makes it."""
        return _kept(self._estimators, (name, seed), lambda: LevelEstimator(self._model(name), seed=seed))


def _kept(kept: OrderedDict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """What is kept under the key, made if it is not there; only the last few are kept."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > MOST_MODELS:
        kept.popitem(last=False)
    return kept[key]


@dataclass(frozen=True)
class Scene:
    """A picture on its way through the levels that the page shows."""

    peclet: float
    title: str
    size: Size
    moments: Iterator[tuple[int, torch.Tensor]]
    """Number of every frame, and the picture then, float32 [1, C, H, W]."""
    numbers: dict[str, np.ndarray]
    """Numbers of all frames by name: blur width [pixels], Fourier number, signal, noise."""
    flow: tuple[Any, Any] | None
    """What has the velocity field, and its seed; None without a flow."""
    moving: bool
    """Whether the velocity changes in time."""

    def field(self, side: int, sigma: float = 0.0) -> torch.Tensor | None:
        """The velocity on a grid with this shorter side, in units of V, float32 [1, 2, h, w], when the blur is ``sigma`` pixels."""
        if self.flow is None:
            return None
        scale = min(side, self.size.shorter) / self.size.shorter
        operator, seed = self.flow
        return operator.velocity(seed, *(round(length * scale) for length in self.size), sigma=sigma * scale)


def _scene(options: Corrupt, size: Size, u0: torch.Tensor, frames: int) -> Scene:
    """The trajectory that ``cli.corrupt`` computes for these options, at ``frames`` moments."""
    check_integer("frames", frames, 2, MOST_FRAMES)
    if options.process is not None:
        corruption: Corruption = process_of(replace(options, levels=frames - 1), size)
        process = corruption.process
        flow = (flow_operator(process, corruption.sigma), seeds(options.seed, "flow")) if process.peclet > 0.0 else None
        moments = corruption.trajectory(u0, torch.tensor([options.seed]))
        sigma, signal, noise = corruption.sigma, corruption.signal, corruption.noise
        peclet, moving = process.peclet, process.turbulence == "waves"
        title = f"{options.process}, Pe = {peclet:g}"
    else:
        peclet, strength = peclet_of(options, size.shorter), options.flow
        schedule = Schedule(frame_widths(pixels(strength.sigma_max, size.shorter), frames))
        operator = operator_of(strength, schedule, peclet)
        flow = (operator, options.seed) if peclet > 0.0 else None
        moments = operator.trajectory(u0, options.seed)
        sigma, signal, noise = schedule.sigma, np.ones(frames), np.zeros(frames)
        title, moving = f"Pe = {peclet:g}", strength.turbulence_time > 0.0 and strength.strokes is None
    numbers = {"sigma": sigma, "fourier": 0.5 * (sigma / size.shorter) ** 2, "signal": signal, "noise": noise}
    return Scene(peclet, title, size, moments, numbers, flow, moving and flow is not None)


def command(options: Corrupt, name: str) -> str:
    """The command line that makes the files of what the page shows."""
    picture = _positional(name, "chelsea")
    return shlex.join(["python", "-m", "cli.corrupt", *picture, *_differing(_against_defaults(options)), "--video"])


def _against_defaults(options: Corrupt) -> dict[str, tuple[Any, Any]]:
    """Value and default of every option of cli.corrupt that the page can change."""
    usual = asdict(Corrupt())
    given = {name: (value, usual[name]) for name, value in asdict(options).items() if name in ("size", "peclet", "process", "seed")}
    return given | {name: (value, getattr(FlowOptions(), name)) for name, value in asdict(options.flow).items()}


def _encoded(save: Callable[[Path], None]) -> bytes:
    """A video, MP4; ``save(path)`` writes it. The encoder needs a file: where the system keeps one in memory, it is there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        save(Path(folder) / "film.mp4")
        return (Path(folder) / "film.mp4").read_bytes()


def _sample_command(wanted: Samples, num: int, columns: int | None) -> str:
    """The command line that makes the same samples."""
    model = ["--model", wanted.model] if wanted.model in BUNDLED else [wanted.model]
    values: dict[str, tuple[Any, Any]] = {"num": (num, None)}
    values |= {name: (getattr(wanted, name), getattr(Samples, name)) for name in ("seed", "levels", "label", "guidance")}
    if wanted.mode == "interpolate":
        values["interpolate"] = columns, None
    mode = [f"--{wanted.mode}"] if MODES.get(wanted.mode) else []
    return shlex.join(["python", "-m", "cli.sample", *model, "--video", *_differing(values), *mode])


def _differing(values: dict[str, tuple[Any, Any]]) -> list[str]:
    """Words of a command line for values that differ from their defaults."""
    return [
        word
        for name, (value, usual) in values.items()
        if value != usual
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]


def _positional(name: str, usual: str) -> list[str]:
    """A picture in a command line; none if it is the command's own. The page puts the visitor's file in the place of a checksum."""
    bundled = {"chelsea": str(PHOTOGRAPH), "degraded": str(EXAMPLE)}
    return [] if name == usual else [bundled.get(name, name)]
