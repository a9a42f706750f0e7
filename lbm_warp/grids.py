"""From a grid to one of half its resolution, and back: means over 2 x 2 cells, and a smooth reconstruction that keeps them.

Fields are means over cells on either grid, so going down blurs nothing, and going up adds no blur of its own: to the fourth order
in the size of a cell the finer means are the ones that were there.
"""

from __future__ import annotations

import torch

ACROSS, ALONG = -1.0, 1.0


def coarser(u: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 cells: [N, C, H, W] to [N, C, H / 2, W / 2], H and W even."""
    return (u[..., ::2, ::2] + u[..., ::2, 1::2] + u[..., 1::2, ::2] + u[..., 1::2, 1::2]) / 4


def finer(u: torch.Tensor, periodic: bool) -> torch.Tensor:
    """Means over the halves of every cell along both axes: [N, C, H, W] to [N, C, 2 H, 2 W]. ``coarser`` undoes it.

    Along an axis the two halves are u_i -+ s_i, with s_i from the quartic that has the right mean over the cell and the two on
    either side of it: s_i = (22 (u_{i+1} - u_{i-1}) - 3 (u_{i+2} - u_{i-2})) / 128.
    """
    for axis in (2, 3):
        padded = _padded(u, axis, 2, periodic, ALONG)
        size = u.shape[axis]
        two_low, low, high, two_high = (padded.narrow(axis, start, size) for start in (0, 1, 3, 4))
        slope = (22 * (high - low) - 3 * (two_high - two_low)) / 128
        u = torch.stack([u - slope, u + slope], dim=axis + 1).flatten(axis, axis + 1)
    return u


def coarser_velocity(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The flow on the coarser grid, in the same unit: [N, 2, H, W] to [N, 2, H / 2, W / 2].

    The stream function, smoothed by (1, 2, 1) / 4 along both axes and taken at every other corner, has this curl: a component's
    mean with weights (1, 1, 1, 1) / 4 along itself and (1, 3, 3, 1) / 8 across. So a flow without divergence keeps none, and a
    flow that has no stream function can be brought down as well.
    """
    even, sloped = (1 / 4, 1 / 4, 1 / 4, 1 / 4), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    components = []
    for component, own_axis in ((0, 3), (1, 2)):
        field = velocity[:, component : component + 1]
        for axis in (2, 3):
            # Beyond a wall lies the mirror image: the component across the wall changes its sign there.
            sign, mean = (ACROSS, even) if axis == own_axis else (ALONG, sloped)
            padded = _padded(field, axis, 1, periodic, sign)
            size = field.shape[axis]
            field = sum(weight * padded.narrow(axis, start, size - 1) for start, weight in enumerate(mean))
            field = field.index_select(axis, torch.arange(0, size - 1, 2, device=field.device))
        components.append(field)
    return torch.cat(components, dim=1)


def _padded(u: torch.Tensor, axis: int, cells: int, periodic: bool, sign: float) -> torch.Tensor:
    """The field with ghost cells at both ends of an axis: the other end, or the mirror image times ``sign``."""
    size = u.shape[axis]
    first, last = u.narrow(axis, 0, cells), u.narrow(axis, size - cells, cells)
    if periodic:
        return torch.cat([last, u, first], dim=axis)
    return torch.cat([sign * first.flip(axis), u, sign * last.flip(axis)], dim=axis)
