"""A flow painted with strokes of a brush."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import torch

from lbm_warp.checks import InputError, amount, check_number
from lbm_warp.planner import DEFAULT_SCHEME
from lbm_warp.turbulence import FieldRequest, Turbulence, solenoidal

MOST_STROKES, MOST_POINTS = 64, 512
# Points along a stroke, in widths of the brush.
SPACING = 0.25


@dataclass(frozen=True)
class StrokeFlow(Turbulence):
    """A divergence-free flow along strokes.

    A stroke pushes the fluid in its direction, with a Gaussian weight around it: the integral of its tangent times
    exp(-r^2 / (2 brush^2)) along the stroke, r the distance. The part with divergence is removed (:func:`solenoidal`), so the fluid
    flows back around the stroke. Alone, the field is one for all seeds and does not change in time.

    Args:
        strokes: each a sequence of points (x, y) in fractions of width and height, 0 to 1; at least two points, at most 64 strokes
            and 512 points in all.
        brush: standard deviation of the brush, in shorter image sides, 0.01 to 0.5.
        over: a flow that the strokes are painted on: the two are added at equal rms. By default the fluid is at rest.

    Raises:
        InputError: if a value is out of range.
    """

    strokes: tuple[tuple[tuple[float, float], ...], ...]
    brush: float = 0.06
    over: Turbulence | None = None

    bounded = True

    def __post_init__(self) -> None:
        check_number("brush", self.brush, 0.01, 0.5)
        points = sum(len(stroke) for stroke in self.strokes)
        if not 1 <= len(self.strokes) <= MOST_STROKES or points > MOST_POINTS:
            most = f"1 to {MOST_STROKES} strokes of {MOST_POINTS} points in all"
            raise InputError(f"a painted flow takes {most}, got {len(self.strokes)} of {points}")
        for stroke in self.strokes:
            if len(stroke) < 2:
                raise InputError(f"a stroke needs at least two points, got {len(stroke)}")
            for point in stroke:
                for value in point:
                    check_number("a point of a stroke", value, 0.0, 1.0)

    @property
    def compressible(self) -> bool:  # type: ignore[override]
        """Whether the flow under the strokes may have divergence."""
        return self.over is not None and self.over.compressible

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the flow under the strokes depends on the seed."""
        return self.over is not None and self.over.random

    @classmethod
    def parse(cls, text: str, brush: float = brush, over: Turbulence | None = None) -> StrokeFlow:
        """From a text such as ``100,500,900,500 500,100,500,900``: a word for each stroke, x and y of its points in thousandths.

        Raises:
            InputError: if it is no such text.
        """
        strokes = []
        for word in text.split():
            if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", word, re.ASCII):
                raise InputError(
                    f"a stroke is x,y,x,y,... in thousandths of the picture, such as 100,500,900,500, got {word[:40]!r}"
                )
            numbers = [int(number) / 1000.0 for number in word.split(",")]
            if len(numbers) % 2:
                raise InputError(f"a stroke has an x and a y for each point, got {amount(len(numbers), 'number')} in {word[:40]!r}")
            strokes.append(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
        return cls(tuple(strokes), brush, over)

    def field(self, ask: FieldRequest) -> torch.Tensor:
        """As :meth:`Turbulence.field`.

        Its rms is one, or less where its largest component would be above 5.9 V, near the limit that iterations are planned for.
        """
        length = min(ask.height, ask.width)
        place, push = self._pushes(ask.width / length, ask.height / length)
        y, x = ((torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) / length for side in (ask.height, ask.width))
        # A Gaussian of the distance is a product of one in x and one in y.
        across, along = (torch.exp(-0.5 * ((axis[:, None] - place[:, i]) / self.brush).square()) for axis, i in ((y, 1), (x, 0)))
        field = torch.stack([(across * push[:, i]) @ along.T for i in range(2)])[None]
        field = _scaled(solenoidal(field, ask.boundary)).to(ask.device)
        if self.over is not None:
            field = _scaled(field + self.over.field(ask))
        return field.float()

    def _pushes(self, wide: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Points along the strokes [M, 2], and the steps that lead to them [M, 2]; (x, y) in shorter image sides."""
        places, pushes = [], []
        for stroke in self.strokes:
            points = torch.tensor(stroke, dtype=torch.float64, device="cpu") * torch.tensor(
                [wide, high], dtype=torch.float64, device="cpu"
            )
            for start, end in pairwise(points):
                parts = max(1, int((end - start).norm() / (SPACING * self.brush)) + 1)
                middle = (torch.arange(parts, dtype=torch.float64, device="cpu") + 0.5)[:, None] / parts
                places.append(start + middle * (end - start))
                pushes.append(((end - start) / parts).expand(parts, 2))
        return torch.cat(places), torch.cat(pushes)


def _scaled(field: torch.Tensor) -> torch.Tensor:
    """Fields [N, 2, H, W] at unit rms, or less where a component would be too large."""
    rms, largest = field.square().mean((1, 2, 3), keepdim=True).sqrt(), field.abs().amax((1, 2, 3), keepdim=True)
    scale = torch.maximum(rms, largest / (DEFAULT_SCHEME.peak_to_rms - 0.1))
    if not (scale > 1e-12).all():
        raise InputError("these strokes leave no flow: the picture is all wall there, or they cancel each other; paint others")
    return field / scale
