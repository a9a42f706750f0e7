"""Lattice iterations in a velocity field that does not change: how they are split among cores and launches.

On a CUDA device an iteration is a launch with one thread per cell, and launches are replayed as graphs. On the CPU a thread
computes all iterations of an image, which stays in the cache of its core.

If there are fewer images than cores, images are divided into tiles of rows by trapezoidal temporal blocking. In a first phase every
tile loses one row per iteration at each inner edge, so it needs no other tile for several iterations. In a second phase tiles grow
from the edges over the gaps, by the same number of iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from lbm_warp.interop import kernels_for, launch, launch_repeatedly
from lbm_warp.planner import Grid
from lbm_warp.populations import Populations

# Least rows of a tile. Threads synchronise after at most half as many iterations.
MIN_TILE_ROWS = 24
# No limit on iterations: the largest int32.
UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Stepper:
    """The iterations on one grid.

    Attributes:
        grid: lattice temperatures and velocity of the iterations.
        offset: density of the background.
        periodic: periodic boundary, otherwise walls.
        adjoint: transposed iterations, from the last to the first.
    """

    grid: Grid
    offset: float
    periodic: bool
    adjoint: bool

    def start(self, u0: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The state of clean images, a copy of them."""
        return u0.clone(memory_format=torch.contiguous_format)

    def advance(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, batch: int) -> None:
        """Compute the iterations ``first`` to ``stop`` - 1 of every image in place; for the adjoint in reverse order.

        Args:
            u: state, float32 or float64 [M, C, H, W], contiguous.
            velocity: (v_x, v_y) in units of V, [M, 2, H, W], dtype and device of ``u``.
            first, stop: int32 [M] on the CPU, first <= stop.
            batch: largest M of any call, so that all calls can use the same graphs.
        """
        grid, count = self.grid, stop - first
        scratch = torch.empty_like(u)
        # The kernels start an odd number of iterations in the second buffer, so that all images end in the first.
        if bool((count % 2).any()):
            scratch.copy_(u)
        kernel = kernels_for(u, self.adjoint, self.offset != 0.0, self.periodic).advance
        settings = [grid.velocity_per_theta, *grid.theta, grid.smooth_from, self.offset]
        steps = int(count.max())
        if u.device.type != "cpu":
            # Threads beyond the M images get no iterations.
            limits = [
                torch.cat([limit, limit.new_zeros(batch - len(u))]).to(u.device, non_blocking=True) for limit in (first, stop)
            ]
            launch_repeatedly(
                kernel,
                (batch, *u.shape[2:]),
                tensors=[*limits, velocity, u, scratch],
                settings=[*u.shape[1:], *settings, self.periodic],
                steps=steps,
            )
            return
        phases, length = tile_rows(len(u), u.shape[2], self.periodic, torch.get_num_threads())
        for begin in range(0, steps, length):
            for tiles in phases:
                shared = [first, stop, velocity, *settings, begin, min(begin + length, UNLIMITED), u, scratch]
                launch(kernel, (len(tiles),), batched=[tiles], inputs=shared)

    def read_out(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """One partial iteration.

        Args:
            u, velocity: as for :meth:`advance`.
            theta: lattice temperature of every image, [M], dtype and device of ``u``.

        Returns:
            A new tensor like ``u``.
        """
        out = torch.empty_like(u)
        kernel = kernels_for(u, self.adjoint, self.offset != 0.0, self.periodic).read_out
        settings = [self.grid.velocity_per_theta, self.offset]
        if u.device.type == "cpu":
            cells = ()
        else:
            cells = u.shape[2:]
            settings.append(self.periodic)
        launch(kernel, (len(u), *cells), batched=[theta, velocity], inputs=settings, outputs=[u, out])
        return out


@dataclass(frozen=True)
class PopulationStepper(Stepper):
    """The iterations of the textbook solver; the state are populations, float32 [M, 9 C, H, W]. It has no adjoint.

    Attributes:
        populations: collision and relaxation time.
    """

    populations: Populations

    def start(self, u0: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The populations of clean images on the background."""
        return self.populations.start((u0 + self.offset).contiguous(), self._step * velocity)

    def advance(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, batch: int) -> None:
        """As :meth:`Stepper.advance`."""
        self.populations.advance(u, self._step * velocity, stop - first)

    def read_out(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """As :meth:`Stepper.read_out`, of the fast scheme: a partial iteration has no relaxation time."""
        return super().read_out(self.populations.density(u) - self.offset, velocity, theta)

    @property
    def _step(self) -> float:
        """V [pixels per iteration]."""
        return self.grid.velocity_per_theta * self.grid.theta[1]


def tile_rows(images: int, height: int, periodic: bool, workers: int) -> tuple[list[torch.Tensor], int]:
    """Tiles of rows for trapezoidal temporal blocking.

    Returns:
        The phases, in order, and their number of iterations. A phase is int32 [T, 5], one row per tile: image, first row,
        last row + 1, and the change of these two per iteration. The tiles of a phase are independent.
    """
    count = min(-(-workers // images), height // MIN_TILE_ROWS)
    if count <= 1:
        return [torch.tensor([[n, 0, height, 0, 0] for n in range(images)], dtype=torch.int32)], UNLIMITED
    # Twice as many tiles if there are enough rows: the second phase then has an edge for every core.
    count = min(2 * count, height // MIN_TILE_ROWS)
    edges = [height * tile // count for tile in range(count + 1)]
    inner = edges[:-1] if periodic else edges[1:-1]
    shrinking = [
        [n, top, bottom, int(top in inner), -int(bottom % height in inner)]
        for n in range(images)
        for top, bottom in pairwise(edges)
    ]
    growing = [[n, edge, edge, -1, 1] for n in range(images) for edge in inner]
    length = min(bottom - top for top, bottom in pairwise(edges)) // 2
    return [torch.tensor(tiles, dtype=torch.int32) for tiles in (shrinking, growing)], length
