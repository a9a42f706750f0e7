"""The velocity of a batch in time: which field acts on which iterations, on every grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from lbm_warp.checks import Device, InputError, Integers
from lbm_warp.grids import midpoint_velocity, restrict_velocity
from lbm_warp.planner import Plan, Scheme
from lbm_warp.stepping import UNLIMITED
from lbm_warp.turbulence import Turbulence

STEADY = "gradients in the velocity or the Peclet number need a steady flow: turbulence_time must be 0"


@dataclass(frozen=True)
class Clock:
    """The time of a flow, in turnover times L / V of an eddy as large as the image, where the image has the blur width sigma.

    It is t V / L = Pe Fo = Pe sigma^2 / (2 L^2), times the rate of change of the flow.

    Attributes:
        peclet: Peclet number.
        rate: rate of change of the flow; 0 is a steady flow.
        length: shorter side L [pixels].
    """

    peclet: float
    rate: float
    length: int

    def time(self, sigma2: float) -> float:
        """Time at sigma^2 [square pixels]."""
        return self.rate * self.peclet * sigma2 / (2.0 * self.length**2)

    def intervals(self, plan: Plan, scheme: Scheme) -> list[int]:
        """Iterations on every grid of the plan between two updates of the velocity."""
        if self.rate * self.peclet == 0.0:
            return [UNLIMITED] * len(plan.grids)
        updates = self.time(1.0) * scheme.updates_per_turnover  # in a unit of sigma^2
        return [
            max(1, round(1.0 / (updates * grid.factor**2 * grid.theta[1])), math.ceil(grid.iterations / scheme.updates_per_grid))
            for grid in plan.grids
        ]


@dataclass
class Flow:
    """The velocity fields of a batch.

    Args:
        turbulence: generator of the fields.
        clock: their time.
        seed: seeds of the images.
        order: the images are sorted like this, int64 [N].
        size: height and width [pixels].
        boundary: ``wall`` or ``periodic``.
        plan: iterations on every grid.
        interval: iterations on every grid between two updates.
        dtype, device: of the fields.
        given: the field of a steady flow, if it is made already, [N, 2, height, width] in the order of the seeds.
        graded: whether a field that needs a gradient, which is not given, is an error.
    """

    turbulence: Turbulence
    clock: Clock
    seed: Integers
    order: torch.Tensor
    size: tuple[int, int]
    boundary: str
    plan: Plan
    interval: list[int]
    dtype: torch.dtype
    device: Device
    given: torch.Tensor | None = None
    graded: bool = False
    # Grid and interval of the fields in use; the velocity on each grid up to this one; the field on the last of them as it is.
    _key: tuple[int, int] | None = field(default=None, init=False)
    _velocities: list[torch.Tensor] = field(default_factory=list, init=False)
    _field: torch.Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # A steady field is made before the caller copies the images: the memory for both is then not needed at once.
        if self.interval[0] == UNLIMITED:
            self._velocity(0, 0)

    def during(
        self, grid: int, first: torch.Tensor, stop: torch.Tensor, reverse: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The velocities of the iterations ``first`` to ``stop`` - 1 (int32 [M]) of the first M images.

        Yields:
            ``(velocity, first, stop)`` for every interval, in the order of time or, with ``reverse``, against it.
        """
        length = self.interval[grid]
        intervals = range(int(first.min()) // length, -(-int(stop.max()) // length))
        for interval in reversed(intervals) if reverse else intervals:
            begin, end = interval * length, min((interval + 1) * length, UNLIMITED)
            yield self._velocity(grid, interval)[: len(first)], first.clamp(begin, end), stop.clamp(begin, end)

    def at(self, grid: int, rows: slice, done: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice]]:
        """The velocities of the images ``rows`` after ``done`` iterations (int32, one each, falling).

        Yields:
            ``(velocity, part)`` for every interval; ``part`` counts from ``rows.start``.
        """
        interval = done // self.interval[grid]
        ends = [0, *(torch.nonzero(interval[1:] != interval[:-1]).flatten() + 1).tolist(), len(done)]
        for begin, end in pairwise(ends):
            yield self._velocity(grid, int(interval[begin]))[rows.start + begin : rows.start + end], slice(begin, end)

    def _velocity(self, grid: int, interval: int) -> torch.Tensor:
        """The velocity on a grid in an interval, [N, 2, height, width]."""
        steady = self.interval[grid] == UNLIMITED
        key = None if steady else (grid, interval)
        if not self._velocities or key != self._key:
            self._key, self._velocities, self._field = key, [], self._generated(grid, 0 if steady else interval, steady)
        while len(self._velocities) <= grid and self._field is not None:
            here = self.plan.grids[len(self._velocities)]
            if here.factor > 1:
                self._field = restrict_velocity(self._field, self.boundary == "periodic")
            # The step of most iterations; the few with theta[0] and the partial ones are shorter.
            step = here.velocity_per_theta * here.theta[1]
            self._velocities.append(midpoint_velocity(self._field, step, self.boundary == "periodic"))
        if len(self._velocities) == len(self.plan.grids):
            self._field = None
        return self._velocities[grid]

    def _generated(self, grid: int, interval: int, steady: bool) -> torch.Tensor:
        """The field in the middle of an interval, on the pixel grid, in the order of the images."""
        if self.clock.peclet == 0.0:
            return torch.zeros((len(self.order), 2, *self.size), dtype=self.dtype, device=self.device)
        velocity, self.given = self.given, None
        if velocity is None:
            begin, middle, end = (
                0.0 if steady else self.clock.time(self.plan.grids[grid].sigma2((interval + part) * self.interval[grid]))
                for part in (0.0, 0.5, 1.0)
            )
            with torch.set_grad_enabled(self.graded):
                velocity = self.turbulence.velocity(
                    self.seed, *self.size, boundary=self.boundary, device=self.device, time=middle, span=end - begin
                )
            if velocity.requires_grad and self.graded:
                raise InputError(STEADY)
        return sorted_like(velocity.detach().to(self.dtype), self.order)


def sorted_like(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The images in another order (int64 [N] on the CPU), without waiting for a device; the same tensor if it is the order."""
    if bool((order == torch.arange(len(order), device="cpu")).all()):
        return images
    return images.index_select(0, order.to(images.device, non_blocking=True))
