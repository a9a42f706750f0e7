"""Lattice iterations in a velocity field that does not change: how they are split among cores and launches.

On the CPU a thread computes all iterations of an image, which stays in the cache of its core. On a GPU a block of threads does so,
in the memory of its multiprocessor; large images are cut into tiles with a halo.

If there are fewer images than cores, images are divided into tiles of rows by trapezoidal temporal blocking. In a first phase every
tile loses one row per iteration at each inner edge, so it needs no other tile for several iterations. In a second phase tiles grow
from the edges over the gaps, by the same number of iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lbm_warp.interop import WARP_DTYPES, has_blocks, launch
from lbm_warp.kernels import cpu, cuda, onchip
from lbm_warp.planner import Grid

# Least rows of a tile. Threads synchronise after at most half as many iterations.
MIN_TILE_ROWS = 24
# Side of a tile of a large image on chip, and the cells around it, which are also the iterations of a launch. With its halo a tile
# has 64 x 64 cells, the most that fit.
TILE, HALO = 48, 8
# Updates of a cell that take a core as long as another kernel's element.
UPDATES = 16
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

    def advance(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor) -> None:
        """Compute the iterations ``first`` to ``stop`` - 1 of every image in place; for the adjoint in reverse order.

        Args:
            u: state, float32 or float64 [M, C, H, W], contiguous; more images than ``first`` has stay as they are.
            velocity: (v_x, v_y) in units of V, [M, 2, H, W], dtype and device of ``u``.
            first, stop: int32 [M] on the CPU, first <= stop.
        """
        u, count = u[: len(first)], int((stop - first).max())
        pieces = Pieces.of(u) if has_blocks(u.device) else None
        # A launch on chip does many iterations; the others swap the buffers after every one.
        swaps = -(-(stop - first) // pieces.most) if pieces else stop - first
        scratch = torch.empty_like(u)
        # The kernels start an odd number in the second buffer, so that all images end in the first.
        if bool((swaps % 2).any()):
            scratch.copy_(u)
        limits = torch.stack([first, stop]).to(u.device, non_blocking=True)
        theta = (
            torch.tensor([self.grid.theta], dtype=u.dtype, device="cpu")
            .to(u.device, non_blocking=True)
            .expand(len(u), 2)
            .contiguous()
        )
        if pieces:
            for number in range(-(-count // pieces.most)):
                self._on_chip(limits, theta, velocity, pieces, number, u, scratch)
        elif u.device.type == "cpu":
            phases, length = tile_rows(len(u), u.shape[2], self.periodic, torch.get_num_threads())
            for begin in range(0, count, length):
                for tiles in phases:
                    self._on_cpu(limits, theta, velocity, tiles, begin, min(begin + length, UNLIMITED), u, scratch)
        else:
            for step in range(count):
                self._on_gpu(limits, theta, velocity, step, u, scratch)

    def read_out(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor, out: torch.Tensor) -> None:
        """One partial iteration from ``u`` to ``out``.

        Args:
            u, velocity: as for :meth:`advance`.
            theta: lattice temperature of every image, [M], dtype and device of ``u``.
            out: like ``u``.
        """
        limits = torch.tensor([[0], [1]], dtype=torch.int32, device="cpu").repeat(1, len(u)).to(u.device, non_blocking=True)
        theta = theta[:, None].repeat(1, 2)
        if u.device.type == "cpu":
            self._on_cpu(limits, theta, velocity, whole(len(u), u.shape[2]), 0, 1, out, u)
        else:
            self._on_gpu(limits, theta, velocity, 0, out, u)

    # The kernels' last arguments: iterations of an odd number that is left go from b to a, the others from a to b.

    def _on_cpu(
        self, limits: Tensor, theta: Tensor, velocity: Tensor, tiles: Tensor, begin: int, end: int, a: Tensor, b: Tensor
    ) -> None:
        kernel = cpu.advance_kernel(WARP_DTYPES[a.dtype], self.adjoint, self.offset != 0.0, a.shape[1])
        inputs = [*limits, theta, velocity, *self._numbers, begin, end, a, b]
        updates = min(end - begin, int((limits[1] - limits[0]).max())) * a.numel()
        launch(kernel, (len(tiles),), batched=[tiles], inputs=inputs, work=updates // UPDATES)

    def _on_gpu(self, limits: Tensor, theta: Tensor, velocity: Tensor, step: int, a: Tensor, b: Tensor) -> None:
        kernel = cuda.iterate_kernel(WARP_DTYPES[a.dtype], self.adjoint, self.offset != 0.0)
        batched = [*limits, theta, velocity]
        launch(kernel, (len(a), *a.shape[2:]), batched=batched, inputs=[*self._numbers, step], outputs=[a, b])

    def _on_chip(self, limits: Tensor, theta: Tensor, velocity: Tensor, pieces: Pieces, number: int, a: Tensor, b: Tensor) -> None:
        kernel = onchip.advance_kernel(self.adjoint, self.offset != 0.0)
        inputs = [*limits, theta, velocity, *self._numbers, *pieces.tile, pieces.halo, pieces.most, number]
        launch(kernel, (pieces.blocks, pieces.threads), inputs=inputs, outputs=[a, b], block=pieces.threads)

    @property
    def _numbers(self) -> list[float | bool]:
        return [self.grid.velocity_per_theta, self.grid.smooth_from, self.offset, self.periodic]


class Pieces(NamedTuple):
    """How images are cut for the iterations on chip.

    Attributes:
        tile: height and width of what a block is responsible for.
        halo: cells around it that it computes too.
        most: iterations of a launch.
        blocks, threads: number of blocks, and of threads of a block.
    """

    tile: tuple[int, int]
    halo: int
    most: int
    blocks: int
    threads: int

    @classmethod
    def of(cls, u: torch.Tensor) -> Pieces | None:
        """The pieces of images [N, C, H, W]; None if a side is shorter than a thread's rows or the halo, or for float64."""
        images, channels, height, width = u.shape
        if u.dtype != torch.float32 or min(height, width) < max(onchip.ROWS, HALO):
            return None
        if _threads(height, width) <= onchip.THREADS and 2 * (height + 2) * (width + 2) <= onchip.MEMORY:
            return cls((height, width), 0, UNLIMITED, images * channels, _threads(height, width))
        blocks = images * channels * -(-height // TILE) * -(-width // TILE)
        return cls((TILE, TILE), HALO, HALO, blocks, onchip.THREADS)


def _threads(rows: int, columns: int) -> int:
    """Threads for a piece: one for every column and every few rows, in whole warps."""
    return math.ceil(math.ceil(rows / onchip.ROWS) * columns / 32) * 32


def whole(images: int, height: int) -> torch.Tensor:
    """Every image as one tile: see :func:`tile_rows`."""
    return torch.tensor([[n, 0, height, 0, 0] for n in range(images)], dtype=torch.int32, device="cpu")


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
    return [torch.tensor(tiles, dtype=torch.int32, device="cpu") for tiles in (shrinking, growing)], length
