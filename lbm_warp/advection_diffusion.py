"""The corruption operator: images carried by turbulence while they blur.

    du/dt + div(v u) = div(alpha grad u)

Two numbers control it, so that a picture of any size is corrupted alike: the Fourier number Fo = alpha t / L^2 of a level
(:class:`Schedule`) and the Peclet number Pe = V L / alpha, L the shorter side and V the rms of one velocity component. A particle
travels about Pe Fo image sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lbm_warp.checks import InputError, as_batch, check_boundary, check_images, check_number
from lbm_warp.interop import launch
from lbm_warp.kernels.advection_diffusion import advance_kernel, cpu_kernels, read_kernel
from lbm_warp.lattice import March
from lbm_warp.schedule import Schedule
from lbm_warp.turbulence import CurlNoise, Turbulence

Integers = int | Sequence[int] | torch.Tensor


class AdvectionDiffusion:
    """Advection-diffusion of a batch of images up to the levels of a schedule, by a D2Q9 lattice Boltzmann scheme.

    The scheme (relaxation time 1, adjustable lattice temperature, see ``lbm_warp.lattice``) conserves mass per channel, keeps
    values inside the input's range while the flow is resolved (Pe < L / 3 or so), and treats every image alone: results do not
    depend, bit for bit on the CPU, on what else is in the batch.

    Args:
        schedule: blur width of every level.
        peclet: advection against diffusion, >= 0. Zero is the heat equation (inverse heat dissipation).
        turbulence: makes the velocity fields; :class:`CurlNoise` with its defaults if not given.
        boundary: ``wall`` (no flow and no diffusion through the border) or ``periodic``.
        offset: background c on which the flow acts: the operator is A(u + c) - c. It matters only for a compressible flow, which
            turns a background into structured noise; 9.5 is what the research code published with the paper amounts to.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(
        self,
        schedule: Schedule,
        peclet: float = 8.0,
        turbulence: Turbulence | None = None,
        boundary: str = "wall",
        offset: float = 0.0,
    ) -> None:
        check_number("peclet", peclet, 0.0)
        check_number("offset", offset, -1e6, 1e6)
        check_boundary(boundary)
        self.schedule = schedule
        self.peclet = float(peclet)
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        self.boundary = boundary
        self.offset = float(offset)

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """Corrupt clean images to a level.

        Args:
            u0: clean images, float32 [N, C, H, W], H, W >= 2, on the CPU or a CUDA device.
            level: 0 (clean) to K; one for all images or one each. Integers and CPU tensors cost no device synchronisation.
            seed: seed of the velocity field, one for all images or one each; images with the same seed see the same flow.

        Returns:
            float32 [N, C, H, W] on the device of ``u0``.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        flow = _Flow(self, u0, seed)
        level = self._levels(level, len(u0), 0)
        flow.advance(level)
        return flow.read(level)

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels k - 1 and k of one trajectory, in one pass: what a network learns to step between.

        Args:
            u0, seed: as in :meth:`__call__`.
            level: k, from 1 to K; one for all images or one each.

        Returns:
            ``(u_{k-1}, u_k)``, float32 [N, C, H, W] each.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        flow = _Flow(self, u0, seed)
        level = self._levels(level, len(u0), 1)
        flow.advance(level - 1)
        previous = flow.read(level - 1)
        flow.advance(level)
        return previous, flow.read(level)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """All levels of one trajectory, in one pass.

        Args:
            u0, seed: as in :meth:`__call__`.

        Yields:
            ``(level, u)`` for levels 0 (a copy of the clean images) to K.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        flow = _Flow(self, u0, seed)
        for number in range(self.schedule.levels + 1):
            level = self._levels(number, len(u0), 0)
            flow.advance(level)
            yield number, flow.read(level)

    def velocity(self, seed: Integers, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The velocity fields that these seeds stand for, in units of V: float32 [N, 2, height, width]."""
        return self.turbulence.velocity(seed, height, width, boundary=self.boundary, device=device)

    def march(self, height: int, width: int) -> March:
        """How the lattice walks the schedule on images of this size; its ``anchor`` counts the iterations to each level."""
        return March.plan(self.schedule, self.peclet, min(height, width))

    def _levels(self, level: Integers, batch: int, lowest: int) -> torch.Tensor:
        levels = as_batch("level", level, batch)
        if batch and not (lowest <= int(levels.min()) and int(levels.max()) <= self.schedule.levels):
            raise InputError(
                f"level must be from {lowest} to {self.schedule.levels}, got {int(levels.min())} to {int(levels.max())}"
            )
        return levels


class _Flow:
    """A batch of images on its way along the trajectory: the state of one call of the operator."""

    def __init__(self, operator: AdvectionDiffusion, u0: torch.Tensor, seed: Integers) -> None:
        check_images(u0)
        if u0.requires_grad and torch.is_grad_enabled():
            raise InputError("images require gradients, which the operator does not pass on: detach them or use torch.no_grad()")
        batch, _, height, width = u0.shape
        seeds = as_batch("seed", seed, batch)
        if operator.peclet > 0.0:
            self.velocity = operator.velocity(seeds, height, width, u0.device).contiguous()
        else:
            self.velocity = u0.new_zeros((batch, 2, height, width))
        self.plan = operator.march(height, width)
        self.offset = operator.offset
        self.periodic = operator.boundary == "periodic"
        # The state after an even number of full iterations lies in ``even``, after an odd number in ``odd``.
        self.even = u0.clone(memory_format=torch.contiguous_format)
        self.odd = torch.empty_like(self.even)
        self.done = torch.zeros(batch, dtype=torch.int32)

    def advance(self, level: torch.Tensor) -> None:
        """March every image to the anchor of its level (which is not before the last one)."""
        stop = torch.from_numpy(self.plan.anchor[level.numpy()])
        first, self.done = self.done, stop
        if bool((first == stop).all()):
            return
        if self.even.device.type == "cpu":
            march, _ = cpu_kernels(*self.even.shape[1:], self.periodic)
            launch(
                march,
                (len(stop),),
                batched=[first, stop, self.velocity],
                inputs=[self.plan.velocity_per_theta, *self.plan.theta, self.plan.smooth_from, self.offset],
                outputs=[self.even, self.odd],
            )
            return
        limits = [bound.to(self.even.device, non_blocking=True) for bound in (first, stop)]
        for iteration in range(int(first.min()), int(stop.max())):
            source, target = (self.even, self.odd) if iteration % 2 == 0 else (self.odd, self.even)
            theta = self.plan.theta[int(iteration >= self.plan.smooth_from)]
            launch(
                advance_kernel,
                self._cells,
                inputs=[
                    iteration,
                    *limits,
                    self.velocity,
                    self.plan.velocity_per_theta,
                    theta,
                    self.offset,
                    self.periodic,
                    source,
                ],
                outputs=[target],
            )

    def read(self, level: torch.Tensor) -> torch.Tensor:
        """The images at their levels, one partial iteration after the anchors they stand at."""
        partial_theta = torch.from_numpy(self.plan.partial_theta[level.numpy()].astype(np.float32))
        out = torch.empty_like(self.even)
        state = [self.even, self.odd]
        if out.device.type == "cpu":
            _, read = cpu_kernels(*out.shape[1:], self.periodic)
            launch(
                read,
                (len(level),),
                batched=[self.done, partial_theta, self.velocity],
                inputs=[self.plan.velocity_per_theta, self.offset],
                outputs=[*state, out],
            )
            return out
        anchor, partial_theta = (value.to(out.device, non_blocking=True) for value in (self.done, partial_theta))
        launch(
            read_kernel,
            self._cells,
            inputs=[
                anchor,
                partial_theta,
                self.velocity,
                self.plan.velocity_per_theta,
                self.offset,
                self.periodic,
                *state,
            ],
            outputs=[out],
        )
        return out

    @property
    def _cells(self) -> tuple[int, int, int]:
        batch, _, height, width = self.even.shape
        return batch, height, width
