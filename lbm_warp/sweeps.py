"""Iterations of the fast scheme in a frozen flow: how they are shared out to cores and launches.

On a CUDA device an iteration is a launch with one thread a cell, and launches are replayed as graphs. On the CPU a thread takes an
image through all of its iterations while it stays in the cache of its core. Where there are fewer images than cores an image is cut
into bands of rows, and a band is taken through several iterations at a time: first the rows that need nothing from the other bands,
one row less at each edge every iteration; then, around each edge, the rows that were left out, one row more every iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from lbm_warp.interop import kernels_for, launch, launch_repeatedly
from lbm_warp.lattice import Grid
from lbm_warp.populations import Populations

# Rows of a band, at least: half as many iterations are taken between two meetings of the threads.
LEAST_BAND = 24
ALL = 2**31 - 1


@dataclass(frozen=True)
class Sweep:
    """The iterations on one grid.

    Attributes:
        grid: temperatures and velocity of the iterations.
        offset: background the flow acts on.
        periodic: what lies beyond the border.
        adjoint: whether the iterations are transposed, and taken from the last to the first.
    """

    grid: Grid
    offset: float
    periodic: bool
    adjoint: bool

    def start(self, u0: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The state of clean images: a copy of them."""
        return u0.clone(memory_format=torch.contiguous_format)

    def march(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, batch: int) -> None:
        """Take images from iteration ``first`` to ``stop``, or back for the adjoint, in place.

        Args:
            u: float32 or float64 [M, C, H, W], contiguous.
            velocity: the flow, same type and device, [M, 2, H, W].
            first, stop: int32 [M] on the CPU, first <= stop.
            batch: how many images there may be in other calls, >= M: calls with fewer share the graphs.
        """
        grid, count = self.grid, stop - first
        scratch = torch.empty_like(u)
        # An odd number of iterations begins in the scratch buffer, so that all end in u.
        if bool((count % 2).any()):
            scratch.copy_(u)
        kernel = kernels_for(u, self.adjoint, self.offset != 0.0, self.periodic).march
        settings = [grid.velocity_per_theta, *grid.theta, grid.smooth_from, self.offset]
        steps = int(count.max())
        if u.device.type != "cpu":
            # Images that are not there have no iterations to take.
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
        phases, length = _phases(len(u), u.shape[2], self.periodic, torch.get_num_threads())
        for begin in range(0, steps, length):
            for jobs in phases:
                shared = [first, stop, velocity, *settings, begin, min(begin + length, ALL), u, scratch]
                launch(kernel, (len(jobs),), batched=[jobs], inputs=shared)

    def read(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """One iteration of the given lattice temperatures.

        Args:
            u, velocity: as for :meth:`march`.
            theta: of the type and device of ``u``, [M].

        Returns:
            A new tensor like ``u``.
        """
        out = torch.empty_like(u)
        kernel = kernels_for(u, self.adjoint, self.offset != 0.0, self.periodic).read
        settings = [self.grid.velocity_per_theta, self.offset]
        if u.device.type == "cpu":
            launch(kernel, (len(u),), batched=[theta, velocity], inputs=settings, outputs=[u, out])
        else:
            settings.append(self.periodic)
            launch(kernel, (len(u), *u.shape[2:]), batched=[theta, velocity], inputs=settings, outputs=[u, out])
        return out


@dataclass(frozen=True)
class PopulationSweep(Sweep):
    """The iterations of the textbook solver, whose state are populations, float32 [M, 9 C, H, W]; forward only.

    Attributes:
        populations: collision and relaxation time.
    """

    populations: Populations

    def start(self, u0: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The populations of clean images on the background."""
        return self.populations.start((u0 + self.offset).contiguous(), self._step * velocity)

    def march(self, u: torch.Tensor, velocity: torch.Tensor, first: torch.Tensor, stop: torch.Tensor, batch: int) -> None:
        """As :meth:`Sweep.march`."""
        self.populations.march(u, self._step * velocity, stop - first)

    def read(self, u: torch.Tensor, velocity: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """As :meth:`Sweep.read`: the last, partial step is the fast scheme's, which has no relaxation time to keep to."""
        return super().read(self.populations.density(u) - self.offset, velocity, theta)

    @property
    def _step(self) -> float:
        """Velocity in pixels an iteration, where the field is one."""
        return self.grid.velocity_per_theta * self.grid.theta[1]


def _phases(images: int, height: int, periodic: bool, workers: int) -> tuple[list[torch.Tensor], int]:
    """What the cores do in turn, and how many iterations it takes the images further.

    Returns:
        Jobs (image, top, bottom, top's growth, bottom's growth), int32 [J, 5], one tensor a phase; iterations.
    """
    bands = min(-(-workers // images), height // LEAST_BAND)
    if bands <= 1:
        return [torch.tensor([[n, 0, height, 0, 0] for n in range(images)], dtype=torch.int32)], ALL
    # Twice as many where they are high enough: the second phase then has an edge for every core.
    bands = min(2 * bands, height // LEAST_BAND)
    edges = [height * band // bands for band in range(bands + 1)]
    inner = edges[:-1] if periodic else edges[1:-1]
    shrinking = [
        [n, top, bottom, int(top in inner), -int(bottom % height in inner)]
        for n in range(images)
        for top, bottom in pairwise(edges)
    ]
    growing = [[n, edge, edge, -1, 1] for n in range(images) for edge in inner]
    length = min(bottom - top for top, bottom in pairwise(edges)) // 2
    return [torch.tensor(jobs, dtype=torch.int32) for jobs in (shrinking, growing)], length
