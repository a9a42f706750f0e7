"""The textbook solver: D2Q9 with stored populations, the reference for the fast solver.

Its relaxation time tau is free, and with it the diffusivity in square pixels per iteration:

    alpha = c_s^2 (tau - 1/2) = (tau - 1/2) / 3.

At tau = 1 (alpha = 1/6) all collisions and initial states give the same numbers. The fast solver differs from them by terms of
third order in velocity and wavenumber, which keep a flat density flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lbm_warp.checks import (
    Device,
    InputError,
    Integers,
    as_batch,
    as_floats,
    as_images,
    check_boundary,
    check_choice,
    check_integer,
    check_number,
    check_object,
)
from lbm_warp.grids import with_ghost_cells
from lbm_warp.interop import launch
from lbm_warp.kernels.populations import BGK, CENTRAL_MOMENTS, TRT, start_kernel, stream_collide_kernel
from lbm_warp.operator import Operator
from lbm_warp.planner import DEFAULT_SCHEME, Plan
from lbm_warp.schedule import Schedule
from lbm_warp.stepping import stencil, step
from lbm_warp.turbulence import CurlNoise, Turbulence

COLLISIONS = {"bgk": BGK, "trt": TRT, "central-moments": CENTRAL_MOMENTS}
INITIALS = ("equilibrium", "non-equilibrium")
# The magic parameter of TRT, Lambda = (tau_even - 1/2) (tau_odd - 1/2). With 1/4 the range of stable velocities does not depend on
# tau (Kuzmin, Ginzburg and Mohamad, Comput. Math. Appl. 61, 3417, 2011), and at tau = 1 both relaxation times are 1.
MAGIC = 0.25


class TextbookSolver(Operator):
    """Advection-diffusion of images by the textbook method, for studies of it.

    Nine populations a cell stream and collide, on the pixel grid, in float32. This is what the paper *Beyond Blur* describes, with
    ``collision="central-moments"``. :class:`lbm_warp.AdvectionDiffusion` solves the same equation tens of times faster, with
    gradients. A level between two iterations is read out by one partial iteration of that solver.

    Args:
        schedule: blur width of every level.
        peclet: advection relative to diffusion, >= 0.
        turbulence: generator of the velocity fields, which are steady; by default :class:`lbm_warp.CurlNoise`.
        collision: ``bgk``, ``trt`` or ``central-moments``: see :func:`evolve`.
        relaxation_time: tau, 0.500001 to 1.5. Iterations are shorter for smaller values.
        boundary: ``wall`` or ``periodic``.
        offset: density of a background, as in :class:`lbm_warp.AdvectionDiffusion`.

    Raises:
        InputError: if a value is out of range.
    """

    solver = "lattice with stored populations"

    def __init__(
        self,
        schedule: Schedule,
        *,
        peclet: float = 8.0,
        turbulence: Turbulence | None = None,
        collision: str = "bgk",
        relaxation_time: float = 1.0,
        boundary: str = "wall",
        offset: float = 0.0,
    ) -> None:
        check_object("schedule", schedule, Schedule)
        check_number("peclet", peclet, 0.0)
        check_choice("collision", collision, COLLISIONS)
        check_number("relaxation_time", relaxation_time, 0.5 + 1e-6, 1.5)
        check_boundary(boundary)
        check_number("offset", offset, -1e6, 1e6)
        self.schedule, self.peclet, self.boundary, self.offset = schedule, float(peclet), boundary, float(offset)
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        check_object("turbulence", self.turbulence, Turbulence)
        self.levels, self.random = schedule.levels, peclet > 0.0 and self.turbulence.random
        self.populations = Populations(collision, float(relaxation_time), boundary == "periodic")

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`lbm_warp.Operator.at`, without gradients; the levels of an image must not fall."""
        return tuple(self._images(u0, seed, levels))

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """As :meth:`lbm_warp.Operator.apply`, without gradients."""
        return self.at(u0, (level,), seed)[0]

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`lbm_warp.Operator.trajectory`, in one pass."""
        u0 = as_images(u0)
        levels = [torch.full((len(u0),), k, device="cpu") for k in range(self.levels + 1)]
        return enumerate(self._images(u0.detach(), as_batch("seed", seed, len(u0)), levels))

    def velocity(self, seed: Integers, height: int, width: int, device: Device = "cpu") -> torch.Tensor:
        """The velocity fields of these seeds in units of V, float32 [N, 2, height, width]."""
        return self.turbulence.velocity(seed, height, width, boundary=self.boundary, device=device)

    def plan(self, height: int, width: int) -> Plan:
        """The iterations for images of this size [pixels].

        Raises:
            InputError: if the flow moves too far in an iteration of this relaxation time.
        """
        theta = 2.0 / 3.0 * (self.populations.relaxation_time - 0.5)  # alpha = theta / 2 = (tau - 1/2) / 3
        return Plan.build(self.schedule, self.peclet, height, width, coarsen=False, theta=theta, scheme=DEFAULT_SCHEME)

    def iterations(self, height: int, width: int) -> np.ndarray:
        return self.plan(height, width).iterations

    @torch.no_grad()
    def _images(self, u0: torch.Tensor, seed: torch.Tensor, levels: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Images at each of the levels, which do not fall from one to the next."""
        if u0.requires_grad:
            raise InputError("the textbook solver has no gradient; lbm_warp.AdvectionDiffusion has")
        height, width = u0.shape[2:]
        plan = self.plan(height, width)
        (grid,) = plan.grids
        periodic = self.boundary == "periodic"
        speed = grid.velocity_per_theta * grid.theta[1]  # V [pixels per iteration]
        field = self.velocity(seed, height, width, u0.device)
        velocity = midpoint_velocity(speed * field, periodic)
        f = self.populations.start((u0.float() + self.offset).contiguous(), velocity)
        done = torch.zeros(len(u0), dtype=torch.int32, device="cpu")
        for level in levels:
            stop = torch.from_numpy(plan.level_iterations)[level]
            self.populations.advance(f, velocity, stop - done)
            done = stop
            u = self.populations.density(f) - self.offset
            theta = torch.from_numpy(plan.level_theta)[level].float().to(u.device, non_blocking=True)
            weights = stencil(field, grid.velocity_per_theta, theta, periodic=periodic, offset=self.offset)
            u = step(u, weights, periodic)
            yield torch.where((level == 0).to(u.device)[:, None, None, None], u0, u.to(u0.dtype))


def midpoint_velocity(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The velocity at the midpoint of every cell's path in one iteration, u + (u . grad) u / 2: second order in time.

    An iteration moves the content of a cell along a straight line. With u itself the content would leave a curved streamline on
    the outside.

    Args:
        velocity: (u_x, u_y) in pixels per iteration, [N, 2, H, W].
        periodic: periodic boundary, otherwise walls.

    Returns:
        A new tensor of the same shape and dtype.
    """
    ghosts = with_ghost_cells(velocity, periodic)
    along_x = (ghosts[..., 1:-1, 2:] - ghosts[..., 1:-1, :-2]) / 2
    along_y = (ghosts[..., 2:, 1:-1] - ghosts[..., :-2, 1:-1]) / 2
    return velocity + (velocity[:, :1] * along_x + velocity[:, 1:] * along_y) / 2


def evolve(
    u0: torch.Tensor,
    velocity: torch.Tensor,
    iterations: int,
    *,
    collision: str = "bgk",
    relaxation_time: float = 1.0,
    boundary: str = "wall",
    initial: str = "non-equilibrium",
) -> torch.Tensor:
    """Advection-diffusion with stored populations.

    Args:
        u0: density, any unit, float32 [N, C, H, W], H, W >= 2.
        velocity: (u_x, u_y) in pixels per iteration, float32 [N, 2, H, W], well below 1, on the device of ``u0``.
        iterations: number of iterations, >= 0.
        collision: ``bgk``; ``trt``, two relaxation times with the magic parameter 1/4; or ``central-moments``, the collision of the
            paper Beyond Blur. All have the same diffusivity, and none has an error of order u^2 in advection or diffusion. Near
            tau = 1/2 TRT overshoots least but skews the density (an error of order u in the third moment; u^3 in the others), and
            central moments are unstable in a fast flow (|u| above about 0.2 at tau = 0.51).
        relaxation_time: tau of the flux, >= 0.500001. The diffusivity is (tau - 1/2) / 3 square pixels per iteration.
        boundary: ``wall`` or ``periodic``.
        initial: ``non-equilibrium`` starts with the flux that belongs to the gradient of ``u0``, so the first iteration has the
            right diffusivity. After ``equilibrium`` the first iteration has the diffusivity 1/6 whatever tau, and the error decays
            as (1 - 1 / tau)^iterations. At tau = 1 both are the same.

    Returns:
        The density after ``iterations``, float32 [N, C, H, W].

    Raises:
        InputError: if an argument has the wrong shape, dtype, device or range, or a choice is unknown.
    """
    u0 = as_images(u0)
    if u0.dtype != torch.float32:
        raise InputError(f"images must be float32, got {u0.dtype}")
    check_boundary(boundary)
    check_number("relaxation_time", relaxation_time, 0.5 + 1e-6)
    check_integer("iterations", iterations, 0)
    check_choice("collision", collision, COLLISIONS)
    check_choice("initial", initial, INITIALS)
    batch, _, height, width = u0.shape
    if not isinstance(velocity, torch.Tensor):
        raise InputError(f"velocity must be a torch tensor [N, 2, H, W], got {type(velocity).__name__}")
    if velocity.shape != (batch, 2, height, width) or velocity.dtype != torch.float32:
        raise InputError(f"velocity must be float32 {[batch, 2, height, width]}, got {velocity.dtype} {list(velocity.shape)}")
    if velocity.device != u0.device:
        raise InputError(f"velocity must be on the device of the images, {u0.device}, got {velocity.device}")

    velocity = as_floats("velocity", velocity, "N, 2, H, W")
    solver = Populations(collision, float(relaxation_time), boundary == "periodic", initial)
    f = solver.start(u0, velocity)
    solver.advance(f, velocity, torch.full((batch,), iterations, dtype=torch.int32, device="cpu"))
    return solver.density(f)


@dataclass(frozen=True)
class Populations:
    """The steps of the solver; its state are the populations f after a collision, float32 [N, 9 C, H, W].

    Attributes as the arguments of :func:`evolve`.
    """

    collision: str
    relaxation_time: float
    periodic: bool
    initial: str = "non-equilibrium"

    def start(self, u0: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Populations of the density ``u0``."""
        batch, channels, height, width = u0.shape
        f = u0.new_empty((batch, 9 * channels, height, width))
        # The factor of the non-equilibrium part: see start_kernel.
        factor = 1.0 - self.relaxation_time if self.initial == "non-equilibrium" else 0.0
        settings = [COLLISIONS[self.collision], factor, self.periodic]
        launch(start_kernel, u0.shape, batched=[u0, velocity], inputs=settings, outputs=[f])
        return f

    def advance(self, f: torch.Tensor, velocity: torch.Tensor, count: torch.Tensor) -> None:
        """Compute ``count`` iterations of every image (int32 [N], on the CPU), in place."""
        scratch = f.clone()
        # A collision multiplies the non-equilibrium part by 1 - 1 / tau.
        tau = self.relaxation_time
        even_time = 0.5 + MAGIC / (tau - 0.5) if self.collision == "trt" else tau
        settings = [COLLISIONS[self.collision], 1.0 - 1.0 / even_time, 1.0 - 1.0 / tau, self.periodic]
        batch, populations, height, width = f.shape
        on_device = count.to(f.device, non_blocking=True)
        for number in range(int(count.max())):
            launch(
                stream_collide_kernel,
                (batch, populations // 9, height, width),
                batched=[on_device, velocity],
                inputs=[*settings, number],
                outputs=[f, scratch],
            )

    @staticmethod
    def density(f: torch.Tensor) -> torch.Tensor:
        """The zeroth moment, [N, C, H, W]."""
        # Added one by one, in a fixed order: torch.sum may round differently for another shape or device.
        return sum(f.unflatten(1, (-1, 9)).unbind(dim=2))
