"""Lattice iterations with weights that do not change: how they are split among cores and launches.

On the CPU a thread computes all iterations of an image, which stays in the cache of its core. On a GPU a block of threads does so,
in the memory of its multiprocessor; large images are cut into pieces that overlap.

If there are fewer images than cores, images are divided into tiles of rows by trapezoidal temporal blocking. In a first phase every
tile loses one row per iteration at each inner edge, so it needs no other tile for several iterations. In a second phase tiles grow
from the edges over the gaps, by the same number of iterations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from lbm_warp.interop import WARP_DTYPES, has_blocks, launch
from lbm_warp.kernels import cpu, cuda, onchip
from lbm_warp.kernels import stencil as kernels

# Least rows of a tile. Threads synchronise after at most half as many iterations.
MIN_TILE_ROWS = 24
# Side of a piece of a large image on chip: 64 x 64 cells are the most whose weights fit into registers. A launch begins with
# reading them, which takes about as long as some iterations (predicted for an H200).
SIDE, BEGIN = 64, 7
# Updates of a cell that take a core as long as another kernel's element.
UPDATES = 16
# Updates of a cell in one launch on a CPU, about a second on a core: Ctrl-C waits for the end of a launch.
LAUNCH = 2**27
# No limit on iterations: the largest int32.
UNLIMITED = 2**31 - 1


def stencil(
    velocity: torch.Tensor,
    velocity_per_theta: float,
    theta: torch.Tensor,
    *,
    periodic: bool,
    offset: float = 0.0,
    adjoint: bool = False,
    resistance: torch.Tensor | None = None,
    source: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights of an iteration: see ``lbm_warp.kernels.rules``.

    Args:
        velocity: (v_x, v_y) in units of V, float32 or float64 [N, 2, H, W], contiguous.
        velocity_per_theta: the velocity of an iteration is this times its lattice temperature times ``velocity``.
        theta: lattice temperatures, [N] or, of several sets of weights, [P, N], dtype and device of ``velocity``. On a GPU a set
            has no weights where it is negative.
        periodic: periodic boundary, otherwise walls.
        offset: density of the background.
        adjoint: of the transposed iteration, of its linear part.
        resistance: of a medium, one over its diffusivity relative to theta / 2, infinite in walls, [N, H, W], else as ``velocity``.
        source: the density that an iteration of lattice temperature one adds, [N, H, W], else as ``velocity``.

    Returns:
        [N, 9, H, W], or [P, N, 9, H, W], the weight of each neighbour, row by row; 10 with the source, if there is one or a
        background.
    """
    count, _, height, width = velocity.shape
    background = (offset != 0.0 or source is not None) and not adjoint
    weights = velocity.new_empty((*theta.shape, 9 + background, height, width))
    dtype, inputs, cells = WARP_DTYPES[velocity.dtype], [velocity_per_theta, periodic], (count, height, width)
    sets = weights.view(-1, *weights.shape[-4:])
    if velocity.device.type != "cpu":
        numbers = [theta.view(-1, count), *inputs, sets.flatten(0, 1)]
        launch(kernels.stencil_kernel(dtype, adjoint), cells, batched=[velocity], inputs=numbers)
    for temperature, one in zip(theta.view(-1, count), sets, strict=True):
        batched = [temperature, velocity]
        if velocity.device.type == "cpu":
            launch(cpu.stencil_kernel(dtype, adjoint), (count, height), batched=batched, inputs=inputs, outputs=[one])
        if resistance is not None:
            medium = [temperature, resistance]
            launch(kernels.medium_kernel(dtype), cells, batched=medium, inputs=[periodic], outputs=[one])
        if not background:
            continue
        if offset == 0.0:
            one[:, 9].zero_()
        else:
            launch(kernels.source_kernel(dtype), cells, batched=batched, inputs=[*inputs, offset], outputs=[one])
        if source is not None:
            one[:, 9] += temperature[:, None, None] * source
    return weights


def advance(u: torch.Tensor, weights: torch.Tensor, count: torch.Tensor, periodic: bool) -> None:
    """Compute iterations in place.

    Args:
        u: state, float32 or float64 [M, C, H, W], contiguous; more images than ``count`` has stay as they are.
        weights: a :func:`stencil` for each image, on the same device and of the same dtype.
        count: number of iterations of every image, int32 on the CPU, >= 0.
        periodic: as for :func:`stencil`.
    """
    u = u[: len(count)]
    if fits_on_chip(u):
        advance_on_chip(u, weights, [Run(0, count)], periodic)
    else:
        _iterate(u, _scratch(u, count), weights, count, periodic)


class Run(NamedTuple):
    """Iterations with the same weights.

    Attributes:
        entry: of the weights of the first image; those of the others follow.
        iterations: of the first images of a batch, int32 on the CPU, >= 0.
        partial: one iteration of images in a row. The state after it is read out, and they go on from the state before.
    """

    entry: int
    iterations: torch.Tensor
    partial: bool = False


def fits_on_chip(u: torch.Tensor) -> bool:
    """Whether :func:`advance_on_chip` takes these images: not in float64, nor with a side shorter than a thread's rows."""
    return has_blocks(u.device) and u.dtype == torch.float32 and min(u.shape[2:]) >= onchip.ROWS


def advance_on_chip(u: torch.Tensor, weights: torch.Tensor, runs: Sequence[Run], periodic: bool) -> list[torch.Tensor]:
    """Compute runs of iterations one after the other, in place, with as few launches as the pieces allow.

    Args:
        u: state, [M, C, H, W], contiguous.
        weights: entries of a :func:`stencil`, [E, 9 or 10, H, W].
        runs: the iterations.
        periodic: as for :func:`stencil`.

    Returns:
        What is read out in each partial run, [m, C, H, W].
    """
    program = torch.zeros((len(runs), 2 + len(u)), dtype=torch.int32, device="cpu")
    sizes: list[int] = []
    for row, (entry, iterations, partial) in zip(program, runs, strict=True):
        row[0], row[1], row[2 : 2 + len(iterations)] = entry, -len(u), iterations
        if partial:
            read = iterations.nonzero()
            row[1] = sum(sizes) - read[0]
            sizes.append(len(read))
    program[:, 2:] = program[:, 2:].cumsum(dim=0)
    pieces, kernel = Pieces.of(u, periodic), onchip.advance_kernel(weights.shape[1] == 10)
    launches = -(-program[-1, 2:] // pieces.most)
    parts, there = u.new_empty((sum(sizes), *u.shape[1:])), program.to(u.device, non_blocking=True)
    outputs = [u, _scratch(u, launches), parts]
    for number in range(int(launches.max())):
        inputs = [there, weights, periodic, *pieces.counts, *pieces.lengths, *pieces.halos, pieces.most, number]
        launch(kernel, (pieces.blocks, pieces.threads), inputs=inputs, outputs=outputs, block=pieces.threads)
    return [part.clone() for part in parts.split(sizes)]


def step(u: torch.Tensor, weights: torch.Tensor, periodic: bool) -> torch.Tensor:
    """One iteration of every image, as a new tensor; the arguments as for :func:`advance`, but ``u`` need not be contiguous."""
    result = torch.empty_like(u, memory_format=torch.contiguous_format)
    _iterate(result, u.contiguous(), weights, torch.ones(len(u), dtype=torch.int32, device="cpu"), periodic)
    return result


def _scratch(u: torch.Tensor, swaps: torch.Tensor) -> torch.Tensor:
    """The second buffer. The kernels start there if the number of swaps is odd, so that all images end in the first, ``u``."""
    return u.clone() if bool((swaps % 2).any()) else torch.empty_like(u)


def _iterate(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor, count: torch.Tensor, periodic: bool) -> None:
    """Iterations between two buffers: from b to a if an odd number is left, else from a to b."""
    most, dtype, background = int(count.max()), WARP_DTYPES[a.dtype], weights.shape[1] == 10
    there = count.to(a.device, non_blocking=True)
    if a.device.type == "cpu":
        kernel = cpu.advance_kernel(dtype, background, a.shape[1])
        phases, length = tile_rows(len(a), a.shape[2], periodic, torch.get_num_threads())
        length = min(length, max(LAUNCH // a.numel(), 1))
        for begin in range(0, most, length):
            end = min(begin + length, most)
            for tiles in phases:
                inputs = [there, weights, periodic, begin, end, a, b]
                launch(kernel, (len(tiles),), batched=[tiles], inputs=inputs, work=(end - begin) * a.numel() // UPDATES)
    else:
        kernel = cuda.iterate_kernel(dtype, background)
        for number in range(most):
            launch(kernel, (len(a), *a.shape[2:]), batched=[there, weights], inputs=[periodic, number], outputs=[a, b])


class Pieces(NamedTuple):
    """How images are cut for the iterations on chip: along y, along x.

    Attributes:
        counts: number of pieces.
        lengths: cells of each.
        halos: cells at an inner edge that a piece computes for itself alone.
        most: iterations of a launch.
        blocks, threads: number of blocks, and of threads of a block.
    """

    counts: tuple[int, int]
    lengths: tuple[int, int]
    halos: tuple[int, int]
    most: int
    blocks: int
    threads: int

    @classmethod
    def of(cls, u: torch.Tensor, periodic: bool) -> Pieces:
        """The pieces of images [N, C, H, W]."""
        images, channels, height, width = u.shape
        size = height, width
        lengths, counts, halos = size, (1, 1), (0, 0)
        if _threads(height, width) > onchip.THREADS or 2 * (height + 2) * (width + 2) > onchip.MEMORY:
            lengths = min(height, SIDE), min(width, SIDE)
            counts, halos = zip(*(cut(side, periodic) for side in size), strict=True)
        most = min((halo for halo in halos if halo > 0), default=UNLIMITED)
        return cls(counts, lengths, halos, most, images * channels * math.prod(counts), _threads(*lengths))


@functools.cache
def cut(size: int, periodic: bool) -> tuple[int, int]:
    """Number of pieces along an axis, and their halo. Smaller halos compute fewer cells twice, but take more launches."""
    if size <= SIDE:
        return 1, 0

    def count(halo: int) -> int:
        return math.ceil((size - (0 if periodic else 2 * halo)) / (SIDE - 2 * halo))  # no halo at a wall

    halo = min(range(1, SIDE // 2), key=lambda halo: count(halo) ** 2 * (1.0 + BEGIN / halo))
    return count(halo), halo


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
