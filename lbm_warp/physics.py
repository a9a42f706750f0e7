"""The operator as a linear forward model of deepinv, for its solvers and networks of inverse problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbm_warp.advection_diffusion import AdvectionDiffusion
from lbm_warp.checks import InputError, Integers

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics


def as_physics(operator: AdvectionDiffusion, level: Integers, seed: Integers = 0, **options: Any) -> LinearPhysics:
    """``deepinv.physics.LinearPhysics`` of an operator at a level, with the exact adjoint.

    Args:
        operator: without a background (offset 0), because with one it is not linear.
        level, seed: as for :meth:`AdvectionDiffusion.__call__`, one for all images, or one for each image of every batch.
        options: for LinearPhysics, for example ``noise_model=deepinv.physics.GaussianNoise(0.01)``.

    Raises:
        InputError: if the operator has a background, or deepinv is not installed.
    """
    if operator.offset != 0.0:
        raise InputError(f"as_physics needs a linear operator, without a background: offset must be 0, got {operator.offset:g}")
    try:
        from deepinv.physics import LinearPhysics
    except ImportError as error:
        raise InputError("as_physics needs deepinv: pip install 'beyond-blur[deepinv]'") from error

    return LinearPhysics(
        A=lambda u, **_: operator(u, level, seed), A_adjoint=lambda w, **_: operator.adjoint(w, level, seed), **options
    )
