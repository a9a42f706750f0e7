"""Gradients in the physics: with respect to the velocity and the Peclet number, by recomputation.

The fractions f_c of an iteration are linear in the moments of the flow (``lbm_warp.kernels.rules``), which are polynomials of the
displacement q theta of every cell, q = Pe / (2 L) v. With the gradient w' of u', f_c of cell x has the gradient

    dL/df_c = (u + offset)(x) w'(x + c).

This needs the states before all iterations. They are computed a second time from checkpoints, so that the memory grows with the
square root of the number of iterations. The plan (number and lattice temperatures of the iterations) counts as constant. It depends
on the Peclet number where the flow is fast for its grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lbm_warp.flow import Flow
from lbm_warp.grids import restrict_velocity, restrict_velocity_transposed
from lbm_warp.interop import WARP_DTYPES, launch, launch_backward
from lbm_warp.kernels.sensitivity import moment_gradient_kernel, moments_kernel
from lbm_warp.stepping import advance
from lbm_warp.trajectory import Coarsen, Iterate, ReadOut, stages


def gradients(u: torch.Tensor, images: Sequence[torch.Tensor], flow: Flow) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Gradients of a loss with respect to the clean images and the moments of the displacement.

    Args:
        u: clean images, sorted like ``flow``, in its dtype.
        images: gradients of the loss with respect to the images at each of the levels, sorted too.
        flow: as for ``trajectory.forward``; it is steady.

    Returns:
        The gradient [N, C, H, W] of ``u``, and those of the moments of q, [N, 11, height, width] on every grid that was reached,
        else None.
    """
    walk, before = list(stages(flow.plan, flow.levels)), []
    for stage in walk:
        before.append(u)
        if isinstance(stage, Iterate):
            u = stage.apply(u.clone(), flow)
        elif isinstance(stage, Coarsen):
            u = stage.apply(u, flow)
    w: torch.Tensor | None = None
    moments: list[torch.Tensor | None] = [None] * len(flow.plan.grids)
    for stage, u in zip(reversed(walk), reversed(before), strict=True):
        if isinstance(stage, Coarsen):
            w = None if w is None else stage.transposed(w, flow)
            continue
        total = moments[stage.grid]
        if total is None:
            total = moments[stage.grid] = u.new_zeros((len(flow.order), 11, *u.shape[2:]))
        if isinstance(stage, ReadOut):
            theta = stage.theta.to(u.device, u.dtype)
            _add(total[stage.rows], flow, u[stage.rows], stage.restricted(images[stage.output], flow), theta)
            w = stage.transposed(w, flow, images[stage.output])
        elif w is not None:
            w = _iterated(stage, u, w, flow, total)
    assert w is not None, "the last stage reads an image out"
    return w, moments


def _iterated(stage: Iterate, u: torch.Tensor, w: torch.Tensor, flow: Flow, total: torch.Tensor) -> torch.Tensor:
    """The gradient before some iterations from that after them; adds to that of the moments."""
    runs, u = [], u[: len(stage.first)].clone()
    for weights, theta, count in flow.during(stage.grid, stage.first, stage.stop):
        length = math.isqrt(int(count.max()) - 1) + 1
        checkpoints = []
        for done in range(0, int(count.max()), length):
            checkpoints.append((done, u.clone()))
            advance(u, weights, (count - done).clamp(0, length), flow.periodic)
        runs.append((weights, theta, count, length, checkpoints))
    backward = flow.during(stage.grid, stage.first, stage.stop, adjoint=True)
    for (weights, theta, count, length, checkpoints), (transposed, _, _) in zip(reversed(runs), backward, strict=True):
        for done, u in reversed(checkpoints):
            states = [u]
            for iteration in range(done, min(done + length, int(count.max())) - 1):
                u = u.clone()
                advance(u, weights, (count - iteration).clamp(0, 1), flow.periodic)
                states.append(u)
            for iteration, u in zip(reversed(range(done, done + len(states))), reversed(states), strict=True):
                here = (count - iteration).clamp(0, 1)
                temperature = (theta * here).to(u.device, u.dtype)
                _add(total[: len(here)], flow, u[: len(here)], w[: len(here)], temperature)
                advance(w, transposed, here, flow.periodic)
    return w


def _add(total: torch.Tensor, flow: Flow, u: torch.Tensor, w: torch.Tensor, theta: torch.Tensor) -> None:
    """Add what one iteration of lattice temperature ``theta`` [M] adds to the gradient of the moments; none where it is 0."""
    kernel = moment_gradient_kernel(WARP_DTYPES[u.dtype])
    batched, numbers = [theta, u.contiguous(), w.contiguous()], [flow.offset, flow.periodic]
    launch(kernel, (len(u), *u.shape[2:]), batched=batched, inputs=numbers, outputs=[total])


def of_velocity(
    moments: Sequence[torch.Tensor | None], field: torch.Tensor, peclet: torch.Tensor, flow: Flow
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the velocity in units of V, [N, 2, H, W], and of the Peclet number, from those of the moments of q."""
    fields = [field.to(flow.dtype)]
    while len(fields) < len(moments):
        fields.append(restrict_velocity(fields[-1], flow.periodic))
    of_field, of_peclet = torch.zeros_like(fields[-1]), fields[0].new_zeros(())
    for grid, gradient, here in reversed(list(zip(flow.plan.grids, moments, fields, strict=True))):
        if gradient is not None:
            per_peclet = grid.factor / (2.0 * flow.clock.length)
            of_q = _of_displacement(peclet * per_peclet * here, gradient, flow.periodic)
            of_field = of_field + peclet * per_peclet * of_q
            of_peclet = of_peclet + (of_q * per_peclet * here).sum()
        if grid.factor > 1:
            of_field = restrict_velocity_transposed(of_field, flow.periodic)
    return of_field.to(field.dtype), of_peclet.to(peclet).reshape(peclet.shape)


def _of_displacement(q: torch.Tensor, gradient: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The gradient of q from that of its moments, by the derivative of ``rules.moments`` that Warp makes."""
    result, kernel = torch.zeros_like(q), moments_kernel(WARP_DTYPES[q.dtype])
    launch_backward(kernel, (len(q), *q.shape[2:]), q.contiguous(), [periodic], gradient.contiguous(), result)
    return result
