"""Gradients in the physics: with respect to the velocity and the Peclet number, by recomputation.

An iteration is u' = W(q) u with the displacement q theta of every cell, q = Pe / (2 L) v. With the gradient w' of u', cell x adds

    dL/dq_x = theta (u + c)(x) sum_ij phi_i'(u_x) phi_j(u_y) w'(x + c_ij)

to the gradient of its displacement, c the background; dL/dq_y likewise. This needs the states before all iterations. They are
computed a second time from checkpoints, so that the memory grows with the square root of the number of iterations. The plan (number
and lattice temperatures of the iterations) counts as constant. It depends on the Peclet number where the flow is fast for its grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lbm_warp.grids import midpoint_velocity, restrict_velocity
from lbm_warp.interop import WARP_DTYPES, launch
from lbm_warp.kernels.sensitivity import displacement_gradient_kernel
from lbm_warp.trajectory import Coarsen, Iterate, Lattice, ReadOut, stages


def gradients(
    u: torch.Tensor, images: Sequence[torch.Tensor], lattice: Lattice, levels: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Gradients of a loss with respect to the clean images and the displacements.

    Args:
        u: clean images, sorted like ``lattice.flow``, in its dtype.
        images: gradients of the loss with respect to the images at each of the levels, sorted too.
        lattice, levels: as for ``trajectory.forward``; the flow is steady.

    Returns:
        The gradient [N, C, H, W] of ``u``, and those of q [N, 2, height, width] on every grid that was reached, else None.
    """
    walk, before = list(stages(lattice.plan, levels)), []
    for stage in walk:
        before.append(u)
        if isinstance(stage, Iterate):
            u = stage.apply(u.clone(), lattice)
        elif isinstance(stage, Coarsen):
            u = stage.apply(u, lattice)
    w: torch.Tensor | None = None
    displacements: list[torch.Tensor | None] = [None] * len(lattice.plan.grids)
    for stage, u in zip(reversed(walk), reversed(before), strict=True):
        if isinstance(stage, Coarsen):
            w = None if w is None else stage.transposed(w, lattice)
            continue
        displacement = displacements[stage.grid]
        if displacement is None:
            displacement = displacements[stage.grid] = u.new_zeros((len(lattice.flow.order), 2, *u.shape[2:]))
        if isinstance(stage, ReadOut):
            theta = stage.theta.to(u.device, u.dtype)
            added = stage.restricted(images[stage.output], lattice)
            for velocity, part in lattice.flow.at(stage.grid, stage.rows, stage.done):
                into = displacement[stage.rows][part]
                _add(into, lattice, stage.grid, u[stage.rows][part], added[part], velocity, theta[part])
            w = stage.transposed(w, lattice, images[stage.output])
        elif w is not None:
            w = _iterated(stage, u, w, lattice, displacement)
    assert w is not None, "the last stage reads an image out"
    return w, displacements


def _iterated(stage: Iterate, u: torch.Tensor, w: torch.Tensor, lattice: Lattice, displacement: torch.Tensor) -> torch.Tensor:
    """The gradient before some iterations from that after them; adds to that of the displacements."""
    ((velocity, first, stop),) = lattice.flow.during(stage.grid, stage.first, stage.stop)
    there, back = lattice.stepper(stage.grid), lattice.stepper(stage.grid, adjoint=True)
    grid, begin, end = lattice.plan.grids[stage.grid], int(first.min()), int(stop.max())
    length = math.isqrt(end - begin - 1) + 1
    checkpoints, u = [], u[: len(first)].clone()
    for start in range(begin, end, length):
        checkpoints.append(u.clone())
        there.advance(u, velocity, first.clamp(start, start + length), stop.clamp(start, start + length))
    for start, u in zip(reversed(range(begin, end, length)), reversed(checkpoints), strict=True):
        states = [u]
        for iteration in range(start, min(start + length, end) - 1):
            u = u.clone()
            there.advance(u, velocity, first.clamp(iteration, iteration + 1), stop.clamp(iteration, iteration + 1))
            states.append(u)
        for iteration, u in zip(reversed(range(start, start + len(states))), reversed(states), strict=True):
            here = (first <= iteration) & (iteration < stop)
            theta = torch.where(here, grid.theta[0] if iteration < grid.smooth_from else grid.theta[1], 0.0).to(u.device, u.dtype)
            _add(displacement[: len(u)], lattice, stage.grid, u, w[: len(u)], velocity, theta)
            back.advance(w, velocity, first.clamp(iteration, iteration + 1), stop.clamp(iteration, iteration + 1))
    return w


def _add(
    displacement: torch.Tensor,
    lattice: Lattice,
    grid: int,
    u: torch.Tensor,
    w: torch.Tensor,
    velocity: torch.Tensor,
    theta: torch.Tensor,
) -> None:
    """Add what one iteration of lattice temperature ``theta`` [M] adds to the gradient of the displacements; none where it is 0."""
    numbers = [lattice.plan.grids[grid].velocity_per_theta, lattice.offset, lattice.periodic]
    kernel = displacement_gradient_kernel(WARP_DTYPES[u.dtype])
    batched = [theta, velocity, u.contiguous(), w.contiguous()]
    launch(kernel, (len(u), *u.shape[2:]), batched=batched, inputs=numbers, outputs=[displacement])


def of_velocity(
    displacements: Sequence[torch.Tensor | None], field: torch.Tensor, peclet: torch.Tensor, lattice: Lattice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the velocity in units of V, [N, 2, H, W], and of the Peclet number, from those of the displacements."""
    with torch.enable_grad():
        field, peclet = field.detach().requires_grad_(), peclet.detach().requires_grad_()
        here = field.to(lattice.flow.dtype)
        total = here.new_zeros(())
        for grid, gradient in zip(lattice.plan.grids, displacements, strict=True):
            if grid.factor > 1:
                here = restrict_velocity(here, lattice.periodic)
            if gradient is not None:
                per_theta = peclet * grid.factor / (2.0 * lattice.flow.clock.length)
                q = per_theta * midpoint_velocity(here, per_theta * grid.theta[1], lattice.periodic)
                total = total + (gradient * q).sum()
    of_field, of_peclet = torch.autograd.grad(total, (field, peclet))
    return of_field, of_peclet
