"""The textbook solver: D2Q9 with stored populations, the yardstick and the oracle of the fast operator."""

from __future__ import annotations

import torch

from lbm_warp.checks import InputError, check_boundary, check_images, check_integer, check_number
from lbm_warp.interop import launch
from lbm_warp.kernels.populations import equilibrium_kernel, stream_collide_kernel


def evolve(
    u0: torch.Tensor, velocity: torch.Tensor, iterations: int, *, relaxation_time: float = 1.0, boundary: str = "wall"
) -> torch.Tensor:
    """Advection-diffusion by BGK on stored populations, started from equilibrium.

    The diffusivity is (relaxation_time - 1/2) / 3 square pixels an iteration; but an equilibrium start diffuses 1/6 in its first
    iteration whatever the relaxation time.

    Args:
        u0: density, float32 [N, C, H, W], H, W >= 2.
        velocity: (u_x, u_y) in pixels an iteration, float32 [N, 2, H, W], well below 1.
        iterations: how many, >= 0.
        relaxation_time: tau of BGK, > 1/2.
        boundary: ``wall`` or ``periodic``.

    Returns:
        float32 [N, C, H, W].

    Raises:
        InputError: if an argument has the wrong shape, type or range.
    """
    check_images(u0)
    check_boundary(boundary)
    check_number("relaxation_time", relaxation_time, 0.5 + 1e-6)
    check_integer("iterations", iterations, 0)
    batch, channels, height, width = u0.shape
    if velocity.shape != (batch, 2, height, width) or velocity.dtype != torch.float32:
        raise InputError(f"velocity must be float32 {[batch, 2, height, width]}, got {velocity.dtype} {list(velocity.shape)}")
    velocity = velocity.contiguous()
    rho = u0.clone(memory_format=torch.contiguous_format)
    f, f_next = (u0.new_empty((batch, channels * 9, height, width)) for _ in range(2))
    launch(equilibrium_kernel, u0.shape, batched=[rho, velocity], outputs=[f])
    for _ in range(iterations):
        launch(
            stream_collide_kernel,
            u0.shape,
            batched=[f, velocity],
            inputs=[relaxation_time, boundary == "periodic"],
            outputs=[rho, f_next],
        )
        f, f_next = f_next, f
    return rho
