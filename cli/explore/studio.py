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
from cli.corrupt import Corrupt
from cli.explore.pictures import Pictures
from cli.explore.stream import message, steps
from cli.film import FPS, VIDEO_SIZE
from cli.restore import EXAMPLE, fitted
from cli.sample import Film, Results
from cli.scene import PHOTOGRAPH, FlowOptions, Scene, by_flow, by_process, frame_widths, shown
from cli.video import held, save_video
from diffusion.methods import METHODS
from diffusion.sampling.pipeline import BUNDLED, Pipeline
from diffusion.sampling.restoration import LevelEstimator, restore
from lbm_warp import energy_spectrum
from lbm_warp.checks import check_integer, check_name

SIZES = (128, 256, 512)
MOST_FRAMES = 240
FIELD = 64  # shorter side of the velocity field that is sent [cells]
FIELD_OF_FRAME = 32  # the same for every frame of a flow that moves
FINE = 256  # above this side only every fourth frame has a spectrum: it costs more than the corruption
MOST_MODELS = 3  # in memory
MOST_SAMPLES = 64
MOST_SAMPLED_PIXELS = 64 * 64**2
MODES: dict[str, dict[str, Any]] = {"new": {}, "same-init": {"same_init": True}, "share-noise": {"share_noise": True}}


@dataclass(frozen=True)
class Samples:
    """What is generated: the options of ``cli.sample``."""

    model: str = "digits"
    num: int = 16
    seed: int = 0
    steps: int | None = None
    label: str | None = None
    guidance: float = 1.0
    mode: str = "new"
    """new, same-init, share-noise or interpolate."""


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
        return torch.from_numpy(self.pictures.of_size(name, options.size or SIZES[0]))[None].to(self.device)

    def models(self) -> dict[str, Path]:
        """Folders of the models by name: the bundled ones, and all finished or running trainings in the folder of runs."""
        found = sorted(path.parent for path in self.runs.glob("*/config.json") if (path.parent / "ema.safetensors").is_file())
        return BUNDLED | {str(folder): folder for folder in found}

    def choices(self) -> dict[str, Any]:
        """What can be chosen: processes and models."""
        processes = {
            name: {
                "about": describe(method.forward).replace("\n", "; "),
                "peclet": operator.peclet,
                "control": not operator.transport,
            }
            for name, method in METHODS.items()
            for operator in (method.operator,)
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
        check_integer("frames", frames, 2, MOST_FRAMES)
        if options.process is None:
            scene = by_flow(options, u0, frame_widths(options.flow.widths(min(u0.shape[2:]))[1], frames))
        else:
            scene = by_process(replace(options, levels=frames - 1), u0)
        size = u0.shape[2], u0.shape[3]
        field = scene.velocity(*_grid(size, FIELD)) if scene.flows else None
        about = {"kind": "scene", "title": scene.about, "frames": frames, "height": size[0], "width": size[1]}
        about |= {
            "wavenumbers": power_spectrum(u0[0])[0].tolist(),
            "command": command(options, name),
            "peclet": scene.operator.peclet,
        }
        if field is not None:
            k, energy = energy_spectrum(field, scene.boundary)
            about |= {"field": list(field.shape[2:]), "k": k.tolist(), "energy": energy.tolist()}
        yield message(about, None if field is None else field[0].numpy())
        for number, u in scene.moments:
            yield self._frame(scene, number, u[0], frames)

    def _frame(self, scene: Scene, number: int, u: torch.Tensor, frames: int) -> bytes:
        """A picture [C, H, W] of a trajectory: its numbers, its pixels and, of a flow that moves, the velocity then."""
        sigma, size = float(scene.sigma[number]), (u.shape[1], u.shape[2])
        about: dict[str, Any] = {"kind": "frame", "number": number, "sigma": sigma, "fourier": 0.5 * (sigma / min(size)) ** 2}
        about |= {"signal": float(scene.signal[number]), "noise": float(scene.noise[number])}
        about |= {"mean": u.double().mean().item(), "deviation": u.double().std(unbiased=False).item()}
        if min(size) <= FINE or number % 4 == 0 or number == frames - 1:
            about["spectrum"] = power_spectrum(u)[1].tolist()
        field = scene.velocity(*_grid(size, FIELD_OF_FRAME, sigma)) if scene.moving else None
        body = render.to_pixels(u).tobytes()
        if field is not None:
            about["field"] = list(field.shape[2:])
            body += field[0].numpy().tobytes()
        return message(about, np.frombuffer(body, np.uint8))

    def film(self, options: Corrupt, name: str) -> bytes:
        """The video that ``cli.corrupt --video`` writes, MP4."""
        u0 = self._picture(options, name)
        scene = shown(options, u0, options.video.frames)
        frames = (render.enlarged(render.to_pixels(u[0]), VIDEO_SIZE) for number, u in scene.moments if number in scene.frames)
        return _encoded(lambda path: save_video(path, held(frames, FPS), FPS))

    def samples(self, wanted: Samples) -> Iterator[bytes]:
        """Samples of a model on their way from noise and flow: a message about all of it, then one for every step."""
        pipeline, draw, num, columns = self._drawing(wanted)
        (height, width), classes = pipeline.config.size, list(pipeline.config.classes)
        visited = pipeline.method.sampler.visited(pipeline.forward, steps=wanted.steps)
        count = num * (columns or 1) if wanted.mode == "interpolate" else num
        about = {"kind": "scene", "frames": len(visited), "height": height, "width": width, "count": count}
        about |= {"columns": columns, "classes": classes, "process": pipeline.config.process_name}
        yield message(about | {"command": _sample_command(wanted, num, columns)})

        def work(emit: Callable[[Any], None]) -> None:
            draw(callback=lambda level, u: emit((level, u)))

        for level, u in steps(work):
            about = {"kind": "frame", "level": level, "noise": float(pipeline.forward.noise[level])}
            yield message(about, np.stack([render.to_pixels(image) for image in u]))

    def sampled_film(self, wanted: Samples) -> bytes:
        """The video that ``cli.sample --video`` writes, MP4."""
        pipeline, draw, _, columns = self._drawing(wanted)
        film = Film(pipeline, wanted.steps)
        draw(callback=film.add)
        return _encoded(lambda path: film.save(path, Results.fps, columns))

    def _drawing(self, wanted: Samples) -> tuple[Pipeline, Callable[..., torch.Tensor], int, int | None]:
        """The model, what draws the samples, their number (of rows, if they are interpolated), and the samples in a row."""
        pipeline = self._model(wanted.model)
        most = min(MOST_SAMPLES, MOST_SAMPLED_PIXELS // math.prod(pipeline.config.size))
        check_integer("number of samples", wanted.num, 1, max(1, most))
        check_name("mode", wanted.mode, (*MODES, "interpolate"))
        pipeline.batch = max(pipeline.batch, wanted.num)
        how: dict[str, Any] = {name: getattr(wanted, name) for name in ("seed", "steps", "label", "guidance")}
        if wanted.mode != "interpolate":
            columns = len(pipeline.config.classes) if pipeline.config.means_every_class(wanted.label) else None
            return pipeline, partial(pipeline.sample, wanted.num, **how, **MODES[wanted.mode]), wanted.num, columns
        columns = min(8, wanted.num)
        num = wanted.num // columns
        pairs = [(2 * row, 2 * row + 1) for row in range(num)]
        return pipeline, partial(pipeline.interpolate, pairs, columns, **how), num, columns

    def restored(self, name: str, run: str, level: int | None, samples: int, seed: int) -> Iterator[bytes]:
        """A degraded picture, its level if it is not given, and samples of what it may have been, step by step.

        The options are those of ``cli.restore``.
        """
        pipeline = self._model(run)
        check_integer("samples", samples, 1, 16)
        read = self.pictures.read(name, "L" if pipeline.config.channels == 1 else "RGB")
        picture, size = fitted(pipeline, read)
        words = ["python", "-m", "cli.restore", *_positional(name, "degraded"), "--run", run]
        words += _differing({"samples": (samples, 4), "seed": (seed, 0), "level": (level, None)})
        about = {"kind": "scene", "height": size.height, "width": size.width, "count": samples}
        yield message(about | {"command": shlex.join(words), "levels": pipeline.method.levels}, render.to_pixels(picture))
        if level is None:
            yield message({"kind": "progress", "text": "Pictures of the model are degraded, to compare this one with them."})
            estimate = self._estimator(run, seed)(picture)
            level = estimate.quantile(0.5)
            (sigma, sigma_spread), (noise, noise_spread) = (estimate.spread(values) for values in (estimate.sigma, estimate.noise))
            about = {"kind": "estimate", "level": level, "low": estimate.quantile(0.05), "high": estimate.quantile(0.95)}
            about |= {"sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
            yield message(about | {"at": estimate.level.tolist(), "probability": estimate.probability.tolist()})
        pipeline = pipeline.at_size(size)
        pipeline.batch = max(pipeline.batch, samples)

        def work(emit: Callable[[Any], None]) -> None:
            emit((None, restore(pipeline, picture, level, samples, seed, callback=lambda level, u: emit((level, u)))))

        for at, u in steps(work):
            about = {"kind": "frame", "level": at} if at is not None else {"kind": "result"}
            if at is None:
                about["spread"], u = float(u.std(dim=0, unbiased=False).mean()), u.mean(dim=0, keepdim=True)
            yield message(about, np.stack([render.to_pixels(image) for image in u]))

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


def _grid(size: tuple[int, int], side: int, sigma: float = 0.0) -> tuple[tuple[int, int], float]:
    """The size of a velocity field with this shorter side for pictures of a size, and a blur width [pixels] in its cells."""
    scale = min(side, *size) / min(size)
    return (round(size[0] * scale), round(size[1] * scale)), sigma * scale


def command(options: Corrupt, name: str) -> str:
    """The command line that makes the files of what the page shows."""
    picture = _positional(name, "chelsea")
    return shlex.join(["python", "-m", "cli.corrupt", *picture, *_differing(_against_defaults(options)), "--video"])


def _against_defaults(options: Corrupt) -> dict[str, tuple[Any, Any]]:
    """Value and default of every option of cli.corrupt that the page can change."""
    usual = asdict(Corrupt())
    given = {name: (getattr(options, name), usual[name]) for name in ("size", "peclet", "process", "seed")}
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
    values |= {name: (getattr(wanted, name), getattr(Samples, name)) for name in ("seed", "steps", "label", "guidance")}
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
