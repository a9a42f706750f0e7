"""Transfer of images and velocities between a grid and one of half its resolution.

Cell values are means over cells on every grid. So restriction does not blur an image, and prolongation is exact to fourth order in
the cell size. Beyond a wall lies the mirror image, in which the velocity normal to the wall has the other sign.

All functions take float32 or float64 tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lbm_warp.interop import WARP_DTYPES, launch
from lbm_warp.kernels.grids import Transfers, transfers

# Signs of a velocity component in the mirror image beyond a wall: normal and tangential to the wall.
NORMAL, TANGENTIAL = -1.0, 1.0


def restrict(u: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 cells: [N, C, H, W] to [N, C, H / 2, W / 2], H and W even."""
    return coarsen(u, u.new_empty((0, 2, *u.shape[2:])), False)[0]


def restrict_transposed(w: torch.Tensor) -> torch.Tensor:
    """The transpose of :func:`restrict`: each of the four cells gets a quarter."""
    return _of_images(_finer, _kernels(w).restrict_transposed, w)


def prolong(u: torch.Tensor, periodic: bool) -> torch.Tensor:
    """Means over the quarters of every cell: [N, C, H, W] to [N, C, 2 H, 2 W]; ``restrict(prolong(u))`` is ``u``.

    Along an axis, the halves of cell i have the means u_i -+ s_i, s_i = (22 (u_{i+1} - u_{i-1}) - 3 (u_{i+2} - u_{i-2})) / 128.
    They are those of the quartic polynomial that has the given means over cells i - 2 to i + 2.
    """
    return _of_images(_finer, _kernels(u).prolong, u, periodic)


def prolong_transposed(w: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The transpose of :func:`prolong`: [N, C, 2 H, 2 W] to [N, C, H, W].

    It is the same formula in every cell, with the mirror images of w beyond the walls.
    """
    return _of_images(_coarser, _kernels(w).prolong_transposed, w, periodic)


def restrict_velocity(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """A velocity on the coarser grid, in the same unit: [N, 2, H, W] to [N, 2, H / 2, W / 2].

    A component's mean has weights (1, 1, 1, 1) / 4 along its own axis and (1, 3, 3, 1) / 8 along the other. This is the curl of the
    stream function, smoothed by (1, 2, 1) / 4 along both axes and subsampled at every other corner. So a field without divergence
    stays without divergence, but a stream function is not needed.
    """
    return coarsen(velocity.new_empty((len(velocity), 0, *velocity.shape[2:])), velocity, periodic)[1]


def coarsen(u: torch.Tensor, velocity: torch.Tensor, periodic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`restrict` of images and :func:`restrict_velocity` of as many velocities or of none, in one launch."""
    half = (u.shape[2] // 2, u.shape[3] // 2)
    coarse, coarse_velocity = u.new_empty((*u.shape[:2], *half)), velocity.new_empty((*velocity.shape[:2], *half))
    kernel = _kernels(u).restrict
    _launch(kernel, [u.contiguous(), velocity.contiguous()], [coarse, coarse_velocity], coarse, [periodic])
    return coarse, coarse_velocity


def restrict_velocity_transposed(w: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The transpose of :func:`restrict_velocity`: [N, 2, H / 2, W / 2] to [N, 2, H, W]."""
    return _finer(_kernels(w).restrict_velocity_transposed, w, periodic)


def _kernels(u: torch.Tensor) -> Transfers:
    return transfers(WARP_DTYPES[u.dtype])


def _of_images(transfer: Callable[..., torch.Tensor], kernel: Any, u: torch.Tensor, *inputs: bool) -> torch.Tensor:
    """What a kernel makes of images [N, C, H, W], one channel at a time."""
    return transfer(kernel, u.flatten(0, 1), *inputs).unflatten(0, u.shape[:2])


def _coarser(kernel: Any, fine: torch.Tensor, *inputs: bool) -> torch.Tensor:
    """What a kernel makes of a batch on the finer grid."""
    coarse = fine.new_empty((*fine.shape[:-2], fine.shape[-2] // 2, fine.shape[-1] // 2))
    _launch(kernel, [fine.contiguous()], [coarse], coarse, inputs)
    return coarse


def _finer(kernel: Any, coarse: torch.Tensor, *inputs: bool) -> torch.Tensor:
    """What a kernel makes of a batch on the coarser grid."""
    fine = coarse.new_empty((*coarse.shape[:-2], 2 * coarse.shape[-2], 2 * coarse.shape[-1]))
    _launch(kernel, [coarse.contiguous()], [fine], coarse, inputs)
    return fine


def _launch(
    kernel: Any,
    sources: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    coarse: torch.Tensor,
    inputs: Sequence[bool],
) -> None:
    """Launch a kernel with one thread for a row of ``coarse`` on a CPU, for a cell of it on a GPU."""
    height, width = coarse.shape[-2:]
    run, runs = (width, 1) if coarse.device.type == "cpu" else (1, width)
    launch(kernel, (len(coarse), height, runs), batched=sources, inputs=[*inputs, run], outputs=targets)


def with_ghost_cells(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """A velocity field [N, 2, H, W] with a ring of ghost cells, [N, 2, H + 2, W + 2]; zero on walls in the linear interpolation."""
    components = []
    for component, own_axis in ((0, 3), (1, 2)):
        field = velocity[:, component : component + 1]
        for axis in (2, 3):
            field = _padded(field, axis, periodic, NORMAL if axis == own_axis else TANGENTIAL)
        components.append(field)
    return torch.cat(components, dim=1)


def _padded(u: torch.Tensor, axis: int, periodic: bool, sign: float) -> torch.Tensor:
    """``u`` with a ghost cell at both ends of an axis: the opposite end, or the mirror image times ``sign``."""
    first, last = u.narrow(axis, 0, 1), u.narrow(axis, u.shape[axis] - 1, 1)
    return torch.cat([last, u, first] if periodic else [sign * first, u, sign * last], dim=axis)
