"""The corruption operator: images carried by turbulence while they blur.

    du/dt + div(v u) = div(alpha grad u)

Two numbers control it, so that a picture of any size is corrupted alike: the Fourier number Fo = alpha t / L^2 of a level
(:class:`Schedule`) and the Peclet number Pe = V L / alpha, L the shorter side and V the rms of one velocity component. A particle
travels about Pe Fo image sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lbm_warp.checks import InputError, as_batch, check_boundary, check_choice, check_images, check_number
from lbm_warp.grids import coarser, coarser_velocity, curved, finer
from lbm_warp.heat import blur
from lbm_warp.lattice import March
from lbm_warp.populations import COLLISIONS, Populations
from lbm_warp.schedule import Schedule
from lbm_warp.sweeps import PopulationSweep, Sweep
from lbm_warp.turbulence import CurlNoise, Turbulence

# A flow that changes in time is frozen for a part of the time in which the largest eddies turn over.
FREEZES_PER_TURNOVER = 64
FOR_EVER = 2**31 - 1

Integers = int | Sequence[int] | torch.Tensor


class AdvectionDiffusion:
    """Advection-diffusion of a batch of images up to the levels of a schedule, by a D2Q9 lattice Boltzmann scheme.

    The scheme (relaxation time 1, adjustable lattice temperature, see ``lbm_warp.lattice``) conserves mass per channel. While
    the flow is resolved (Pe < L / 3 or so) all weights are non-negative, and values stay inside the input's range as closely as a
    flat image stays flat. Every image is treated alone: results do not depend, bit for bit on the CPU, on what else is in the
    batch. It is linear in the images, and torch's autograd passes through
    it: one backward sweep of the adjoint scheme, and no stored states.

    Images may be float16, bfloat16 (computed in float32), float32 or float64; results have their type.

    Args:
        schedule: blur width of every level.
        peclet: advection against diffusion, >= 0. Zero is the heat equation (inverse heat dissipation).
        turbulence: makes the velocity fields; :class:`CurlNoise` with its defaults if not given.
        boundary: ``wall`` (no flow and no diffusion through the border) or ``periodic``.
        offset: background c on which the flow acts: the operator is A(u + c) - c. It matters only for a compressible flow, which
            turns a background into structured noise; 9.5 is what the research code published with the paper amounts to.
        turbulence_time: how fast the flow itself changes while it carries the picture: 0 freezes it; at 1 an eddy as large as
            the image turns over in its own time L / V, smaller ones faster, as Kolmogorov's law has it.
        coarsen: carry on at half the resolution, again and again, once a picture is blurred by eight pixels and while the flow
            stays resolved. The cost of a trajectory then grows with the area of the picture, not with its square. Sides that
            cannot be halved are left as they are.
        collision: ``equilibrium``, the scheme described; or the textbook solver with stored populations (``lbm_warp.populations``),
            to study it: ``bgk``, ``trt`` or ``central-moments``. That one is tens of times slower, computes in float32, stays on
            the pixel grid and has no gradient.
        relaxation_time: tau of the textbook solver, 0.500001 to 1.5. The smaller, the shorter the steps; at 1 it does what the
            fast scheme does at its temperature of 1/3.
        exact: where the Peclet number is zero, solve the heat equation in the image's own waves (``lbm_warp.heat``) instead of on
            the lattice. The attribute ``solver`` says which of the two it is, ``heat kernel`` or ``lattice``.

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
        turbulence_time: float = 0.0,
        coarsen: bool = True,
        collision: str = "equilibrium",
        relaxation_time: float = 1.0,
        exact: bool = True,
    ) -> None:
        check_number("peclet", peclet, 0.0)
        check_number("offset", offset, -1e6, 1e6)
        check_boundary(boundary)
        check_choice("collision", collision, ("equilibrium", *COLLISIONS))
        check_number("relaxation_time", relaxation_time, 0.5 + 1e-6, 1.5)
        if collision == "equilibrium" and relaxation_time != 1.0:
            raise InputError(
                f"collision 'equilibrium' is relaxation time 1, got {relaxation_time:g}: choose one of {', '.join(COLLISIONS)}"
            )
        self.schedule = schedule
        self.peclet = float(peclet)
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        self.boundary = boundary
        self.offset = float(offset)
        check_number("turbulence_time", turbulence_time, 0.0)
        self.turbulence_time = float(turbulence_time)
        self.coarsen = coarsen
        self.collision = collision
        self.relaxation_time = float(relaxation_time)
        self.solver = "heat kernel" if exact and peclet == 0.0 and collision == "equilibrium" else "lattice"

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """Corrupt clean images to a level.

        Args:
            u0: clean images, [N, C, H, W], H, W >= 2, on the CPU or a CUDA device.
            level: 0 (clean) to K; one for all images or one each. Integers and CPU tensors cost no device synchronisation.
            seed: seed of the velocity field, one for all images or one each; images with the same seed see the same flow.

        Returns:
            [N, C, H, W], type and device of ``u0``; differentiable in ``u0``.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        check_images(u0)
        level, seed = self._levels(level, len(u0), 0), as_batch("seed", seed, len(u0))
        return _Corruption.apply(u0, self, seed, level)[0]

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels k - 1 and k of one trajectory, in one pass: what a network learns to step between.

        Args:
            u0, seed: as in :meth:`__call__`.
            level: k, from 1 to K; one for all images or one each.

        Returns:
            ``(u_{k-1}, u_k)``, [N, C, H, W] each.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        check_images(u0)
        level, seed = self._levels(level, len(u0), 1), as_batch("seed", seed, len(u0))
        return _Corruption.apply(u0, self, seed, level - 1, level)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """All levels of one trajectory, in one pass. The levels carry no gradient; use :meth:`__call__` for that.

        Args:
            u0, seed: as in :meth:`__call__`.

        Yields:
            ``(level, u)`` for levels 0 (a copy of the clean images) to K.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        check_images(u0)
        images = self._images(u0.detach(), as_batch("seed", seed, len(u0)))
        for level in range(self.schedule.levels + 1):
            yield level, images.at(self._levels(level, len(u0), 0)).to(u0.dtype)

    def adjoint(self, w: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """The transposed operator: <adjoint(w), u> = <w, A(u)> for all u, where A is the linear part of the operator.

        Args:
            w: [N, C, H, W], what stands beside the images at ``level``.
            level, seed: as in :meth:`__call__`.

        Returns:
            [N, C, H, W], type and device of ``w``.

        Raises:
            ValueError: if an argument has the wrong shape, type or range.
        """
        check_images(w)
        self._check_gradient()
        level, seed = self._levels(level, len(w), 0), as_batch("seed", seed, len(w))
        with torch.no_grad():
            return _transposed(self, w, seed, level).to(w.dtype)

    def velocity(
        self, seed: Integers, height: int, width: int, device: torch.device | str = "cpu", sigma: float = 0.0
    ) -> torch.Tensor:
        """The velocity fields that these seeds stand for, in units of V: float32 [N, 2, height, width].

        ``sigma`` is the moment, as a blur width [pixels]; it matters only where the flow changes in time.
        """
        # The flow's clock ticks in L / V, and t V / L = Pe Fo = Pe sigma^2 / (2 L^2).
        time = self.turbulence_time * self.peclet * 0.5 * (sigma / min(height, width)) ** 2
        return self.turbulence.velocity(seed, height, width, boundary=self.boundary, device=device, time=time)

    def march(self, height: int, width: int) -> March:
        """How the lattice walks the schedule on images of this size: its grids, and the iterations to each level.

        The heat kernel takes no iterations.
        """
        if self.collision == "equilibrium":
            source = abs(self.offset) + 1.0 if getattr(self.turbulence, "compressible", True) else 0.0
            return March.plan(self.schedule, self.peclet, height, width, source=source, coarsen=self.coarsen)
        theta = 2.0 / 3.0 * (self.relaxation_time - 0.5)  # alpha = theta / 2 = (tau - 1/2) / 3
        return March.plan(self.schedule, self.peclet, height, width, coarsen=False, theta=theta)

    def iterations(self, height: int, width: int):
        import numpy as np

        if self.solver == "heat kernel":
            return np.zeros(self.schedule.levels + 1)
        march = self.march(height, width)
        cells = np.array([grid.factor**-2.0 for grid in march.grids])
        before = np.concatenate([[0.0], np.cumsum(cells * [grid.iterations for grid in march.grids])])
        return before[march.grid] + cells[march.grid] * (march.anchor + (march.partial_theta > 0.0))

    def _images(self, u0: torch.Tensor, seed: torch.Tensor) -> _Images | _BlurredImages:
        return _BlurredImages(self, u0) if self.solver == "heat kernel" else _Images(self, u0, seed)

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
    """The operator for autograd: images at one level or at several of one trajectory. Backward is the adjoint, from seeds alone."""

    @staticmethod
    def forward(ctx, u0: torch.Tensor, operator: AdvectionDiffusion, seed: torch.Tensor, *levels: torch.Tensor):
        if ctx.needs_input_grad[0]:
            operator._check_gradient()
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        images = operator._images(u0, seed)
        return tuple(images.at(level).to(u0.dtype) for level in levels)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):
        through = (_transposed(ctx.operator, w, ctx.seed, k) for w, k in zip(gradients, ctx.levels, strict=True))
        return sum(through).to(gradients[0].dtype), None, None, *[None] * len(ctx.levels)


class _Flow:
    """The velocity fields of a batch along the march, and the iterations in them."""

    def __init__(self, operator: AdvectionDiffusion, u: torch.Tensor, seed: torch.Tensor, adjoint: bool) -> None:
        self.operator = operator
        self.seed = seed
        self.size = tuple(u.shape[2:])
        self.device = u.device
        self.plan = operator.march(*self.size)
        self.periodic = operator.boundary == "periodic"
        self.adjoint = adjoint
        textbook = operator.collision != "equilibrium"
        self.dtype = torch.float64 if u.dtype == torch.float64 and not textbook else torch.float32
        # The adjoint is that of the linear part.
        offset = 0.0 if adjoint else operator.offset
        if textbook:
            populations = Populations(operator.collision, operator.relaxation_time, self.periodic)
            self.sweeps = [PopulationSweep(grid, offset, self.periodic, adjoint, populations) for grid in self.plan.grids]
        else:
            self.sweeps = [Sweep(grid, offset, self.periodic, adjoint) for grid in self.plan.grids]
        # A flow that changes is frozen for so many iterations at a time, on each grid; one that does not, for ever.
        ticks = operator.turbulence_time * operator.peclet / (2.0 * min(self.size) ** 2) * FREEZES_PER_TURNOVER
        self.freeze = [
            max(1, round(1.0 / (ticks * grid.factor**2 * grid.theta[1]))) if ticks > 0.0 else FOR_EVER for grid in self.plan.grids
        ]
        # The field in force as the iterations use it, on the pixel grid and the coarser ones that were reached; what it was made
        # from on the last of these, while there is a coarser one to come; its moment.
        self.fields: list[torch.Tensor] = []
        self.field: torch.Tensor | None = None
        self.moment: tuple[int, int] | None = None

    def start(self, u0: torch.Tensor) -> torch.Tensor:
        """The state of clean images."""
        return self.sweeps[0].start(u0.to(self.dtype), self._velocity(0, 0, torch.arange(len(u0))))

    def march(self, grid: int, u: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, stop: torch.Tensor) -> None:
        """Take the images (``rows`` of the batch) from iteration ``first`` to ``stop`` (int32, one each; for the adjoint back)."""
        if bool((first == stop).all()):
            return
        length = self.freeze[grid]
        spells = range(int(first.min()) // length, -(-int(stop.max()) // length))
        for spell in reversed(spells) if self.adjoint else spells:
            begin, end = spell * length, min((spell + 1) * length, FOR_EVER)
            velocity = self._velocity(grid, spell, rows)
            self.sweeps[grid].march(u, velocity, first.clamp(begin, end), stop.clamp(begin, end), len(self.seed))

    def partial(self, grid: int, u: torch.Tensor, rows: torch.Tensor, done: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """One iteration of the given lattice temperatures (float64, one each) after ``done`` full ones."""
        theta = _on_device(theta.to(self.dtype), u)
        spell_of = done // self.freeze[grid]
        spells = spell_of.unique().tolist()
        if len(spells) == 1:
            return self.sweeps[grid].read(u, self._velocity(grid, spells[0], rows), theta)
        parts = [torch.nonzero(spell_of == spell).flatten() for spell in spells]
        read = []
        for spell, part in zip(spells, parts, strict=True):
            index = _on_device(part, u)
            read.append(self.sweeps[grid].read(u[index], self._velocity(grid, spell, rows[part]), theta[index]))
        return torch.cat(read)[_on_device(torch.argsort(torch.cat(parts)), u)]

    def _velocity(self, grid: int, spell: int, rows: torch.Tensor) -> torch.Tensor:
        """The fields in force on a grid during a spell, for some images of the batch."""
        frozen = self.freeze[grid] == FOR_EVER
        moment = None if frozen else (grid, spell)
        if not self.fields or moment != self.moment:
            sigma = 0.0 if frozen else self.plan.grids[grid].sigma2((spell + 0.5) * self.freeze[grid]) ** 0.5
            if self.operator.peclet > 0.0:
                self.field = self.operator.velocity(self.seed, *self.size, self.device, sigma=sigma).to(self.dtype)
            else:
                self.field = torch.zeros((len(self.seed), 2, *self.size), dtype=self.dtype, device=self.device)
            self.fields, self.moment = [], moment
        while len(self.fields) <= grid:
            here = self.plan.grids[len(self.fields)]
            if here.factor > 1:
                self.field = coarser_velocity(self.field, self.periodic)
            # The step is that of most iterations: the few sharp ones and the partial ones are shorter.
            self.fields.append(curved(self.field, here.velocity_per_theta * here.theta[1], self.periodic))
        if len(self.fields) == len(self.plan.grids):
            self.field = None
        velocity = self.fields[grid]
        return velocity if len(rows) == len(velocity) else velocity[_on_device(rows, velocity)]


@dataclass
class _Party:
    """Images of the batch (``rows``, int64) that stand on one grid: their state, and the iterations behind each (int32)."""

    rows: torch.Tensor
    state: torch.Tensor
    done: torch.Tensor

    def take(self, chosen: torch.Tensor) -> _Party:
        """The chosen ones (bool, one each)."""
        if bool(chosen.all()):
            return self
        index = torch.nonzero(chosen).flatten()
        return _Party(self.rows[index], self.state[_on_device(index, self.state)], self.done[index])

    def joined(self, other: _Party | None) -> _Party:
        """Both parties as one, in the order of the batch."""
        if other is None:
            return self
        rows = torch.cat([self.rows, other.rows])
        order = torch.argsort(rows)
        state = torch.cat([self.state, other.state])[_on_device(order, self.state)]
        return _Party(rows[order], state, torch.cat([self.done, other.done])[order])


class _Images:
    """A batch of images on its way along the trajectory. Levels may be asked for in any non-decreasing order, image by image."""

    def __init__(self, operator: AdvectionDiffusion, u0: torch.Tensor, seed: torch.Tensor) -> None:
        self.flow = _Flow(operator, u0, seed, adjoint=False)
        start = _Party(torch.arange(len(u0)), self.flow.start(u0), torch.zeros(len(u0), dtype=torch.int32))
        self.parties: list[_Party | None] = [start, *[None] * (len(self.flow.plan.grids) - 1)]

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """March every image to its level (int64, one each) and read it off."""
        plan = self.flow.plan
        out = None
        arriving: _Party | None = None
        for index, grid in enumerate(plan.grids):
            party = arriving.joined(self.parties[index]) if arriving is not None else self.parties[index]
            if party is None:
                continue
            wanted = level[party.rows]
            stays = torch.from_numpy(plan.grid)[wanted] == index
            stop = torch.where(stays, torch.from_numpy(plan.anchor)[wanted], grid.iterations)
            self.flow.march(index, party.state, party.rows, party.done, stop)
            party.done = stop
            arriving, self.parties[index] = None, None
            if bool(stays.any()):
                here = self.parties[index] = party.take(stays)
                theta = torch.from_numpy(plan.partial_theta)[level[here.rows]]
                picture = self.flow.partial(index, here.state, here.rows, here.done, theta)
                for _ in range(index):
                    picture = finer(picture, self.flow.periodic)
                if len(here.rows) == len(level):
                    out = picture
                else:
                    out = picture.new_empty((len(level), *picture.shape[1:])) if out is None else out
                    out[_on_device(here.rows, out)] = picture
            if not bool(stays.all()):
                leaving = party.take(~stays)
                arriving = _Party(leaving.rows, coarser(leaving.state), torch.zeros_like(leaving.done))
        return out


class _BlurredImages:
    """A batch of images on its way where nothing flows."""

    def __init__(self, operator: AdvectionDiffusion, u0: torch.Tensor) -> None:
        self.sigma = torch.tensor(operator.schedule.sigma)
        self.periodic = operator.boundary == "periodic"
        self.u0 = u0.to(torch.float64 if u0.dtype == torch.float64 else torch.float32, copy=True)

    def at(self, level: torch.Tensor) -> torch.Tensor:
        """As :meth:`_Images.at`, in any order."""
        return blur(self.u0, self.sigma[level], self.periodic)


def _transposed(operator: AdvectionDiffusion, w: torch.Tensor, seed: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The adjoint of :meth:`_Images.at` for one level an image: every step transposed, in the opposite order."""
    if operator.solver == "heat kernel":
        return _BlurredImages(operator, w).at(level)  # a blur is its own transpose
    flow = _Flow(operator, w, seed, adjoint=True)
    plan = flow.plan
    w = w.to(flow.dtype)
    grid_of = torch.from_numpy(plan.grid)[level]
    arriving: _Party | None = None
    for index in range(int(grid_of.max()), -1, -1):
        rows = torch.nonzero(grid_of == index).flatten()
        party = arriving
        if len(rows):
            picture = w if len(rows) == len(w) else w[_on_device(rows, w)]
            for _ in range(index):
                picture = _transpose_of_finer(picture, flow.periodic)
            theta = torch.from_numpy(plan.partial_theta)[level[rows]]
            done = torch.from_numpy(plan.anchor)[level[rows]]
            state = flow.partial(index, picture.contiguous(), rows, done, theta)
            party = _Party(rows, state, done).joined(arriving)
        flow.march(index, party.state, party.rows, torch.zeros_like(party.done), party.done)
        if index > 0:
            # The transpose of a mean over four cells gives each of them a quarter.
            state = party.state.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4
            done = torch.full_like(party.done, plan.grids[index - 1].iterations)
            arriving = _Party(party.rows, state, done)
    return party.state


def _transpose_of_finer(w: torch.Tensor, periodic: bool) -> torch.Tensor:
    with torch.enable_grad():
        coarse = w.new_zeros((*w.shape[:2], w.shape[2] // 2, w.shape[3] // 2)).requires_grad_()
        (result,) = torch.autograd.grad(finer(coarse, periodic), coarse, w)
    return result


def _on_device(small: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A small tensor made on the CPU, queued to where ``like`` is: nothing waits."""
    return small.to(like.device, non_blocking=True)
