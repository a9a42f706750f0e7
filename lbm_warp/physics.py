"""The operator as a linear forward model of deepinv, for its solvers and networks of inverse problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbm_warp.checks import InputError, Integers
from lbm_warp.operator import Operator

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics


def as_physics(operator: Operator, level: Integers, seed: Integers = 0, **options: Any) -> LinearPhysics:
    """``deepinv.physics.LinearPhysics`` of an operator at a level, with the exact adjoint.

    Args:
        operator: a linear one; :class:`AdvectionDiffusion` is linear without a background (offset 0).
        level, seed: as for :meth:`Operator.__call__`, one for all images, or one for each image of every batch.
        options: for LinearPhysics, for example ``noise_model=deepinv.physics.GaussianNoise(0.01)``.

    Raises:
        InputError: if the operator is not linear, or deepinv is not installed.
    """
    if not operator.linear:
        name = type(operator).__name__
        how = "with a background, offset must be 0; a medium must have no source"
        raise InputError(f"as_physics needs a linear operator, and this {name} is not: {how}")
    try:
        from deepinv.physics import LinearPhysics
    except ImportError as error:
        raise InputError("as_physics needs deepinv: pip install 'beyond-blur[deepinv]'") from error

    return LinearPhysics(
        A=lambda u, **_: operator(u, level, seed), A_adjoint=lambda w, **_: operator.adjoint(w, level, seed), **options
    )
