"""What degrades the clean pictures of pairs: operators whose numbers are drawn from ranges, and records that do it again.

An operator is any :class:`lbm_warp.Operator` that is a frozen dataclass of numbers: optical turbulence, the process of a method, a
camera's noise behind either, or one of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion import specs
from diffusion.data.images import check_picture
from diffusion.forward import operators
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import Scales
from diffusion.methods import known_classes
from diffusion.rng import below, seeds, uniform
from diffusion.size import Size
from lbm_warp import Operator, OpticalTurbulence
from lbm_warp.checks import Device, InputError, check_integer, check_number, check_object
from lbm_warp.random import normal


@dataclass(frozen=True)
class ProcessOperator(Operator):
    """The forward process of a method as an operator: level k with its contrast and its noise.

    Args:
        operator, scales: those of the method.
    """

    operator: operators.Operator
    scales: Scales

    random = True

    @property
    def levels(self) -> int:  # type: ignore[override]
        """K, the number of the most corrupted level."""
        return self.operator.levels

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return ForwardProcess(self.operator, self.scales).corrupt(u0, level, seed)

    def flow(self, level: int, seed: int, size: Size) -> torch.Tensor | None:
        """As :func:`flow_of`."""
        return flow_of(self.operator, level, int(seeds(seed, "flow")), size)


@dataclass(frozen=True)
class Sensor(Operator):
    """The noise of a camera behind an operator: Gaussian, of the variance shot_noise^2 u + read_noise^2 (Foi et al. 2008).

    The shot noise of N photons in a white pixel is N^(-1/2); Poisson's distribution is near to Gauss's above about ten of them. The
    noise of an image is a function of its seed and of the operator's ``time``, where it has one.

    Args:
        operator: what the camera looks through.
        shot_noise: standard deviation at white, in units of white, >= 0.
        read_noise: standard deviation at black, same unit, >= 0.

    Raises:
        InputError: if a value is out of range.
    """

    operator: Operator
    shot_noise: float = 0.0
    read_noise: float = 0.0

    random = True

    def __post_init__(self) -> None:
        check_object("operator", self.operator, Operator)
        check_number("shot_noise", self.shot_noise, 0.0, 10.0)
        check_number("read_noise", self.read_noise, 0.0, 10.0)

    @property
    def levels(self) -> int:  # type: ignore[override]
        """K, the number of the most corrupted level."""
        return self.operator.levels

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        u = self.operator(u0, level, seed)
        if not self.shot_noise + self.read_noise > 0.0:
            return u
        moment = int(np.float64(getattr(self.operator, "time", 0.0)).view(np.int64))
        # At black the derivative of the root is infinite. The noise of so little light is seen in no format.
        deviation = (self.shot_noise**2 * u.clamp_min(1e-12) + self.read_noise**2).sqrt()
        return u + deviation * normal(seeds(seed, "sensor", moment), u.shape, u.device).to(u.dtype)

    def flow(self, level: int, seed: int, size: Size) -> torch.Tensor | None:
        """As :func:`flow_of`."""
        return flow_of(self.operator, level, seed, size)


class Drawn(NamedTuple):
    """How one picture is degraded: an operator, its level, and by name those of its numbers that were drawn."""

    operator: Operator
    level: int
    parameters: Mapping[str, float] = {}


@dataclass(frozen=True)
class Ranges:
    """Draws an operator: ``Ranges(...)(seed)`` is a :class:`Drawn`. Any function of a seed that returns one can stand in its place.

    Args:
        operator: the operator; a frozen dataclass.
        level: lowest and highest level, drawn uniformly; by default 1 to K.
        ranges: by the name of a number of the operator, or of an object in its fields, from where to where it is drawn uniformly.

    Raises:
        InputError: if a range is reversed, its ends are no right values, or no part of the operator has such a number.
    """

    operator: Operator
    level: tuple[int, int] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_object("operator", self.operator, Operator)
        for name, ends in {"level": self.levels, **self.ranges}.items():
            if np.shape(ends) != (2,):
                raise InputError(f"{name} takes two numbers, from and to, got {ends!r}")
        low, high = self.levels
        check_integer("the lowest level", low, 1)
        check_integer("the highest level", high, 1, self.operator.levels)
        fields_of = (vars(part) for part in specs.parts(self.operator) if hasattr(part, "__dict__"))
        values = {name: value for fields in fields_of for name, value in fields.items()}
        for name in self.ranges:
            if isinstance(value := values.get(name), bool) or not isinstance(value, (int, float, type(None))):
                raise InputError(f"{name} is a {type(value).__name__}, and only numbers are drawn from ranges; leave it out")
        for end in range(2):
            specs.changed(self.operator, **{name: values[end] for name, values in self.ranges.items()})
        for name, (first, last) in {"level": (low, high), **self.ranges}.items():
            if not first <= last:
                raise InputError(f"{name} from {first:g} to {last:g}: expected the smaller number first, {last:g} {first:g}")

    @property
    def levels(self) -> tuple[int, int]:
        """Lowest and highest level."""
        return self.level or (1, self.operator.levels)

    def __call__(self, seed: int) -> Drawn:
        low, high = self.levels
        level = low + int(below(high - low + 1, seed, "level"))
        drawn = {name: first + (last - first) * float(uniform(seed, name)) for name, (first, last) in self.ranges.items()}
        return Drawn(specs.changed(self.operator, **drawn), level, drawn)


@dataclass(frozen=True)
class Degrade:
    """What :func:`diffusion.write_pairs` draws for each pair: the record and the degraded frames of a seed.

    Args:
        draw: gives the operator of a seed, such as :class:`Ranges`.
        burst: frames of one scene, 1 to 10,000.
        interval: time from frame to frame, in the unit of the operator's ``time``: the air moves. None is independent air.
        flow: find the flow of each frame, too (:func:`flow_of`).
        device: where the operator works.

    Raises:
        InputError: if a value is out of range, or the operator has no time.
    """

    draw: Callable[[int], Drawn]
    burst: int = 1
    interval: float | None = None
    flow: bool = True
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if isinstance(self.draw, Operator):
            raise InputError("what is drawn is a function of a seed, such as Ranges(operator), got an operator")
        check_integer("--burst", self.burst, 1, 10_000)
        if self.interval is not None:
            check_number("--interval", self.interval, 0.0)
            if self.burst == 1:
                raise InputError("--interval is the time between the frames of a burst; add --burst, or leave it out")
            operator = self.draw(0).operator
            if not any("time" in getattr(part, "__dataclass_fields__", ()) for part in specs.parts(operator)):
                raise InputError("--interval is for optical turbulence, whose air moves from frame to frame; leave it out")
            specs.changed(operator, time=self.interval * (self.burst - 1))

    def __call__(self, seed: int) -> tuple[dict[str, Any], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]]:
        drawn = self.draw(seed)
        check_object("what is drawn", drawn, Drawn)
        operator, level, parameters = drawn
        frames = np.arange(self.burst)
        times = {} if self.interval is None else {"times": (self.interval * frames).tolist()}
        record = {"parameters": {"level": level, **parameters}, **times}
        record["seeds"] = seeds(seed, "frame", frames * (self.interval is None)).tolist()
        record["operator"] = specs.to_json(operator, "an operator of pairs")

        def degrade(clean: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            frames, flows = _frames(operator, record, clean, self.device, self.flow)
            return frames, None if flows[0] is None else torch.stack(flows).numpy()

        return record, degrade


def degrade_again(record: Mapping[str, Any], clean: np.ndarray, types: Iterable[type] = (), device: Device = "cpu") -> np.ndarray:
    """The degraded picture of a pair, from its clean one as it was written. On the same kind of device it is the same bit for bit.

    Args:
        record: that of the pair.
        clean: floating-point [C, H, W] in [0, 1].
        types: classes of your own that the record names.
        device: where the operator works.

    Returns:
        Frames, float32 [M, C, H, W], not yet clipped to [0, 1] and rounded, which all formats but NPZ do.

    Raises:
        InputError: if the record is not that of a pair.
    """
    try:
        operator, _, _ = record["operator"], record["parameters"]["level"], record["seeds"]
    except (KeyError, TypeError):
        raise InputError("the record of a pair has the entries operator, parameters and seeds; this has not") from None
    check_picture(clean := np.asarray(clean), "the clean picture")
    known = known_classes((OpticalTurbulence, ProcessOperator, Sensor, *types))
    return _frames(specs.from_json(operator, known, "the record"), record, clean, device)[0]


def flow_of(operator: Any, level: int, seed: int, size: Size) -> torch.Tensor | None:
    """The field that carries the picture of a seed, float32 [2, H, W], components (x, y) with x along the width; None without one.

    An operator may have a method ``flow(level, seed, size)`` that gives it. That of optical turbulence is the tilt in pixels, that
    of a process the velocity in units of V, at the end of its way if it changes.
    """
    if hasattr(operator, "flow"):
        return operator.flow(level, seed, size)
    if isinstance(operator, OpticalTurbulence):
        return operator.tilt(seed, *size, level=level)[0]
    if isinstance(operator, operators.Operator) and operator.peclet > 0.0:
        return operator.velocity(seed, *size, sigma=float(operator.widths(size)[level]))[0]
    return None


def _frames(
    operator: Operator, record: Mapping[str, Any], clean: np.ndarray, device: Device, flow: bool = False
) -> tuple[np.ndarray, list[Any]]:
    """The degraded frames of a clean picture [C, H, W], float32 [M, C, H, W], and if wanted the flow of each."""
    u0 = torch.from_numpy(np.ascontiguousarray(clean, np.float32))[None].to(device)
    frames, flows = [], []
    with torch.no_grad():
        for one, level, seed in _moments(operator, record):
            frames.append(one(u0, level, seed).cpu())
            flows.append(flow_of(one, level, seed, Size(*clean.shape[1:])) if flow else None)
    degraded = torch.cat(frames)
    if not degraded.isfinite().all():
        raise InputError(f"{type(operator).__name__} gives values that are NaN or infinite")
    return degraded.numpy(), flows


def _moments(operator: Operator, record: Mapping[str, Any]) -> list[tuple[Any, int, int]]:
    """The operator of each frame, its level and its seed."""
    frames = [specs.changed(operator, time=time) for time in record.get("times", ())] or [operator] * len(record["seeds"])
    return [(frame, record["parameters"]["level"], seed) for frame, seed in zip(frames, record["seeds"], strict=True)]
