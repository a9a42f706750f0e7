"""What the page shows, as streams of messages: trajectories of pictures, samples of models, restorations."""

from __future__ import annotations

import math
import shlex
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cli import render
from cli.compare import describe, power_spectrum
from cli.corrupt import Corrupt
from cli.explore.pictures import Pictures, shrink
from cli.explore.stream import PAUSE, REST, TURN, enter, leave, message, pause, steps
from cli.film import VIDEO_SIZE
from cli.photograph import WHITE
from cli.restore import EXAMPLE, MOST_OWN, Restore, check_model, degraded, fitted, fitted_size, in_own_size, remarks
from cli.sample import Film, Results
from cli.scene import PHOTOGRAPH, FlowOptions, Scene, by_flow, by_process, frame_widths, shown
from diffusion.data.images import Cut, fitting
from diffusion.files import asset
from diffusion.methods import METHODS
from diffusion.photographs import Photographs, as_stored
from diffusion.rng import seeds
from diffusion.sampling import tiles
from diffusion.sampling.pipeline import BUNDLED, Pipeline
from diffusion.sampling.restoration import Intervals, LevelEstimator, restore
from diffusion.size import Size
from lbm_warp import energy_spectrum
from lbm_warp.checks import InputError, check_integer, check_name
from lbm_warp.heat import blur
from lbm_warp.random import normal

SIZES = (128, 256, 512)
ASTRONAUT = asset("astronaut.jpg")
# A clean picture of the kind that a bundled model knows: the eleventh of `beyond-blur sample --model emoji --num 48 --seed 7`.
EMOJI = Path(str(resources.files("cli.explore") / "page" / "emoji.png"))
MOST_FRAMES = 240
FIELD = 64  # shorter side of the velocity field that is sent [cells]
FIELD_OF_FRAME = 32  # the same for every frame of a flow that moves
FINE = 256  # above this side only every fourth frame has a spectrum: it costs more than the corruption
MOST_SECONDS, MOST_FILM_SECONDS = 60.0, 600.0  # that a trajectory and a film may take
FRAME = 0.013  # what a frame of 256 pixels takes beside the corruption [s]
PACE = 1e9  # values of an iteration that are computed in a second, until that is measured
PART = 16  # images that are in a network at a time on a CPU: as fast as all at once, equal bit for bit, in less memory
MOST_MODELS = 2**28  # bytes of the weights in memory
MOST_ESTIMATORS = 16
MOST_PHOTOGRAPH = 1.5e6  # pixels of a photograph that are restored here; the command takes any number
MOST_SAMPLES, MOST_RESTORED = 64, 16
MOST_SAMPLED_PIXELS = 64 * 64**2
PAPER = {"Paper": "https://arxiv.org/abs/2506.16827"}
PHOTOGRAPHS = "photographs"  # the bundled model of them
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


@dataclass(frozen=True)
class Chosen:
    """A picture, and how it is corrupted: what a trajectory and a film are made of."""

    options: Corrupt
    name: str
    u0: torch.Tensor
    """The picture as it is shown, on the device, float32 [1, C, H, W]; it may be smaller than the options say."""
    frames: int
    seconds: float
    """What all of it takes, about."""
    warning: str | None = None
    """What a visitor should know."""


class Studio:
    """Makes all that the page shows. Its iterators give messages and pauses (``cli.explore.stream``); nothing of a visitor is kept.

    What reads a file, ``chosen``, ``model`` and ``degraded``, takes as long as the file is large.

    Args:
        device: where to compute.
        runs: folder with run folders.
    """

    def __init__(self, device: torch.device, runs: Path) -> None:
        self.device = device
        self.runs = runs
        self.pictures = Pictures({"chelsea": PHOTOGRAPH, "astronaut": ASTRONAUT, "degraded": EXAMPLE, "emoji": EMOJI})
        self.pace = dict.fromkeys(SIZES, PACE)  # by shorter side: a large picture is beyond the processor's cache
        self._models: OrderedDict[str, Pipeline] = OrderedDict()
        self._estimators: OrderedDict[tuple[str, int], LevelEstimator] = OrderedDict()

    def warm_up(self) -> None:
        """Compile the kernels, or load them, before the first visitor waits for them; measure how fast they are."""
        for options in (
            *(Corrupt(size=SIZES[0], peclet=1.0, process=process) for process in (None, "fluid", "beyond-blur")),
            Corrupt(size=SIZES[-1], peclet=30.0),
        ):
            deque(self.trajectory(self.chosen(options, "chelsea", 2)), maxlen=0)
        # Not by the clock, where others may use the processor.
        now = time.process_time if self.device.type == "cpu" else time.perf_counter
        for size in SIZES:
            u0, begin = self._picture("chelsea", size), now()
            scene = by_flow(Corrupt(peclet=300.0), u0, np.array([0.0, 16.0]))
            float(deque(scene.moments, maxlen=1)[0][1].sum())
            self.pace[size] = float(scene.effort[-1] * u0.numel() / (now() - begin))

    def _picture(self, name: str, size: int | None) -> torch.Tensor:
        return torch.from_numpy(self.pictures.of_size(name, size or SIZES[0]))[None].to(self.device)

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
                "random": operator.random or bool(method.forward.noise.any()),
            }
            for name, method in METHODS.items()
            for operator in (method.operator,)
        }
        try:
            project = metadata.metadata("beyond-blur").get_all("Project-URL") or []
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            project = []
        links = PAPER | dict(line.split(", ", 1) for line in project)
        return {"processes": processes, "models": list(self.models()), "sizes": SIZES, "links": links}

    def chosen(self, options: Corrupt, name: str, frames: int) -> Chosen:
        """A picture for a trajectory; in a smaller size than the options say, with a warning, if that takes too long.

        Raises:
            InputError: if the picture is not here, an option is out of its range, or all of it takes too long.
        """
        check_integer("frames", frames, 2, MOST_FRAMES)
        wanted = options.size
        for size in (size for size in reversed(SIZES) if size <= (wanted or SIZES[0])):
            u0 = self._picture(name, size)
            seconds = self._seconds(_scene(options, u0, frames), u0, frames)
            if size == wanted:
                of_all = seconds
            if seconds <= MOST_SECONDS:
                words = f"At {wanted} px this takes about {_duration(of_all)}; it is shown at {size} px. The command makes it."
                return Chosen(options, name, u0, frames, seconds, None if size == wanted else words)
        advice = "take a smaller Peclet number, blur or turbulence time"
        raise InputError(f"this takes about {_duration(seconds)} at {size} px; {advice}")

    def chosen_film(self, options: Corrupt, name: str) -> Chosen:
        """A picture for a film; errors as for :meth:`chosen`."""
        u0, frames = self._picture(name, options.size), options.video.frames
        seconds = self._seconds(shown(options, u0, frames), u0, frames)
        if seconds > MOST_FILM_SECONDS:
            most = f"at most {_duration(MOST_FILM_SECONDS)} are given; take a smaller size, or the command"
            raise InputError(f"this film takes about {_duration(seconds)}, {most}: {command(options, name)}")
        return Chosen(options, name, u0, frames, seconds)

    def _seconds(self, scene: Scene, u0: torch.Tensor, frames: int) -> float:
        (height, width), beside = u0.shape[2:], frames * FRAME / 256**2
        return float(scene.effort[-1]) * u0.numel() / self.pace[min(height, width)] + beside * height * width

    def _piece(self, u0: torch.Tensor) -> float:
        """The iterations of pictures that take about as long as a turn."""
        return max(1.0, TURN * self.pace[min(u0.shape[2:])] / u0.numel())

    def trajectory(self, chosen: Chosen, at: float | None = None) -> Iterator[Any]:
        """A picture from clean to fully corrupted: a message about all of it, then one for every frame.

        Args:
            chosen: the picture, and how it is corrupted.
            at: the frame at this share of the way comes first. What leads to it is computed twice.
        """
        u0, frames = chosen.u0, chosen.frames
        scene = _scene(chosen.options, u0, frames)
        size = u0.shape[2], u0.shape[3]
        field = scene.velocity(*_grid(size, FIELD)) if scene.flows else None
        about = {"kind": "scene", "title": scene.about, "frames": frames, "height": size[0], "width": size[1]}
        about |= {
            "wavenumbers": power_spectrum(u0[0])[0].tolist(),
            "command": command(chosen.options, chosen.name),
            "peclet": scene.operator.peclet,
            "seconds": chosen.seconds,
            "warning": chosen.warning,
        }
        if field is not None:
            k, energy = energy_spectrum(field, scene.boundary)
            about |= {"field": list(field.shape[2:]), "k": k.tolist(), "energy": energy.tolist()}
        yield message(about, None if field is None else field[0].numpy())
        first = set() if at is None else {round(min(max(at, 0.0), 1.0) * (frames - 1))}
        for wanted in (first, set(range(frames)) - first):
            for number, u in _scene(chosen.options, u0, frames, self._piece(u0)).moments if wanted else ():
                yield self._frame(scene, number, u[0], frames) if number in wanted else _paused(u)
                wanted.discard(number)
                if not wanted:
                    break

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

    def film(self, chosen: Chosen) -> Iterator[Any]:
        """The frames of the video that ``cli.corrupt --video`` writes, as it has them before the first and the last are held."""
        scene = shown(chosen.options, chosen.u0, chosen.frames, self._piece(chosen.u0))
        for number, u in scene.moments:
            yield render.enlarged(render.to_pixels(u[0]), VIDEO_SIZE) if number in scene.frames else _paused(u)

    def samples(self, pipeline: Pipeline, wanted: Samples) -> Iterator[Any]:
        """Samples of a model on their way from noise and flow: a message about all of it, then one for every step."""
        draw, num, columns = _drawing(pipeline, wanted)
        (height, width), classes = pipeline.config.size, list(pipeline.config.classes)
        visited = pipeline.method.sampler.visited(pipeline.forward, steps=wanted.steps)
        count = num * (columns or 1) if wanted.mode == "interpolate" else num
        about = {"kind": "scene", "frames": len(visited), "height": height, "width": width, "count": count}
        about |= {"columns": columns, "classes": classes, "process": pipeline.config.process_name}
        yield message(about | {"command": _sample_command(wanted, num, columns)})

        def work(emit: Callable[[Any], None]) -> None:
            draw(callback=lambda level, u: emit((level, u)))

        for made in steps(work):
            if made in (PAUSE, REST):
                yield made
                continue
            level, u = made
            about = {"kind": "frame", "level": level, "noise": float(pipeline.forward.noise[level])}
            yield message(about, np.stack([render.to_pixels(image) for image in u]))

    def sampled_film(self, pipeline: Pipeline, wanted: Samples) -> Iterator[Any]:
        """The frames of the video that ``cli.sample --video`` writes."""
        draw, _, columns = _drawing(pipeline, wanted)
        film = Film(pipeline, wanted.steps)
        yield from steps(lambda _: draw(callback=film.add))
        yield from film.frames(Results.fps, columns)

    def degraded(self, name: str, run: str) -> tuple[Pipeline, np.ndarray, Size]:
        """A model, a picture in its colours, float32 [C, H, W], and the size of the file's; a large one comes in the model's size.

        Raises:
            InputError: if the picture is not here, or as for :meth:`model`.
        """
        pipeline = self.model(run)
        photographs, sizes = isinstance(pipeline.method.denoiser, Photographs), list[Size]()

        def cut(own: Size) -> Cut:
            sizes.append(own)
            pixels = own.height * own.width
            if photographs:
                share = min(1.0, math.sqrt(MOST_PHOTOGRAPH / pixels))
                middle = Size(int(share * own.height), int(share * own.width))  # resized, its blur would be another
                return Cut(middle, middle)
            return Cut(own, own) if pixels <= MOST_OWN else fitting(own, fitted_size(pipeline, own))

        check_model(run, pipeline)
        mode: Literal["L", "RGB"] | None = None if photographs else "L" if pipeline.config.channels == 1 else "RGB"
        read = self.pictures.read(name, mode, cut)
        return pipeline, read, sizes[0]

    def photograph(
        self,
        pipeline: Pipeline,
        clean: np.ndarray,
        own: Size,
        wanted: Restore,
        degrade_blur: float | None = None,
        degrade_noise: float | None = None,
    ) -> Iterator[Any]:
        """A photograph, the blur and the noise found in it, and it restored tile by tile, with what is not known.

        Args:
            pipeline, clean, own: what :meth:`degraded` gives.
            wanted: the options of ``cli.restore``.
            degrade_blur, degrade_noise: blur [pixels] and noise, in units of the range, that it is given first; None: it is as
                it is.
        """
        size, folder = Size(*clean.shape[1:]), wanted.photographs or tiles.MODEL
        degrade = degrade_blur is not None or degrade_noise is not None
        words = ["beyond-blur", "restore", *(["degraded.png"] if degrade else _positional(str(wanted.pictures[0]), ""))]
        words += ["--run", wanted.run] if wanted.run != PHOTOGRAPHS else []
        words += _differing({"blur": (wanted.blur, None), "noise": (wanted.noise, None)})
        about = {"kind": "scene", "count": 0, "own": list(own), "command": shlex.join(words)}
        about |= {"height": size.height, "width": size.width}
        if own == size:
            about["text"] = f"In its own size, {own.width} x {own.height} px."
        else:
            about["text"] = f"This is the middle of {own.width} x {own.height} px; the command restores all of it."
        picture = clean
        if degrade:
            blurred = []
            for channel in torch.from_numpy(clean):  # one at a time, as they are large
                blurred.append(blur(channel[None, None], torch.tensor([degrade_blur or 0.0]).double(), periodic=False)[0])
                yield PAUSE
            unit = normal(seeds(wanted.seed, "degraded"), (1, *clean.shape))[0]
            picture = as_stored(torch.cat(blurred) + (degrade_noise or 0.0) * unit).numpy()
        yield message(about, render.to_pixels(torch.from_numpy(picture)))
        if degrade:
            yield message({"kind": "clean"}, render.to_pixels(torch.from_numpy(clean)))
        known = tiles.DegradationEstimator.load(folder)
        sigma, noise = known(picture).given(wanted.blur, wanted.noise).moments()
        yield message({"kind": "estimate", "sigma": sigma, "noise": noise})
        half, inside = tiles.NINETY * known.factor(noise[0]), 0.0

        def work(emit: Callable[[Any], None]) -> None:
            enter()  # so that of several works one has the arrays of a tile
            for tile in tiles.tiles(pipeline, picture, sigma[0], noise[0]):
                emit(tile)
                enter()

        for made in steps(work):
            if made in (PAUSE, REST):
                yield made
                continue
            width = torch.from_numpy(half * made.deviation.mean(axis=0, keepdims=True))
            inside += float(width.sum()) / (size.height * size.width)
            about = {"kind": "tile", "top": made.rows.start, "left": made.columns.start, "height": width.shape[1]}
            both = torch.from_numpy(made.mean), width / WHITE
            yield message(about | {"width": width.shape[2]}, np.stack([render.to_pixels(one) for one in both]))
        yield message({"kind": "result", "half_width": inside, "white": WHITE})

    def restored(self, pipeline: Pipeline, read: np.ndarray, own: Size, wanted: Restore) -> Iterator[Any]:
        """A degraded picture, its level if it is not given, and samples of what it may have been, step by step.

        Args:
            pipeline, read, own: what :meth:`degraded` gives.
            wanted: the options of ``cli.restore``.
        """
        clean, size = fitted(pipeline, read)
        picture = degraded(pipeline, clean, size, wanted)
        words = ["beyond-blur", "restore", *_positional(str(wanted.pictures[0]), "degraded"), "--run", wanted.run]
        options = ("degrade", "samples", "seed", "level")
        words += _differing({name: (getattr(wanted, name), getattr(Restore, name)) for name in options})
        about = {"kind": "scene", "count": wanted.samples, "own": list(own), "levels": pipeline.method.levels}
        about["command"] = shlex.join(words)
        yield message(about | _of_size(size, own), render.to_pixels(picture))
        if wanted.degrade:
            yield message({"kind": "clean"}, render.to_pixels(clean))
        if wanted.level == "auto":
            key = (wanted.run, wanted.seed)
            if key not in self._estimators:
                yield from steps(lambda emit: self._estimators.update({key: _estimator(pipeline, wanted.seed, emit)}))
            self._estimators.move_to_end(key)
            shrink(self._estimators, MOST_ESTIMATORS, lambda _: 1)
            estimator = self._estimators[key]
            estimate = estimator(picture)
            if wanted.degrade is None and (better := in_own_size(pipeline, read, estimator, estimate)):
                picture, size, estimate = better
                yield message(about | _of_size(size, own), render.to_pixels(picture))
            level = estimate.quantile(0.5)
            (sigma, sigma_spread), (noise, noise_spread) = (estimate.spread(values) for values in (estimate.sigma, estimate.noise))
            about = {"kind": "estimate", "level": level, "low": estimate.quantile(0.05), "high": estimate.quantile(0.95)}
            about |= {"sigma": [sigma, sigma_spread], "noise": [noise, noise_spread], "clean": estimate.clean}
            about["warning"] = "; ".join(remarks(estimate, wanted.run)) or None
            yield message(about | {"at": estimate.level.tolist(), "probability": estimate.probability.tolist()})
        else:
            level = int(wanted.level)
        if level == 0:
            yield message({"kind": "result", "spread": 0.0}, render.to_pixels(picture)[None])
            return
        intervals = Intervals.of(pipeline)
        pipeline = pipeline.at_size(size)
        pipeline.batch = max(pipeline.batch, wanted.samples)

        def work(emit: Callable[[Any], None]) -> None:
            emit((None, restore(pipeline, picture, level, wanted.samples, wanted.seed, callback=lambda level, u: emit((level, u)))))

        for made in steps(work):
            if made in (PAUSE, REST):
                yield made
                continue
            at, u = made
            if at is not None:
                yield message({"kind": "frame", "level": at}, np.stack([render.to_pixels(image) for image in u]))
                continue
            about, shown = {"kind": "result", "spread": float(u.std(dim=0, unbiased=False).mean())}, [u.mean(dim=0)]
            if intervals and len(u) > 1:
                half = intervals(u, level).mean(dim=0, keepdim=True)
                about |= {"half_width": float(half.mean()), "white": WHITE}
                shown.append((half / WHITE).clamp(max=1.0))
            yield message(about, np.stack([render.to_pixels(image) for image in shown]))

    def model(self, name: str) -> Pipeline:
        """A model by its name; its network lets others have their turns.

        Raises:
            InputError: if there is none, or it cannot be read.
        """
        models = self.models() | {PHOTOGRAPHS: tiles.MODEL}
        check_name("model", name, models)
        if name not in self._models:
            self._models[name] = pipeline = Pipeline.from_pretrained(models[name], device=self.device)
            network = pipeline.network
            for module in network.modules():
                module.register_forward_hook(pause)
            network.register_forward_pre_hook(enter)
            network.register_forward_hook(leave)
            if self.device.type == "cpu":
                network.forward = partial(_in_parts, network.forward)
        self._models.move_to_end(name)
        shrink(self._models, MOST_MODELS, lambda pipeline: sum(p.nbytes for p in pipeline.network.parameters()))
        return self._models[name]


def _in_parts(forward: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """What a network makes of images, and of what goes with each of them, a few at a time."""
    return torch.cat([forward(*part) for part in zip(*(whole.split(PART) for whole in inputs), strict=True)])


def _scene(options: Corrupt, u0: torch.Tensor, frames: int, piece: float = math.inf) -> Scene:
    """A picture with so many frames on its way, made in pieces of at most so much effort."""
    if options.process is not None:
        return by_process(replace(options, levels=frames - 1), u0, piece)
    return by_flow(options, u0, frame_widths(options.flow.widths(min(u0.shape[2:]))[1], frames), piece)


def _paused(u: torch.Tensor) -> object:
    """A pause, when what leads to these pictures is computed: a GPU is waited for."""
    u.flatten()[0].item()
    return PAUSE


def _estimator(pipeline: Pipeline, seed: int, emit: Callable[[Any], None]) -> LevelEstimator:
    """What finds the level of degraded pictures of a model, as ``cli.restore --seed`` makes it; how far it is, is emitted."""
    count, done = len(pipeline.method.sampler.visited(pipeline.forward)) + pipeline.method.levels + 1, 0
    text = "Pictures of the model are degraded, to compare this one with them."

    def on_level(*_: object) -> None:
        nonlocal done
        done += 1
        if done % 32 == 1:
            emit(message({"kind": "progress", "text": text, "done": done, "of": count}))
        pause()

    return LevelEstimator(pipeline, seed=seed, callback=on_level)


def _of_size(size: Size, own: Size) -> dict[str, Any]:
    """At which size a picture of its own size is restored, in numbers and words."""
    text = f"It is restored at {size.width} x {size.height} px; the picture has {own.width} x {own.height} px."
    if own == size:
        text = f"It is restored in its own size, {size.width} x {size.height} px."
    return {"height": size.height, "width": size.width, "text": text}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{seconds / 60.0:.0f} min"


def _drawing(pipeline: Pipeline, wanted: Samples) -> tuple[Callable[..., torch.Tensor], int, int | None]:
    """What draws the samples, their number (of rows, if they are interpolated), and the samples in a row."""
    if isinstance(pipeline.method.denoiser, Photographs):
        raise InputError(f"{wanted.model} restores photographs, and draws none; take another model")
    most = min(MOST_SAMPLES, MOST_SAMPLED_PIXELS // math.prod(pipeline.config.size))
    check_integer("number of samples", wanted.num, 1, max(1, most))
    check_name("mode", wanted.mode, (*MODES, "interpolate"))
    pipeline.batch = max(pipeline.batch, wanted.num)
    how: dict[str, Any] = {name: getattr(wanted, name) for name in ("seed", "steps", "label", "guidance")}
    if wanted.mode != "interpolate":
        columns = len(pipeline.config.classes) if pipeline.config.means_every_class(wanted.label) else None
        return partial(pipeline.sample, wanted.num, **how, **MODES[wanted.mode]), wanted.num, columns
    columns = min(8, wanted.num)
    num = wanted.num // columns
    pairs = [(2 * row, 2 * row + 1) for row in range(num)]
    return partial(pipeline.interpolate, pairs, columns, **how), num, columns


def _grid(size: tuple[int, int], side: int, sigma: float = 0.0) -> tuple[tuple[int, int], float]:
    """The size of a velocity field with this shorter side for pictures of a size, and a blur width [pixels] in its cells."""
    scale = min(side, *size) / min(size)
    return (round(size[0] * scale), round(size[1] * scale)), sigma * scale


def command(options: Corrupt, name: str) -> str:
    """The command line that makes the files of what the page shows."""
    picture = _positional(name, "chelsea")
    return shlex.join(["beyond-blur", "corrupt", *picture, *_differing(_against_defaults(options)), "--video"])


def _against_defaults(options: Corrupt) -> dict[str, tuple[Any, Any]]:
    """Value and default of every option of cli.corrupt that the page can change."""
    usual = asdict(Corrupt())
    given = {name: (getattr(options, name), usual[name]) for name in ("size", "peclet", "process", "seed")}
    return given | {name: (value, getattr(FlowOptions(), name)) for name, value in asdict(options.flow).items()}


def _sample_command(wanted: Samples, num: int, columns: int | None) -> str:
    """The command line that makes the same samples."""
    model = ["--model", wanted.model] if wanted.model in BUNDLED else [wanted.model]
    values: dict[str, tuple[Any, Any]] = {"num": (num, None)}
    values |= {name: (getattr(wanted, name), getattr(Samples, name)) for name in ("seed", "steps", "label", "guidance")}
    if wanted.mode == "interpolate":
        values["interpolate"] = columns, None
    mode = [f"--{wanted.mode}"] if MODES.get(wanted.mode) else []
    return shlex.join(["beyond-blur", "sample", *model, "--video", *_differing(values), *mode])


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
    bundled = {"chelsea": str(PHOTOGRAPH), "astronaut": str(ASTRONAUT), "degraded": str(EXAMPLE), "emoji": str(EMOJI)}
    return [] if name == usual else [bundled.get(name, name)]
