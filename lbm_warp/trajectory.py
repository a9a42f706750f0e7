"""A trajectory as a list of stages: iterations on a grid, the change to a coarser grid, the read-out of a level.

The operator is the stages applied one after the other; its adjoint is their transposes in reverse order. The batch is sorted by
level, the highest first. So the images that go on to a coarser grid, and those of which a level is read out, are slices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lbm_warp.flow import Flow
from lbm_warp.grids import prolong, prolong_transposed, restrict, restrict_transposed
from lbm_warp.planner import Plan
from lbm_warp.stepping import Stepper


@dataclass(frozen=True)
class Lattice:
    """What the stages of a batch work with.

    Attributes:
        plan: iterations on every grid.
        flow: velocities of the images.
        offset: density of the background.
    """

    plan: Plan
    flow: Flow
    offset: float

    @property
    def periodic(self) -> bool:
        """Whether the boundary is periodic."""
        return self.flow.boundary == "periodic"

    def stepper(self, grid: int, adjoint: bool = False) -> Stepper:
        """The iterations on a grid. The adjoint is that of the linear part, without the background."""
        return Stepper(self.plan.grids[grid], 0.0 if adjoint else self.offset, self.periodic, adjoint)


@dataclass(frozen=True)
class Iterate:
    """The full iterations ``first`` to ``stop`` - 1 of every image on a grid, int32 [M]; in place."""

    grid: int
    first: torch.Tensor
    stop: torch.Tensor

    def apply(self, u: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        for velocity, first, stop in lattice.flow.during(self.grid, self.first, self.stop):
            lattice.stepper(self.grid).advance(u, velocity, first, stop)
        return u

    def transposed(self, w: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        for velocity, first, stop in lattice.flow.during(self.grid, self.first, self.stop, reverse=True):
            lattice.stepper(self.grid, adjoint=True).advance(w, velocity, first, stop)
        return w


@dataclass(frozen=True)
class Coarsen:
    """The first ``stay`` of ``images`` images go on to the next coarser grid."""

    images: int
    stay: int

    def apply(self, u: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        return restrict(u[: self.stay])

    def transposed(self, w: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        w = restrict_transposed(w)
        return torch.cat([w, w.new_zeros((self.images - self.stay, *w.shape[1:]))])


@dataclass(frozen=True)
class ReadOut:
    """Images at a level: one partial iteration, then prolongation to the pixel grid.

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

    def apply(self, u: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        u = self._partial(u[self.rows], lattice, adjoint=False)
        for _ in range(self.grid):
            u = prolong(u, lattice.periodic)
        return u

    def transposed(self, w: torch.Tensor | None, lattice: Lattice, images: torch.Tensor) -> torch.Tensor:
        """``w`` plus what ``images``, the gradient of this output, adds to it; None stands for zero."""
        added = self._partial(self.restricted(images, lattice), lattice, adjoint=True)
        if w is None:
            w = added.new_zeros((self.images, *added.shape[1:]))
        w[self.rows] += added
        return w

    def restricted(self, images: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        """The gradient of this output on the grid, right after the partial iteration."""
        images = images[self.rows]
        for _ in range(self.grid):
            images = prolong_transposed(images, lattice.periodic)
        return images.contiguous()

    def _partial(self, u: torch.Tensor, lattice: Lattice, adjoint: bool) -> torch.Tensor:
        theta, out = self.theta.to(u.dtype).to(u.device, non_blocking=True), torch.empty_like(u)
        for velocity, part in lattice.flow.at(self.grid, self.rows, self.done):
            lattice.stepper(self.grid, adjoint).read_out(u[part], velocity, theta[part], out[part])
        return out


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
        yield Coarsen(images, further)


def forward(u: torch.Tensor, lattice: Lattice, levels: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Images at each of the levels, as soon as all are read out.

    Args:
        u: clean images; overwritten.
        lattice: what the stages work with.
        levels: as for :func:`stages`.
    """
    parts: dict[int, list[torch.Tensor]] = defaultdict(list)
    for stage in stages(lattice.plan, levels):
        if not isinstance(stage, ReadOut):
            u = stage.apply(u, lattice)
            continue
        parts[stage.output].insert(0, stage.apply(u, lattice))
        # The first image has the highest level; it is read out last.
        if stage.rows.start == 0:
            done = parts.pop(stage.output)
            yield done[0] if len(done) == 1 else torch.cat(done)


def adjoint(images: Sequence[torch.Tensor], lattice: Lattice, levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """The transpose of the linear part of :func:`forward`, applied to one tensor like the images for each of the levels."""
    w: torch.Tensor | None = None
    for stage in reversed(list(stages(lattice.plan, levels))):
        if isinstance(stage, ReadOut):
            w = stage.transposed(w, lattice, images[stage.output])
        elif w is not None:
            w = stage.transposed(w, lattice)
    assert w is not None, "the last stage reads an image out"
    return w
