"""The corruption operator: images carried by turbulence while they blur.

    du/dt + div(v u) = div(alpha grad u)

Two numbers control it, so that images of any size are corrupted alike: the Fourier number of a level, Fo = alpha t / L^2
(:class:`Schedule`), and the Peclet number, Pe = V L / alpha. L is the shorter side of the image and V the rms of one velocity
component. A particle travels about Pe Fo image sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lbm_warp.checks import Device, InputError, Integers, as_batch, check_boundary, check_choice, check_images, check_number
from lbm_warp.grids import midpoint_velocity, prolong, restrict, restrict_velocity
from lbm_warp.heat import blur
from lbm_warp.planner import DEFAULT_SCHEME, Plan, Scheme
from lbm_warp.populations import COLLISIONS, Populations
from lbm_warp.schedule import Schedule
from lbm_warp.stepping import UNLIMITED, PopulationStepper, Stepper
from lbm_warp.turbulence import CurlNoise, Turbulence


class AdvectionDiffusion:
    """Advection-diffusion of a batch of images up to the levels of a schedule, by a D2Q9 lattice Boltzmann scheme.

    The scheme (relaxation time 1, adjustable lattice temperature: ``lbm_warp.planner``) conserves the mass of every channel. In a
    resolved flow (Pe below about L / 3) all weights are non-negative, so values stay in the range of the input up to the error in a
    flat image. Images do not affect each other: on the CPU a result is the same bit for bit in every batch. The operator is linear
    and differentiable in the images; backward is one pass of the adjoint scheme, without stored states.

    Images may be float16, bfloat16 (both computed in float32), float32 or float64; results have the same dtype.

    Args:
        schedule: blur width of every level.
        peclet: advection relative to diffusion, >= 0. Zero is the heat equation (inverse heat dissipation).
        turbulence: generator of the velocity fields, by default :class:`CurlNoise`.
        boundary: ``wall`` (no flow and no diffusion through the border) or ``periodic``.
        offset: density c of a background, -1e6 to 1e6: the operator is A(u + c) - c. It has an effect only in a compressible flow,
            which turns a background into structured noise. The research code published with the paper corresponds to 9.5.
        turbulence_time: rate of change of the flow, >= 0. 0 is a steady flow. At 1 an eddy as large as the image turns over in its
            own time L / V, smaller eddies faster by Kolmogorov's law.
        coarsen: continue at half the resolution, repeatedly, once the image is blurred by eight cells and as long as the flow stays
            resolved. The cost of a trajectory then grows with the area of the image instead of its square. Only grids with an even
            number of cells along both sides are coarsened.
        collision: ``equilibrium``, the scheme described above; or ``bgk``, ``trt`` or ``central-moments``, the textbook solver
            with stored populations (``lbm_warp.populations``), for studies of it. The textbook solver is tens of times slower,
            computes in float32, stays on the pixel grid and has no gradient.
        relaxation_time: tau of the textbook solver, 0.500001 to 1.5. Iterations are shorter for smaller values. At 1 the textbook
            solver is the fast scheme at the lattice temperature 1/3.
        exact: solve the heat equation in Fourier space (``lbm_warp.heat``) if the Peclet number is zero, instead of on the lattice.
        scheme: the numbers of the scheme.

    Attributes:
        solver: ``heat kernel`` or ``lattice``.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        peclet: float = 8.0,
        turbulence: Turbulence | None = None,
        *,
        boundary: str = "wall",
        offset: float = 0.0,
        turbulence_time: float = 0.0,
        coarsen: bool = True,
        collision: str = "equilibrium",
        relaxation_time: float = 1.0,
        exact: bool = True,
        scheme: Scheme = DEFAULT_SCHEME,
    ) -> None:
        check_number("peclet", peclet, 0.0)
        check_number("offset", offset, -1e6, 1e6)
        check_number("turbulence_time", turbulence_time, 0.0)
        check_boundary(boundary)
        check_choice("collision", collision, ("equilibrium", *COLLISIONS))
        check_number("relaxation_time", relaxation_time, 0.5 + 1e-6, 1.5)
        if collision == "equilibrium" and relaxation_time != 1.0:
            raise InputError(
                f"collision 'equilibrium' has relaxation time 1, got {relaxation_time:g}: choose one of {', '.join(COLLISIONS)}"
            )
        self.schedule = schedule
        self.peclet = float(peclet)
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        self.boundary = boundary
        self.offset = float(offset)
        self.turbulence_time = float(turbulence_time)
        self.coarsen = coarsen
        self.collision = collision
        self.relaxation_time = float(relaxation_time)
        self.solver = "heat kernel" if exact and peclet == 0.0 and collision == "equilibrium" else "lattice"
        self.scheme = scheme

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """Corrupt clean images to a level.

        Args:
            u0: clean images, floating-point [N, C, H, W], H, W >= 2, on the CPU or a CUDA device.
            level: 0 (clean) to K, one for all images or one per image. Integers and CPU tensors need no device synchronisation.
            seed: seed of the velocity field, one for all images or one per image. Images with the same seed have the same flow.

        Returns:
            [N, C, H, W], dtype and device of ``u0``, differentiable in ``u0``.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        check_images(u0)
        level, seed = self._levels(level, len(u0), 0), as_batch("seed", seed, len(u0))
        return _Corruption.apply(u0, self, seed, level)[0]

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels k - 1 and k of one trajectory in one pass, for a network that learns the step from k to k - 1.

        Args:
            u0, seed: as for :meth:`__call__`.
            level: k, 1 to K, one for all images or one per image.

        Returns:
            ``(u_{k-1}, u_k)``, each as the result of :meth:`__call__`.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        check_images(u0)
        level, seed = self._levels(level, len(u0), 1), as_batch("seed", seed, len(u0))
        return _Corruption.apply(u0, self, seed, level - 1, level)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """All levels of one trajectory in one pass, without gradients.

        Args:
            u0, seed: as for :meth:`__call__`.

        Yields:
            ``(level, u)`` for levels 0 (a copy of the clean images) to K.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        check_images(u0)
        trajectory = self._trajectory(u0.detach(), as_batch("seed", seed, len(u0)))
        for level in range(self.schedule.levels + 1):
            yield level, trajectory.at(self._levels(level, len(u0), 0)).to(u0.dtype)

    def adjoint(self, w: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """The transpose of A, the linear part of the operator: <adjoint(w), u> = <w, A(u)> for all u.

        Args:
            w: [N, C, H, W], a tensor like the images at ``level``.
            level, seed: as for :meth:`__call__`.

        Returns:
            [N, C, H, W], dtype and device of ``w``.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range, or if the collision has no gradient.
        """
        check_images(w)
        self._check_gradient()
        level, seed = self._levels(level, len(w), 0), as_batch("seed", seed, len(w))
        with torch.no_grad():
            return _transposed(self, w, seed, level).to(w.dtype)

    def velocity(
        self, seed: Integers, height: int, width: int, device: Device = "cpu", sigma: float = 0.0, span: float = 0.0
    ) -> torch.Tensor:
        """The velocity fields of these seeds in units of V, float32 [N, 2, height, width].

        ``sigma`` is the time, as a blur width [pixels], and ``span`` the length of an interval around it, as an increase of sigma^2
        [square pixels]. They matter only for a flow that changes in time.
        """
        # Time in units of L / V is t V / L = Pe Fo = Pe sigma^2 / (2 L^2).
        rate, length = self.turbulence_time * self.peclet * 0.5, min(height, width)
        times = {"time": rate * (sigma / length) ** 2, "span": rate * span / length**2}
        return self.turbulence.velocity(seed, height, width, boundary=self.boundary, device=device, **times)

    def plan(self, height: int, width: int) -> Plan:
        """The iterations on the lattice for images of this size [pixels]; the heat kernel does not use it."""
        if self.collision == "equilibrium":
            source = abs(self.offset) + 1.0 if self.turbulence.compressible else 0.0
            return Plan.build(self.schedule, self.peclet, height, width, source=source, coarsen=self.coarsen, scheme=self.scheme)
        theta = 2.0 / 3.0 * (self.relaxation_time - 0.5)  # alpha = theta / 2 = (tau - 1/2) / 3
        return Plan.build(self.schedule, self.peclet, height, width, coarsen=False, theta=theta, scheme=self.scheme)

    def iterations(self, height: int, width: int) -> np.ndarray:
        """Lattice iterations from the clean image to levels 0..K, float64 [K + 1]: see :attr:`Plan.iterations`.

        Zero for the heat kernel.

        Args:
            height, width: size of the images [pixels].
        """
        if self.solver == "heat kernel":
            return np.zeros(self.schedule.levels + 1)
        return self.plan(height, width).iterations

    def _trajectory(self, u0: torch.Tensor, seed: torch.Tensor) -> _Trajectory | _HeatTrajectory:
        return _HeatTrajectory(self, u0) if self.solver == "heat kernel" else _Trajectory(self, u0, seed)

    def _check_gradient(self) -> None:
        if self.collision != "equilibrium":
            raise InputError(f"collision {self.collision!r} has no gradient; 'equilibrium' has")

    def _levels(self, level: Integers, batch: int, lowest: int) -> torch.Tensor:
        levels = as_batch("level", level, batch)
        if not (lowest <= int(levels.min()) and int(levels.max()) <= self.schedule.levels):
            raise InputError(
                f"level must be from {lowest} to {self.schedule.levels}, got {int(levels.min())} to {int(levels.max())}"
            )
        return levels


class _Corruption(torch.autograd.Function):
    """The operator in autograd: images at one or several levels of a trajectory. Backward needs only the seeds."""

    @staticmethod
    def forward(ctx, u0: torch.Tensor, operator: AdvectionDiffusion, seed: torch.Tensor, *levels: torch.Tensor):
        if ctx.needs_input_grad[0]:
            operator._check_gradient()
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        trajectory = operator._trajectory(u0, seed)
        return tuple(trajectory.at(level).to(u0.dtype) for level in levels)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):
        terms = (_transposed(ctx.operator, w, ctx.seed, level) for w, level in zip(gradients, ctx.levels, strict=True))
        return sum(terms).to(gradients[0].dtype), None, None, *[None] * len(ctx.levels)


class _Flow:
    """The velocity fields of a batch in time, and the iterations in them.

    A flow that changes in time is updated every ``interval[g]`` iterations on grid g.
    """

    def __init__(self, operator: AdvectionDiffusion, u: torch.Tensor, seed: torch.Tensor, adjoint: bool) -> None:
        self.operator = operator
        self.seed = seed
        self.size = tuple(u.shape[2:])
        self.device = u.device
        self.plan = operator.plan(*self.size)
        self.periodic = operator.boundary == "periodic"
        self.adjoint = adjoint
        textbook = operator.collision != "equilibrium"
        self.dtype = torch.float64 if u.dtype == torch.float64 and not textbook else torch.float32
        # The adjoint is that of the linear part, without the background.
        offset = 0.0 if adjoint else operator.offset
        if textbook:
            populations = Populations(operator.collision, operator.relaxation_time, self.periodic)
            self.steppers = [PopulationStepper(grid, offset, self.periodic, adjoint, populations) for grid in self.plan.grids]
        else:
            self.steppers = [Stepper(grid, offset, self.periodic, adjoint) for grid in self.plan.grids]
        # Updates per unit of sigma^2.
        scheme = operator.scheme
        rate = operator.turbulence_time * operator.peclet / (2.0 * min(self.size) ** 2) * scheme.updates_per_turnover
        self.interval = [
            max(1, round(1.0 / (rate * grid.factor**2 * grid.theta[1])), math.ceil(grid.iterations / scheme.updates_per_grid))
            if rate > 0.0
            else UNLIMITED
            for grid in self.plan.grids
        ]
        # fields[g]: velocity used on grid g. field: the velocity on the last of these grids, before midpoint_velocity; None once no
        # coarser grid is left. key: grid and interval that they were made for.
        self.fields: list[torch.Tensor] = []
        self.field: torch.Tensor | None = None
        self.key: tuple[int, int] | None = None

    def start(self, u0: torch.Tensor) -> torch.Tensor:
        """The state of clean images."""
        return self.steppers[0].start(u0.to(self.dtype), self._velocity(0, 0, torch.arange(len(u0))))

    def advance(self, grid: int, u: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, stop: torch.Tensor) -> None:
        """Compute the iterations ``first`` to ``stop`` - 1 (int32, one each) of the images ``rows`` of the batch, in place."""
        if bool((first == stop).all()):
            return
        length = self.interval[grid]
        intervals = range(int(first.min()) // length, -(-int(stop.max()) // length))
        for interval in reversed(intervals) if self.adjoint else intervals:
            begin, end = interval * length, min((interval + 1) * length, UNLIMITED)
            velocity = self._velocity(grid, interval, rows)
            self.steppers[grid].advance(u, velocity, first.clamp(begin, end), stop.clamp(begin, end), len(self.seed))

    def read_out(self, grid: int, u: torch.Tensor, rows: torch.Tensor, done: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """One partial iteration of lattice temperature ``theta`` (float64, one each) after ``done`` full iterations."""
        theta = _on_device(theta.to(self.dtype), u)
        interval_of = done // self.interval[grid]
        intervals = interval_of.unique().tolist()
        if len(intervals) == 1:
            return self.steppers[grid].read_out(u, self._velocity(grid, intervals[0], rows), theta)
        parts = [torch.nonzero(interval_of == interval).flatten() for interval in intervals]
        results = []
        for interval, part in zip(intervals, parts, strict=True):
            index = _on_device(part, u)
            results.append(self.steppers[grid].read_out(u[index], self._velocity(grid, interval, rows[part]), theta[index]))
        return torch.cat(results)[_on_device(torch.argsort(torch.cat(parts)), u)]

    def _velocity(self, grid: int, interval: int, rows: torch.Tensor) -> torch.Tensor:
        """The velocity on a grid in an interval, for the images ``rows`` of the batch."""
        steady = self.interval[grid] == UNLIMITED
        key = None if steady else (grid, interval)
        if not self.fields or key != self.key:
            # sigma^2 at the begin, the middle and the end of the interval.
            begin, middle, end = (
                0.0 if steady else self.plan.grids[grid].sigma2((interval + part) * self.interval[grid]) for part in (0.0, 0.5, 1.0)
            )
            if self.operator.peclet > 0.0:
                field = self.operator.velocity(self.seed, *self.size, self.device, sigma=middle**0.5, span=end - begin)
                self.field = field.to(self.dtype)
            else:
                self.field = torch.zeros((len(self.seed), 2, *self.size), dtype=self.dtype, device=self.device)
            self.fields, self.key = [], key
        while len(self.fields) <= grid:
            here = self.plan.grids[len(self.fields)]
            if here.factor > 1:
                self.field = restrict_velocity(self.field, self.periodic)
            # The step of most iterations; the few with theta[0] and the partial ones are shorter.
            self.fields.append(midpoint_velocity(self.field, here.velocity_per_theta * here.theta[1], self.periodic))
        if len(self.fields) == len(self.plan.grids):
            self.field = None
        velocity = self.fields[grid]
        return velocity if len(rows) == len(velocity) else velocity[_on_device(rows, velocity)]


@dataclass
class _Group:
    """Images on the same grid: their rows in the batch (int64), their states, and their full iterations done there (int32)."""

    rows: torch.Tensor
    state: torch.Tensor
    done: torch.Tensor

    def select(self, chosen: torch.Tensor) -> _Group:
        """The images where ``chosen`` (bool, one each) is true."""
        if bool(chosen.all()):
            return self
        index = torch.nonzero(chosen).flatten()
        return _Group(self.rows[index], self.state[_on_device(index, self.state)], self.done[index])

    def merge(self, other: _Group | None) -> _Group:
        """Both groups as one, in the order of the batch."""
        if other is None:
            return self
        rows = torch.cat([self.rows, other.rows])
        order = torch.argsort(rows)
        state = torch.cat([self.state, other.state])[_on_device(order, self.state)]
        return _Group(rows[order], state, torch.cat([self.done, other.done])[order])


class _Trajectory:
    """The trajectory of a batch on the lattice. The levels of an image must not decrease from call to call."""

    def __init__(self, operator: AdvectionDiffusion, u0: torch.Tensor, seed: torch.Tensor) -> None:
        self.flow = _Flow(operator, u0, seed, adjoint=False)
        start = _Group(torch.arange(len(u0)), self.flow.start(u0), torch.zeros(len(u0), dtype=torch.int32))
        self.groups: list[_Group | None] = [start, *[None] * (len(self.flow.plan.grids) - 1)]

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """Advance every image to its level (int64, one each) and read it out."""
        plan = self.flow.plan
        out = None
        arriving: _Group | None = None
        for index, grid in enumerate(plan.grids):
            group = arriving.merge(self.groups[index]) if arriving is not None else self.groups[index]
            if group is None:
                continue
            wanted = level[group.rows]
            stays = torch.from_numpy(plan.level_grid)[wanted] == index
            stop = torch.where(stays, torch.from_numpy(plan.level_iterations)[wanted], grid.iterations)
            self.flow.advance(index, group.state, group.rows, group.done, stop)
            group.done = stop
            arriving, self.groups[index] = None, None
            if bool(stays.any()):
                here = self.groups[index] = group.select(stays)
                theta = torch.from_numpy(plan.level_theta)[level[here.rows]]
                images = self.flow.read_out(index, here.state, here.rows, here.done, theta)
                for _ in range(index):
                    images = prolong(images, self.flow.periodic)
                if len(here.rows) == len(level):
                    out = images
                else:
                    out = images.new_empty((len(level), *images.shape[1:])) if out is None else out
                    out[_on_device(here.rows, out)] = images
            if not bool(stays.all()):
                leaving = group.select(~stays)
                arriving = _Group(leaving.rows, restrict(leaving.state), torch.zeros_like(leaving.done))
        return out


class _HeatTrajectory:
    """The trajectory of a batch at Pe = 0, by the heat kernel."""

    def __init__(self, operator: AdvectionDiffusion, u0: torch.Tensor) -> None:
        self.sigma = torch.tensor(operator.schedule.sigma)
        self.periodic = operator.boundary == "periodic"
        self.u0 = u0.to(torch.float64 if u0.dtype == torch.float64 else torch.float32, copy=True)

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """As :meth:`_Trajectory.at`, for levels in any order."""
        return blur(self.u0, self.sigma[level], self.periodic)


def _transposed(operator: AdvectionDiffusion, w: torch.Tensor, seed: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The adjoint of :meth:`_Trajectory.at`, one level per image: the transpose of every step, in reverse order."""
    if operator.solver == "heat kernel":
        return _HeatTrajectory(operator, w).at(level)  # The heat kernel is symmetric.
    flow = _Flow(operator, w, seed, adjoint=True)
    plan = flow.plan
    w = w.to(flow.dtype)
    grid_of = torch.from_numpy(plan.level_grid)[level]
    arriving: _Group | None = None
    for index in range(int(grid_of.max()), -1, -1):
        rows = torch.nonzero(grid_of == index).flatten()
        group = arriving
        if len(rows):
            images = w if len(rows) == len(w) else w[_on_device(rows, w)]
            for _ in range(index):
                images = _transpose_of_prolong(images, flow.periodic)
            theta = torch.from_numpy(plan.level_theta)[level[rows]]
            done = torch.from_numpy(plan.level_iterations)[level[rows]]
            state = flow.read_out(index, images.contiguous(), rows, done, theta)
            group = _Group(rows, state, done).merge(arriving)
        flow.advance(index, group.state, group.rows, torch.zeros_like(group.done), group.done)
        if index > 0:
            # The transpose of restrict: each of the four cells gets a quarter.
            state = group.state.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4
            done = torch.full_like(group.done, plan.grids[index - 1].iterations)
            arriving = _Group(group.rows, state, done)
    return group.state


def _transpose_of_prolong(w: torch.Tensor, periodic: bool) -> torch.Tensor:
    with torch.enable_grad():
        coarse = w.new_zeros((*w.shape[:2], w.shape[2] // 2, w.shape[3] // 2)).requires_grad_()
        (result,) = torch.autograd.grad(prolong(coarse, periodic), coarse, w)
    return result


def _on_device(small: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A small CPU tensor copied to the device of ``like``, without waiting."""
    return small.to(like.device, non_blocking=True)
