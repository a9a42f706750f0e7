"""The corruption operator: images carried by turbulence while they blur.

    du/dt + div(v u) = div(alpha grad u)

Two numbers control it, so that images of any size are corrupted alike: the Fourier number of a level, Fo = alpha t / L^2
(:class:`Schedule`), and the Peclet number, Pe = V L / alpha. L is the shorter side of the image and V the rms of one velocity
component. A particle travels about Pe Fo image sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from lbm_warp import sensitivity, trajectory
from lbm_warp.checks import Device, InputError, Integers, as_batch, check_boundary, check_images, check_levels, check_number
from lbm_warp.flow import Clock, Flow, sorted_like
from lbm_warp.heat import blur
from lbm_warp.interop import not_traced
from lbm_warp.planner import DEFAULT_SCHEME, Plan, Scheme
from lbm_warp.schedule import Schedule
from lbm_warp.trajectory import Lattice
from lbm_warp.turbulence import CurlNoise, GivenVelocity, Turbulence


class AdvectionDiffusion:
    """Advection-diffusion of a batch of images up to the levels of a schedule, by a D2Q9 lattice Boltzmann scheme.

    The scheme (relaxation time 1, adjustable lattice temperature: ``lbm_warp.planner``) conserves the mass of every channel. In a
    resolved flow (Pe below about L / 3) all weights are non-negative, so values stay in the range of the input up to the error in a
    flat image. Images do not affect each other: on the CPU a result is the same bit for bit in every batch. The operator is linear
    and differentiable in the images; backward is one pass of the adjoint scheme, without stored states.

    Images may be float16, bfloat16 (both computed in float32), float32 or float64; results have the same dtype.

    Args:
        schedule: blur width of every level.
        peclet: advection relative to diffusion, >= 0. Zero is the heat equation (inverse heat dissipation). A tensor of one number
            that needs a gradient gets one, as does the field of a :class:`GivenVelocity` (``lbm_warp.sensitivity``).
        turbulence: generator of the velocity fields, by default :class:`CurlNoise`.
        boundary: ``wall`` (no flow and no diffusion through the border) or ``periodic``.
        offset: density c of a background, -1e6 to 1e6: the operator is A(u + c) - c. It has an effect only in a compressible flow,
            which turns a background into structured noise. The research code published with the paper corresponds to 9.5.
        turbulence_time: rate of change of the flow, >= 0. 0 is a steady flow. At 1 an eddy as large as the image turns over in its
            own time L / V, smaller eddies faster by Kolmogorov's law.
        coarsen: continue at half the resolution, repeatedly, once the image is blurred by eight cells and as long as the flow stays
            resolved. The cost of a trajectory then grows with the area of the image instead of its square. Only grids with an even
            number of cells along both sides are coarsened.
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
        *,
        peclet: float | torch.Tensor = 8.0,
        turbulence: Turbulence | None = None,
        boundary: str = "wall",
        offset: float = 0.0,
        turbulence_time: float = 0.0,
        coarsen: bool = True,
        exact: bool = True,
        scheme: Scheme = DEFAULT_SCHEME,
    ) -> None:
        self._peclet = peclet if isinstance(peclet, torch.Tensor) else None
        peclet = float(peclet.detach() if isinstance(peclet, torch.Tensor) else peclet)
        check_number("peclet", peclet, 0.0)
        check_number("offset", offset, -1e6, 1e6)
        check_number("turbulence_time", turbulence_time, 0.0)
        check_boundary(boundary)
        self.schedule = schedule
        self.peclet = peclet
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        self.boundary = boundary
        self.offset = float(offset)
        self.turbulence_time = float(turbulence_time)
        self.coarsen = coarsen
        self.solver = "heat kernel" if exact and peclet == 0.0 and self._peclet is None else "lattice"
        self.scheme = scheme

    @not_traced
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
        level = check_levels(level, len(u0), 0, self.schedule.levels)
        return self._images(u0, as_batch("seed", seed, len(u0)), level)[0]

    @not_traced
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
        level = check_levels(level, len(u0), 1, self.schedule.levels)
        return self._images(u0, as_batch("seed", seed, len(u0)), level - 1, level)

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
        seed, levels = as_batch("seed", seed, len(u0)), range(self.schedule.levels + 1)
        each = [torch.full((len(u0),), level) for level in levels]
        if self.solver == "heat kernel":
            images = (self._images(u0.detach(), seed, level)[0] for level in each)
        else:
            lattice = self._lattice(u0, seed, each[-1])
            images = trajectory.forward(u0.detach().to(lattice.flow.dtype, copy=True), lattice, each)
        for level, u in zip(levels, images, strict=True):
            yield level, u.to(u0.dtype)

    @not_traced
    def adjoint(self, w: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """The transpose of A, the linear part of the operator: <adjoint(w), u> = <w, A(u)> for all u.

        Args:
            w: [N, C, H, W], a tensor like the images at ``level``.
            level, seed: as for :meth:`__call__`.

        Returns:
            [N, C, H, W], dtype and device of ``w``, differentiable in ``w``.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        check_images(w)
        level = check_levels(level, len(w), 0, self.schedule.levels)
        if self.solver == "heat kernel":
            return self._images(w, torch.zeros_like(level), level)[0]  # The heat kernel is symmetric.
        return _Adjoint.apply(self, as_batch("seed", seed, len(w)), (level,), w)

    def velocity(
        self, seed: Integers, height: int, width: int, device: Device = "cpu", sigma: float = 0.0, span: float = 0.0
    ) -> torch.Tensor:
        """The velocity fields of these seeds in units of V, float32 [N, 2, height, width].

        ``sigma`` is the time, as a blur width [pixels], and ``span`` the length of an interval around it, as an increase of sigma^2
        [square pixels]. They matter only for a flow that changes in time.
        """
        clock = Clock(self.peclet, self.turbulence_time, min(height, width))
        times = {"time": clock.time(sigma**2), "span": clock.time(span)}
        return self.turbulence.velocity(seed, height, width, boundary=self.boundary, device=device, **times)

    def plan(self, height: int, width: int) -> Plan:
        """The iterations on the lattice for images of this size [pixels]; the heat kernel does not use it."""
        source = abs(self.offset) + 1.0 if self.turbulence.compressible else 0.0
        return Plan.build(self.schedule, self.peclet, height, width, source=source, coarsen=self.coarsen, scheme=self.scheme)

    def iterations(self, height: int, width: int) -> np.ndarray:
        """Lattice iterations from the clean image to levels 0..K, float64 [K + 1]: see :attr:`Plan.iterations`.

        Zero for the heat kernel.

        Args:
            height, width: size of the images [pixels].
        """
        if self.solver == "heat kernel":
            return np.zeros(self.schedule.levels + 1)
        return self.plan(height, width).iterations

    def _images(self, u0: torch.Tensor, seed: torch.Tensor, *levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images at one or several levels, int64 [N] each, which rise and fall together."""
        if self.solver == "lattice":
            given = isinstance(self.turbulence, GivenVelocity) and self.turbulence.field.requires_grad
            if torch.is_grad_enabled() and (given or (self._peclet is not None and self._peclet.requires_grad)):
                return self._images_of_physics(u0, seed, *levels)
            return _Forward.apply(u0, self, seed, *levels)
        sigma, u = torch.tensor(self.schedule.sigma), u0.to(_computed(u0.dtype))
        return tuple(blur(u, sigma[level], self.boundary == "periodic").to(u0.dtype) for level in levels)

    def _images_of_physics(self, u0: torch.Tensor, seed: torch.Tensor, *levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`_images`, differentiable in the velocity and the Peclet number as well."""
        if self.turbulence_time > 0.0:
            raise InputError("gradients in the velocity or the Peclet number need a steady flow: turbulence_time must be 0")
        field = self.turbulence.velocity(seed, *u0.shape[2:], boundary=self.boundary, device=u0.device)
        peclet = torch.full((), self.peclet, device=u0.device) if self._peclet is None else self._peclet
        return _Physics.apply(u0, field, peclet, self, seed, *levels)

    def _lattice(self, u: torch.Tensor, seed: torch.Tensor, last: torch.Tensor) -> Lattice:
        """What the stages of images like ``u`` work with, sorted by their last level, the highest first."""
        order = torch.argsort(last, descending=True, stable=True)
        size = tuple(u.shape[2:])
        plan, clock = self.plan(*size), Clock(self.peclet, self.turbulence_time, min(size))
        interval = clock.intervals(plan, self.scheme)
        flow = Flow(self.turbulence, clock, seed, order, size, self.boundary, plan, interval, _computed(u.dtype), u.device)
        return Lattice(plan, flow, self.offset)


class _Forward(torch.autograd.Function):
    """The operator in autograd. Backward needs the seeds alone: it is the adjoint of the linear part."""

    @staticmethod
    def forward(ctx, u0: torch.Tensor, operator: AdvectionDiffusion, seed: torch.Tensor, *levels: torch.Tensor):
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        ctx.set_materialize_grads(False)
        lattice = operator._lattice(u0, seed, levels[-1])
        order = lattice.flow.order
        u = sorted_like(u0.to(lattice.flow.dtype), order).contiguous()
        u = u.clone() if u.data_ptr() == u0.data_ptr() else u  # the iterations overwrite it
        images = trajectory.forward(u, lattice, [level[order] for level in levels])
        return tuple(sorted_like(image, torch.argsort(order)).to(u0.dtype) for image in images)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor | None):
        # A result that the loss does not use costs nothing.
        used = [(w, level) for w, level in zip(gradients, ctx.levels, strict=True) if w is not None]
        w = _Adjoint.apply(ctx.operator, ctx.seed, tuple(level for _, level in used), *(w for w, _ in used)) if used else None
        return w, None, None, *[None] * len(ctx.levels)


class _Physics(torch.autograd.Function):
    """As :class:`_Forward`, with gradients of the velocity [N, 2, H, W] and the Peclet number; not differentiable twice."""

    @staticmethod
    def forward(ctx, u0, field, peclet, operator: AdvectionDiffusion, seed: torch.Tensor, *levels: torch.Tensor):
        ctx.save_for_backward(u0, field, peclet)
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        return _Forward.apply(u0, operator, seed, *levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, *images: torch.Tensor):
        u0, field, peclet = ctx.saved_tensors
        lattice = ctx.operator._lattice(u0, ctx.seed, ctx.levels[-1])
        order, back = lattice.flow.order, torch.argsort(lattice.flow.order)
        u, *images = (sorted_like(tensor.to(lattice.flow.dtype).contiguous(), order) for tensor in (u0, *images))
        w, displacements = sensitivity.gradients(u, images, lattice, [level[order] for level in ctx.levels])
        displacements = [None if q is None else sorted_like(q, back) for q in displacements]
        velocity, number = sensitivity.of_velocity(displacements, field, peclet, lattice)
        return sorted_like(w, back).to(u0.dtype), velocity, number, None, None, *[None] * len(ctx.levels)


class _Adjoint(torch.autograd.Function):
    """The transpose of the operator's linear part in autograd; it is linear too, and its backward is that linear part."""

    @staticmethod
    def forward(ctx, operator: AdvectionDiffusion, seed: torch.Tensor, levels: tuple[torch.Tensor, ...], *images: torch.Tensor):
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        lattice = operator._lattice(images[0], seed, levels[-1])
        order = lattice.flow.order
        gradients = [sorted_like(w.to(lattice.flow.dtype), order) for w in images]
        w = trajectory.adjoint(gradients, lattice, [level[order] for level in levels])
        return sorted_like(w, torch.argsort(order)).to(images[0].dtype)

    @staticmethod
    def backward(ctx, u: torch.Tensor):
        linear = copy(ctx.operator)
        linear.offset = 0.0
        return None, None, None, *_Forward.apply(u, linear, ctx.seed, *ctx.levels)


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that images of this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
