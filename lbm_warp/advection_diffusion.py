"""The corruption operator: images carried by turbulence while they blur.

    du/dt + div(v u) = div(alpha grad u)

Two numbers control it, so that images of any size are corrupted alike: the Fourier number of a level, Fo = alpha t / L^2
(:class:`Schedule`), and the Peclet number, Pe = V L / alpha. L is the shorter side of the image and V the rms of one velocity
component. A particle travels about Pe Fo image sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from lbm_warp import sensitivity, trajectory
from lbm_warp.checks import (
    Device,
    InputError,
    Integers,
    as_batch,
    as_images,
    check_boundary,
    check_levels,
    check_no_tangent,
    check_number,
    check_object,
)
from lbm_warp.flow import STEADY, Clock, Flow, sorted_like, sorting
from lbm_warp.heat import blur
from lbm_warp.interop import check_no_transform, not_traced
from lbm_warp.medium import AroundWalls, Medium
from lbm_warp.operator import Operator
from lbm_warp.planner import DEFAULT_SCHEME, Plan, Scheme
from lbm_warp.schedule import Schedule
from lbm_warp.turbulence import CurlNoise, Turbulence


class AdvectionDiffusion(Operator):
    """Advection-diffusion of a batch of images up to the levels of a schedule, by a D2Q9 lattice Boltzmann scheme.

    The scheme (relaxation time 1, adjustable lattice temperature: ``lbm_warp.planner``) conserves the mass of every channel. In a
    resolved flow (Pe below about L / 3) all weights are non-negative, so values stay in the range of the input up to the error in a
    flat image. Images do not affect each other: on the CPU a result is the same bit for bit in every batch. The operator is linear
    and differentiable in the images; backward is one pass of the adjoint scheme, without stored states.

    Images may be float16, bfloat16 (both computed in float32), float32 or float64; results have the same dtype.

    Args:
        schedule: blur width of every level.
        peclet: advection relative to diffusion, >= 0. Zero is the heat equation (inverse heat dissipation). A tensor of one number
            that needs a gradient gets one (``lbm_warp.sensitivity``); it is read at every call.
        turbulence: generator of the velocity fields, by default :class:`CurlNoise`. A steady field that needs a gradient gets one,
            whatever it is made from. :meth:`trajectory` and :meth:`adjoint` have no gradient in the velocity and the Peclet number.
        boundary: ``wall`` (no flow and no diffusion through the border) or ``periodic``.
        offset: density c of a background, -1e6 to 1e6: the operator is A(u + c) - c. It has an effect only in a compressible flow,
            which turns a background into structured noise. The research code published with the paper corresponds to 9.5.
        turbulence_time: rate of change of the flow, >= 0. 0 is a steady flow. At 1 an eddy as large as the image turns over in its
            own time L / V, smaller eddies faster by Kolmogorov's law.
        coarsen: continue at half the resolution, repeatedly, once the image is blurred by four cells and as long as the flow stays
            resolved. The cost of a trajectory then grows with the area of the image instead of its square. Only grids with an even
            number of cells along both sides are coarsened.
        medium: a diffusivity that varies, walls inside the images, and sources, all by default absent. The images are coarsened
            only where that holds: see :class:`Medium`.
        exact: solve the heat equation in Fourier space (``lbm_warp.heat``) if the Peclet number is zero and there is no medium,
            instead of on the lattice.
        scheme: the numbers of the scheme.

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
        medium: Medium | None = None,
        exact: bool = True,
        scheme: Scheme = DEFAULT_SCHEME,
    ) -> None:
        check_number("offset", offset, -1e6, 1e6)
        check_number("turbulence_time", turbulence_time, 0.0)
        check_boundary(boundary)
        check_object("schedule", schedule, Schedule)
        self.schedule = schedule
        self.levels = schedule.levels
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        check_object("turbulence", self.turbulence, Turbulence)
        self.boundary = boundary
        self.offset = float(offset)
        self.turbulence_time = float(turbulence_time)
        self.coarsen = coarsen
        self.exact = exact
        self.medium = medium
        self.scheme = scheme
        if medium is not None:
            check_object("medium", medium, Medium)
            self.scheme = medium.scheme(scheme, boundary == "periodic")
            self.turbulence = self.turbulence if medium.walls is None else AroundWalls(self.turbulence, medium.walls)
        self._peclet = peclet
        if isinstance(peclet, torch.Tensor) and peclet.numel() != 1:
            raise InputError(f"peclet must be one number, got a tensor of shape {list(peclet.shape)}")
        check_number("peclet", self.peclet if isinstance(peclet, torch.Tensor) else peclet, 0.0)

    @property
    def peclet(self) -> float:  # type: ignore[override]
        """The Peclet number, read now if it is a tensor."""
        return float(self._peclet.detach() if isinstance(self._peclet, torch.Tensor) else self._peclet)

    @property
    def solver(self) -> str:
        """``heat kernel`` or ``lattice``."""
        still = not isinstance(self._peclet, torch.Tensor) and self.peclet == 0.0
        return "heat kernel" if self.exact and still and self.medium is None else "lattice"

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the operator is linear: without a source in the medium, and without a flow or without a background."""
        return (self.offset == 0.0 or self.peclet == 0.0) and (self.medium is None or self.medium.source is None)

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the seed matters: there is a flow that depends on it."""
        return self.peclet > 0.0 and self.turbulence.random

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether every cosine mode is multiplied by a factor: without a flow and a medium, between walls."""
        return self.peclet == 0.0 and self.boundary == "wall" and self.medium is None

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Whether the flow changes in time."""
        return self.peclet * self.turbulence_time > 0.0

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return self.at(u0, (level,), seed)[0]

    @not_traced
    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`Operator.at`, in one pass if no image's level falls and images with a higher level have higher ones throughout.

        Raises:
            InputError: if the velocity needs a gradient and changes in time, or inside a transform of torch.func.
        """
        if self.solver == "heat kernel":
            sigma, u = torch.tensor(self.schedule.sigma, device="cpu"), u0.to(_computed(u0.dtype))
            return tuple(blur(u, sigma[level], self.boundary == "periodic").to(u0.dtype) for level in levels)
        check_no_transform()
        if not _in_one_pass(levels):
            return tuple(self.apply(u0, level, seed) for level in levels)
        now, graded = self._now(), torch.is_grad_enabled()
        peclet = self._peclet if isinstance(self._peclet, torch.Tensor) else torch.full((), now.peclet, device=u0.device)
        check_no_tangent("the Peclet number", peclet)
        learned = graded and peclet.requires_grad
        if learned and self.turbulence_time > 0.0:
            raise InputError(STEADY)
        field = None
        if learned or (graded and now.peclet > 0.0 and self.turbulence_time == 0.0):
            field = self.turbulence.velocity(seed, *u0.shape[2:], boundary=self.boundary, device=u0.device)
            check_no_tangent("the velocity", field)
            learned |= field.requires_grad
        flow = now._flow(u0, seed, levels, field, graded)
        if learned:
            return _Physics.apply(u0, field, peclet, now, seed, flow, *levels)
        del field
        return _Forward.apply(u0, now, seed, flow, *levels)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`Operator.trajectory`, in one pass."""
        if self.solver == "heat kernel":
            yield from super().trajectory(u0, seed)
            return
        u0 = as_images(u0)
        levels = [torch.full((len(u0),), level, device="cpu") for level in range(self.levels + 1)]
        with torch.no_grad():
            flow = self._now()._flow(u0, as_batch("seed", seed, len(u0)), levels)
        u = u0.detach().to(flow.dtype, copy=True)
        for level, image in enumerate(trajectory.forward(u, flow)):
            yield level, image.to(u0.dtype)

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
        w = as_images(w)
        level = check_levels(level, len(w), 0, self.levels)
        if self.solver == "heat kernel":
            return self.apply(w, level, torch.zeros_like(level))  # The heat kernel is symmetric.
        check_no_transform()
        return _Adjoint.apply(self._now(), as_batch("seed", seed, len(w)), (level,), w)

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
            return super().iterations(height, width)
        return self.plan(height, width).iterations

    def _now(self) -> AdvectionDiffusion:
        """The operator with the Peclet number as it is now: backward must not see a tensor that has changed since."""
        if not isinstance(self._peclet, torch.Tensor):
            return self
        operator, peclet = copy(self), self.peclet
        check_number("peclet", peclet, 0.0)
        operator._peclet = peclet
        return operator

    def _flow(
        self,
        u: torch.Tensor,
        seed: torch.Tensor,
        levels: Sequence[torch.Tensor],
        field: torch.Tensor | None = None,
        graded: bool = False,
    ) -> Flow:
        """The flow of images like ``u`` on their way to some levels, and the plan of their iterations.

        ``field`` is the velocity, if it is known. With ``graded`` a flow that changes in time must not need a gradient.
        """
        size = (u.shape[2], u.shape[3])
        if self.medium is not None:
            self.medium.check_fits(len(u), *size)
        plan, clock = self.plan(*size), Clock(self.peclet, self.turbulence_time, min(size))
        interval = clock.intervals(plan, self.scheme)
        where = (size, self.boundary, plan, interval, _computed(u.dtype), u.device)
        return Flow(self.turbulence, clock, seed, levels, *where, field, graded, self.offset, self.medium)


class _Forward(torch.autograd.Function):
    """The operator in autograd. Backward needs the seeds alone: it is the adjoint of the linear part."""

    @staticmethod
    def forward(
        ctx: Any, u0: torch.Tensor, operator: AdvectionDiffusion, seed: torch.Tensor, flow: Flow, *levels: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        ctx.set_materialize_grads(False)
        order = flow.order
        u = sorted_like(u0.to(flow.dtype), order).contiguous()
        u = u.clone() if u.data_ptr() == u0.data_ptr() else u  # the iterations overwrite it
        images = trajectory.forward(u, flow)
        return tuple(sorted_like(image, torch.argsort(order)).to(u0.dtype) for image in images)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        # A result that the loss does not use costs nothing.
        used = [(w, level) for w, level in zip(gradients, ctx.levels, strict=True) if w is not None]
        w = _Adjoint.apply(ctx.operator, ctx.seed, tuple(level for _, level in used), *(w for w, _ in used)) if used else None
        return w, None, None, None, *[None] * len(ctx.levels)

    @staticmethod
    def jvp(ctx: Any, u: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
        return _linear(ctx.operator, u, ctx.seed, ctx.levels)


class _Physics(torch.autograd.Function):
    """As :class:`_Forward`, with gradients of the velocity [N, 2, H, W] and the Peclet number; not differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any,
        u0: torch.Tensor,
        field: torch.Tensor,
        peclet: torch.Tensor,
        operator: AdvectionDiffusion,
        seed: torch.Tensor,
        flow: Flow,
        *levels: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(u0, field, peclet)
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        return _Forward.apply(u0, operator, seed, flow, *levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *images: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        u0, field, peclet = ctx.saved_tensors
        flow = ctx.operator._flow(u0, ctx.seed, ctx.levels, field)
        order, back = flow.order, torch.argsort(flow.order)
        u, *gradients = (sorted_like(tensor.to(flow.dtype).contiguous(), order) for tensor in (u0, *images))
        w, moments = sensitivity.gradients(u, gradients, flow)
        moments = [None if m is None else sorted_like(m, back) for m in moments]
        velocity, number = sensitivity.of_velocity(moments, field, peclet, flow)
        return sorted_like(w, back).to(u0.dtype), velocity, number, None, None, None, *[None] * len(ctx.levels)


class _Adjoint(torch.autograd.Function):
    """The transpose of the operator's linear part in autograd; it is linear too, and its backward is that linear part."""

    @staticmethod
    def forward(
        ctx: Any, operator: AdvectionDiffusion, seed: torch.Tensor, levels: tuple[torch.Tensor, ...], *images: torch.Tensor
    ) -> torch.Tensor:
        ctx.operator, ctx.seed, ctx.levels = operator, seed, levels
        flow = operator._flow(images[0], seed, levels)
        w = trajectory.adjoint([sorted_like(w.to(flow.dtype), flow.order) for w in images], flow)
        return sorted_like(w, torch.argsort(flow.order)).to(images[0].dtype)

    @staticmethod
    def backward(ctx: Any, u: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, None, *_linear(ctx.operator, u, ctx.seed, ctx.levels)


def _linear(
    operator: AdvectionDiffusion, u: torch.Tensor, seed: torch.Tensor, levels: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The operator's linear part."""
    flow = operator._flow(u, seed, levels)
    flow.homogeneous = True
    return _Forward.apply(u, operator, seed, flow, *levels)


def _in_one_pass(levels: Sequence[torch.Tensor]) -> bool:
    """Whether no image's level falls from one of the levels to the next, and all levels fall in one order of the images."""
    order = sorting(levels)
    rising = all(bool((before <= after).all()) for before, after in pairwise(levels))
    return rising and all(bool((level[order].diff() <= 0).all()) for level in levels)


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that images of this dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
