"""A trajectory as a list of stages: iterations on a grid, the change to a coarser grid, the read-out of a level.

The operator is the stages applied one after the other; its adjoint is their transposes in reverse order. The batch is sorted by
level, the highest first. So the images that go on to a coarser grid, and those of which a level is read out, are slices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from lbm_warp.flow import Flow
from lbm_warp.grids import prolong, prolong_transposed, restrict_transposed
from lbm_warp.planner import Plan
from lbm_warp.stepping import Run, advance, advance_on_chip, fits_on_chip, step


@dataclass(frozen=True)
class Iterate:
    """The full iterations ``first`` to ``stop`` - 1 of every image on a grid, int32 [M]; in place."""

    grid: int
    first: torch.Tensor
    stop: torch.Tensor

    def apply(self, u: torch.Tensor, flow: Flow) -> torch.Tensor:
        for weights, _, count in flow.during(self.grid, self.first, self.stop):
            advance(u, weights, count, flow.periodic)
        return u

    def transposed(self, w: torch.Tensor, flow: Flow) -> torch.Tensor:
        for weights, _, count in flow.during(self.grid, self.first, self.stop, adjoint=True):
            advance(w, weights, count, flow.periodic)
        return w

    def runs(self, flow: Flow, entries: dict[int, int]) -> list[Run]:
        """:meth:`apply` in a steady flow, with weights at these entries."""
        return [Run(entries[row], count) for _, row, count in flow.runs(self.grid, self.first, self.stop)]


@dataclass(frozen=True)
class Coarsen:
    """The first ``stay`` of ``images`` images on a grid go on to the next coarser one."""

    grid: int
    images: int
    stay: int

    def apply(self, u: torch.Tensor, flow: Flow) -> torch.Tensor:
        return flow.coarsened(u[: self.stay], self.grid)

    def transposed(self, w: torch.Tensor, flow: Flow) -> torch.Tensor:
        w = restrict_transposed(w)
        return torch.cat([w, w.new_zeros((self.images - self.stay, *w.shape[1:]))])


@dataclass(frozen=True)
class ReadOut:
    """Images at a level on their grid: one partial iteration.

    Attributes:
        grid: index of the grid.
        images: number of images on this grid.
        rows: those that are read out.
        done: their full iterations, int32.
        theta: lattice temperature of their partial iterations, float64.
        output: which of the levels this is.
    """

    grid: int
    images: int
    rows: slice
    done: torch.Tensor
    theta: torch.Tensor
    output: int

    def apply(self, u: torch.Tensor, flow: Flow) -> torch.Tensor:
        return self._partial(u[self.rows], flow, adjoint=False)

    def runs(self, flow: Flow, entries: dict[int, int]) -> list[Run]:
        """:meth:`apply` in a steady flow, with weights at these entries."""
        count = torch.zeros(self.images, dtype=torch.int32, device="cpu")
        count[self.rows] = 1
        return [Run(entries[2 + self.output], count, partial=True)]

    def transposed(self, w: torch.Tensor | None, flow: Flow, images: torch.Tensor) -> torch.Tensor:
        """``w`` plus what ``images``, the gradient of this output on the pixel grid, adds to it; None stands for zero."""
        added = self._partial(self.restricted(images, flow), flow, adjoint=True)
        if w is None:
            w = added.new_zeros((self.images, *added.shape[1:]))
        w[self.rows] += added
        return w

    def restricted(self, images: torch.Tensor, flow: Flow) -> torch.Tensor:
        """The gradient of this output on the grid, right after the partial iteration."""
        images = images[self.rows]
        for _ in range(self.grid):
            images = prolong_transposed(images, flow.periodic)
        return images.contiguous()

    def _partial(self, u: torch.Tensor, flow: Flow, adjoint: bool) -> torch.Tensor:
        if not bool(self.theta.any()):
            return u.clone()
        parts = flow.at(self.grid, self.rows, self.done, self.output, adjoint)
        return _joined([step(u[part], weights, flow.periodic) for weights, part in parts])


def stages(plan: Plan, levels: Sequence[torch.Tensor]) -> Iterator[Iterate | Coarsen | ReadOut]:
    """The stages of a batch on its way to one or several levels.

    Args:
        plan: iterations on every grid.
        levels: int64 [N] each, falling; the levels of an image do not fall from one to the next.
    """
    grid_of, iterations, theta = (torch.from_numpy(of) for of in (plan.level_grid, plan.level_iterations, plan.level_theta))
    for index, grid in enumerate(plan.grids):
        images = int((grid_of[levels[-1]] >= index).sum())
        done = torch.zeros(images, dtype=torch.int32, device="cpu")
        for output, level in enumerate(levels):
            level = level[:images]
            on = grid_of[level]
            stop = torch.where(on == index, iterations[level], torch.where(on > index, grid.iterations, done))
            if bool((stop > done).any()):
                yield Iterate(index, done, stop)
                done = stop
            here = torch.nonzero(on == index).flatten()
            if len(here):
                rows = slice(int(here[0]), int(here[-1]) + 1)
                yield ReadOut(index, images, rows, done[rows], theta[level[rows]], output)
        further = int((grid_of[levels[-1]] > index).sum())
        if further == 0:
            return
        yield Coarsen(index, images, further)


def forward(u: torch.Tensor, flow: Flow) -> Iterator[torch.Tensor]:
    """Images at each of the levels of the flow, as soon as all are read out.

    Args:
        u: clean images; overwritten.
        flow: the velocities of the batch, its levels, and the plan of its iterations.
    """
    parts: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)
    for grid, of_grid in groupby(stages(flow.plan, flow.levels), key=lambda stage: stage.grid):
        walk = list(of_grid)
        read = _on_chip(walk, u, flow)
        for stage in walk:
            if isinstance(stage, ReadOut):
                parts[stage.output][grid] = stage.apply(u, flow) if read is None else read[stage.output]
                # The first image has the highest level; it is read out last.
                if stage.rows.start == 0:
                    yield _on_pixels(parts.pop(stage.output), flow.periodic)
            elif read is None or isinstance(stage, Coarsen):
                u = stage.apply(u, flow)


def _on_chip(walk: Sequence[Iterate | Coarsen | ReadOut], u: torch.Tensor, flow: Flow) -> dict[int, torch.Tensor] | None:
    """What is read out on one grid, by output, if all its iterations can be done at once; else None."""
    made = flow.of_grid(walk[0].grid) if fits_on_chip(u) else None
    if made is None:
        return None
    weights, entries = made
    steps = [stage for stage in walk if not isinstance(stage, Coarsen)]
    runs = [run for stage in steps for run in stage.runs(flow, entries)]
    outputs = [stage.output for stage in steps if isinstance(stage, ReadOut)]
    return dict(zip(outputs, advance_on_chip(u, weights, runs, flow.periodic), strict=True))


def _on_pixels(parts: dict[int, torch.Tensor], periodic: bool) -> torch.Tensor:
    """The images of an output on the pixel grid, from those on each grid, the finest first. Coarser ones have higher levels."""
    grid, u = parts.popitem()
    while grid > 0:
        grid, u = grid - 1, prolong(u, periodic)
        if grid in parts:
            u = torch.cat([u, parts[grid]])
    return u


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def adjoint(images: Sequence[torch.Tensor], flow: Flow) -> torch.Tensor:
    """The transpose of the linear part of :func:`forward`, applied to one tensor like the images for each of the levels."""
    w: torch.Tensor | None = None
    for stage in reversed(list(stages(flow.plan, flow.levels))):
        if isinstance(stage, ReadOut):
            w = stage.transposed(w, flow, images[stage.output])
        elif w is not None:
            w = stage.transposed(w, flow)
    assert w is not None, "the last stage reads an image out"
    return w
