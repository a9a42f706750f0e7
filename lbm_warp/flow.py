"""The velocity of a batch in time: which weights the iterations have, on every grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from lbm_warp.checks import Device, InputError, Integers
from lbm_warp.grids import coarsen, restrict, restrict_velocity
from lbm_warp.interop import has_blocks
from lbm_warp.medium import Medium
from lbm_warp.planner import Plan, Scheme
from lbm_warp.stepping import UNLIMITED, stencil
from lbm_warp.turbulence import Turbulence

# A GPU makes the weights of all iterations on a grid in one launch if they are those of at most so many cells, 0.6 GB in float32.
TOGETHER = 2**24
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
        levels: levels of the images, int64 [N] each. The batch is sorted by them, the highest first, and so are they here.
        size: height and width [pixels].
        boundary: ``wall`` or ``periodic``.
        plan: iterations on every grid.
        interval: iterations on every grid between two updates.
        dtype, device: of the fields.
        given: the field of a steady flow, if it is made already, [N, 2, height, width] in the order of the seeds.
        graded: whether a field that needs a gradient, which is not given, is an error.
        offset: density of the background.
        medium: what the images diffuse in, in the order of the seeds.
        homogeneous: leave out the background and the source of the medium.
    """

    turbulence: Turbulence
    clock: Clock
    seed: Integers
    levels: Sequence[torch.Tensor]
    size: tuple[int, int]
    boundary: str
    plan: Plan
    interval: list[int]
    dtype: torch.dtype
    device: Device
    given: torch.Tensor | None = None
    graded: bool = False
    offset: float = 0.0
    medium: Medium | None = None
    homogeneous: bool = False
    # The interval of the fields in use, and these on each grid up to the coarsest one that was asked for.
    _key: tuple[int, int] | None = field(default=None, init=False)
    _velocities: list[torch.Tensor] = field(default_factory=list, init=False)
    # The fields of the medium on each grid that was asked for.
    _media: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict, init=False)
    # The weights in use by grid, interval, row of temperatures, and whether they are those of the adjoint.
    _made: dict[tuple[int, int, int, bool], torch.Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.order = sorting(self.levels)
        self.levels = [level[self.order] for level in self.levels]
        self._temperatures = self.plan.temperatures(np.stack([level.numpy() for level in self.levels]))
        # A steady field is made before the caller copies the images: the memory for both is then not needed at once.
        if self.interval[0] == UNLIMITED:
            self._velocity(0, 0)

    @property
    def periodic(self) -> bool:
        """Whether the boundary is periodic."""
        return self.boundary == "periodic"

    def during(
        self, grid: int, first: torch.Tensor, stop: torch.Tensor, adjoint: bool = False
    ) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
        """The iterations ``first`` to ``stop`` - 1 (int32 [M]) of the first M images, those with the same weights together.

        Yields:
            ``(weights, theta, count)``: the :func:`stencil` of the images that have such iterations, the first ones of the batch;
            their lattice temperature; and their number of iterations, int32. In the order of time or, for the adjoint, against it.
        """
        thetas, runs = self.plan.grids[grid].theta, list(self.runs(grid, first, stop))
        for interval, row, count in reversed(runs) if adjoint else runs:
            yield self._weights(grid, interval, row, slice(0, len(count)), adjoint), thetas[row], count

    def runs(self, grid: int, first: torch.Tensor, stop: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Interval, row of the temperatures, and number of iterations of :meth:`during`, in the order of time."""
        length, smooth_from = self.interval[grid], self.plan.grids[grid].smooth_from
        for interval in range(int(first.min()) // length, -(-int(stop.max()) // length)):
            begin, end = interval * length, min((interval + 1) * length, UNLIMITED)
            for row, low, high in ((0, begin, min(end, smooth_from)), (1, max(begin, smooth_from), end)):
                count = stop.clamp(low, high) - first.clamp(low, high) if low < high else torch.zeros_like(first)
                if bool(count.any()):
                    yield interval, row, count[: int(count.nonzero()[-1]) + 1]

    def at(
        self, grid: int, rows: slice, done: torch.Tensor, output: int, adjoint: bool = False
    ) -> Iterator[tuple[torch.Tensor, slice]]:
        """The weights of the partial iteration of the images ``rows``, after ``done`` iterations (int32, one each, falling).

        ``output`` says to which of the levels.

        Yields:
            ``(weights, part)`` for every interval; ``part`` counts from ``rows.start``.
        """
        interval = done // self.interval[grid]
        ends = [0, *(torch.nonzero(interval[1:] != interval[:-1]).flatten() + 1).tolist(), len(done)]
        for begin, end in pairwise(ends):
            images = slice(rows.start + begin, rows.start + end)
            yield self._weights(grid, int(interval[begin]), 2 + output, images, adjoint), slice(begin, end)

    def of_grid(self, grid: int) -> tuple[torch.Tensor, dict[int, int]] | None:
        """The weights of all iterations on a grid, if a GPU makes them at once, else None.

        Returns:
            ``(weights, entries)``: [E, 9 or 10, height, width], and the entry of the first image for each row of the temperatures.
        """
        if (together := self._together(grid)) is None:
            return None
        rows, images = together
        sets = self._stencil(grid, self._velocity(grid, 0), images, torch.from_numpy(self._temperatures[grid][rows, images]), False)
        return sets.flatten(0, 1), {row: place * images.stop for place, row in enumerate(rows)}

    def _together(self, grid: int) -> tuple[list[int], slice] | None:
        """The rows of the temperatures and the images of which a GPU makes all weights on a grid at once.

        None on a CPU, in a flow that moves, or if they are too many.
        """
        if not has_blocks(torch.device(self.device)) or self.interval[grid] != UNLIMITED:
            return None
        there = self._temperatures[grid] >= 0.0
        rows, images = np.flatnonzero(there.any(axis=1)).tolist(), int(np.flatnonzero(there.any(axis=0))[-1]) + 1
        cells = math.prod(self.size) // self.plan.grids[grid].factor ** 2
        return (rows, slice(0, images)) if len(rows) * images * cells <= TOGETHER else None

    def _weights(self, grid: int, interval: int, row: int, images: slice, adjoint: bool) -> torch.Tensor:
        """The weights of some images at a row of the temperatures."""
        made = self._made.get(key := (grid, interval, row, adjoint))
        if made is not None and len(made) >= images.stop:
            return made[images]
        velocity, thetas = self._velocity(grid, interval), self._temperatures[grid]
        rows, every = self._together(grid) or ([row], images)
        if keep := len(rows) > 1 or row < 2:
            self._made = {}  # frees them before others are made
        sets = self._stencil(grid, velocity, every, torch.from_numpy(thetas[rows, every]), adjoint)
        found = {(grid, interval, row, adjoint): weights for row, weights in zip(rows, sets, strict=True)}
        if keep:
            self._made = found
        return found[key][images.start - every.start : images.stop - every.start]

    def _stencil(self, grid: int, velocity: torch.Tensor, rows: slice, theta: torch.Tensor, adjoint: bool) -> torch.Tensor:
        """The weights of the images ``rows`` at sets of lattice temperatures, float64 [P, M] on the CPU."""
        theta = theta.to(velocity.dtype).to(velocity.device, non_blocking=True)
        medium = {name: field[rows] for name, field in self._medium(grid).items()}
        offset = self.offset
        if self.homogeneous:
            medium.pop("source", None)
            offset = 0.0
        per_theta = self.plan.grids[grid].velocity_per_theta
        return stencil(velocity[rows], per_theta, theta, periodic=self.periodic, offset=offset, adjoint=adjoint, **medium)

    def _medium(self, grid: int) -> dict[str, torch.Tensor]:
        """The fields of the medium on a grid, [N, height, width] each."""
        if self.medium is not None and grid not in self._media:
            fields = self.medium.on_grid(self.plan.grids[grid].factor, min(self.size))
            self._media[grid] = {
                name: sorted_like(values.to(self.device, self.dtype).expand(len(self.order), -1, -1), self.order).contiguous()
                for name, values in fields.items()
            }
        return self._media.get(grid, {})

    def _velocity(self, grid: int, interval: int) -> torch.Tensor:
        """The velocity on a grid in an interval, [N, 2, height, width]."""
        steady = self.interval[grid] == UNLIMITED
        key = None if steady else (grid, interval)
        if not self._velocities or key != self._key:
            self._key, self._velocities = key, [self._generated(grid, 0 if steady else interval, steady)]
        while len(self._velocities) <= grid:
            self._velocities.append(restrict_velocity(self._velocities[-1], self.periodic))
        return self._velocities[grid]

    def coarsened(self, u: torch.Tensor, grid: int) -> torch.Tensor:
        """The first images on the next coarser grid, where a steady velocity goes along."""
        if self.interval[grid] != UNLIMITED or len(self._velocities) != grid + 1:
            return restrict(u)
        u, velocity = coarsen(u, self._velocities[grid][: len(u)], self.periodic)
        self._velocities.append(velocity)
        return u

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


def sorting(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """The order of images by their levels, the highest first, int64 [N]; the last of the levels counts most."""
    return torch.from_numpy(np.lexsort([-level.numpy() for level in levels]))
