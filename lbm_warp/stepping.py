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

from lbm_warp.interop import WARP_DTYPES, launch, launch_repeatedly
from lbm_warp.kernels import cpu, cuda
from lbm_warp.planner import Grid

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
        batch: largest number of images of any call, so that all calls can use the same graphs.
    """

    grid: Grid
    offset: float
    periodic: bool
    adjoint: bool
    batch: int

    def advance(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor) -> None:
        """Compute the iterations ``first`` to ``stop`` - 1 of every image in place; for the adjoint in reverse order.

        Args:
            u: state, float32 or float64 [M, C, H, W], contiguous; more images than ``first`` has stay as they are.
            velocity: (v_x, v_y) in units of V, [M, 2, H, W], dtype and device of ``u``.
            first, stop: int32 [M] on the CPU, first <= stop.
        """
        u = u[: len(first)]
        scratch = torch.empty_like(u)
        # The kernels start an odd number of iterations in the second buffer, so that all images end in the first.
        if bool(((stop - first) % 2).any()):
            scratch.copy_(u)
        on = self._advance_on_cpu if u.device.type == "cpu" else self._advance_on_gpu
        on(u, scratch, velocity, first, stop)

    def read_out(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor, out: torch.Tensor) -> None:
        """One partial iteration from ``u`` to ``out``.

        Args:
            u, velocity: as for :meth:`advance`.
            theta: lattice temperature of every image, [M], dtype and device of ``u``.
            out: like ``u``.
        """
        if u.device.type == "cpu":
            one = torch.ones(len(u), dtype=torch.int32)
            self._launch_on_cpu(u, out, velocity, one * 0, one, theta[:, None].repeat(1, 2), whole(len(u), u.shape[2]), 0, 1)
            return
        kernel = cuda.kernels(WARP_DTYPES[u.dtype], self.adjoint, self.offset != 0.0).read_out
        constants = [self.grid.velocity_per_theta, self.offset, self.periodic]
        launch(kernel, (len(u), *u.shape[2:]), batched=[theta, velocity], inputs=constants, outputs=[u, out])

    def _advance_on_cpu(
        self, u: torch.Tensor, scratch: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor
    ) -> None:
        theta = torch.tensor([self.grid.theta], dtype=u.dtype).repeat(len(u), 1)
        phases, length = tile_rows(len(u), u.shape[2], self.periodic, torch.get_num_threads())
        for begin in range(0, int((stop - first).max()), length):
            for tiles in phases:
                self._launch_on_cpu(scratch, u, velocity, first, stop, theta, tiles, begin, min(begin + length, UNLIMITED))

    def _launch_on_cpu(
        self,
        odd: torch.Tensor,
        even: torch.Tensor,
        velocity: torch.Tensor,
        first: torch.Tensor,
        stop: torch.Tensor,
        theta: torch.Tensor,
        tiles: torch.Tensor,
        begin: int,
        end: int,
    ) -> None:
        """Iterations ``begin`` to ``end`` - 1 of the tiles; the state is in ``even`` before an even number that are left."""
        kernel = cpu.advance_kernel(WARP_DTYPES[even.dtype], self.adjoint, self.offset != 0.0, even.shape[1])
        numbers = [self.grid.velocity_per_theta, self.grid.smooth_from, self.offset, self.periodic]
        inputs = [first, stop, theta, velocity, *numbers, begin, end, even, odd]
        launch(kernel, (len(tiles),), batched=[tiles], inputs=inputs)

    def _advance_on_gpu(
        self, u: torch.Tensor, scratch: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor
    ) -> None:
        grid = self.grid
        numbers = torch.tensor([grid.velocity_per_theta, *grid.theta, grid.smooth_from, self.offset], dtype=u.dtype)
        # Threads beyond the M images get no iterations.
        limits = [torch.cat([limit, limit.new_zeros(self.batch - len(u))]) for limit in (first, stop)]
        first_there, stop_there, numbers_there = (small.to(u.device, non_blocking=True) for small in (*limits, numbers))
        launch_repeatedly(
            cuda.kernels(WARP_DTYPES[u.dtype], self.adjoint, self.offset != 0.0).advance,
            (self.batch, *u.shape[2:]),
            tensors=[first_there, stop_there, velocity, u, scratch, numbers_there],
            settings=[*u.shape[1:], self.periodic],
            steps=int((stop - first).max()),
        )


def whole(images: int, height: int) -> torch.Tensor:
    """Every image as one tile: see :func:`tile_rows`."""
    return torch.tensor([[n, 0, height, 0, 0] for n in range(images)], dtype=torch.int32)


def tile_rows(images: int, height: int, periodic: bool, workers: int) -> tuple[list[torch.Tensor], int]:
    """Tiles of rows for trapezoidal temporal blocking.

    Returns:
        The phases, in order, and their number of iterations. A phase is int32 [T, 5], one row per tile: image, first row,
        last row + 1, and the change of these two per iteration. The tiles of a phase are independent.
    """
    count = min(-(-workers // images), height // MIN_TILE_ROWS)
    if count <= 1:
        return [whole(images, height)], UNLIMITED
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
