"""What fields and flows need on a grid: its coarser neighbour and the way back, and the flow's own curvature.

From a grid to one of half its resolution go means over 2 x 2 cells, and back a smooth reconstruction that keeps them.

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


def curved(velocity: torch.Tensor, step: float, periodic: bool) -> torch.Tensor:
    """The velocity whose straight steps end where the flow's own curved ones do, v + step / 2 (v . grad) v: second order in time.

    An iteration moves a cell's content by one constant velocity. With v itself it would leave a curved streamline on the outside
    (by angle x step / 2 in an eddy), and what flows together in one place would not be what flows apart in another; the second
    term cancels both errors to the next order.

    Args:
        velocity: (u_x, u_y) in units of V, [N, 2, H, W].
        step: how far V goes in an iteration [cells].
        periodic: what lies beyond the border.

    Returns:
        A new tensor of the same shape and type.
    """
    result = velocity.clone(memory_format=torch.contiguous_format)
    for component, own_axis in ((0, 3), (1, 2)):
        field = velocity[:, component]
        for axis, carrier in ((3, velocity[:, 0]), (2, velocity[:, 1])):
            slope = _slope(field, axis - 1, periodic, ACROSS if axis == own_axis else ALONG)
            result[:, component].addcmul_(carrier, slope, value=0.5 * step)
    return result


def _slope(u: torch.Tensor, axis: int, periodic: bool, sign: float) -> torch.Tensor:
    """Centred differences along an axis; beyond the border lies the other end, or the mirror image times ``sign``."""
    size = u.shape[axis]
    slope = torch.empty_like(u)
    torch.sub(u.narrow(axis, 2, size - 2), u.narrow(axis, 0, size - 2), out=slope.narrow(axis, 1, size - 2))
    first, second, last_but_one, last = (u.select(axis, i) for i in (0, 1, size - 2, size - 1))
    before, after = (last, first) if periodic else (sign * first, sign * last)
    torch.sub(second, before, out=slope.select(axis, 0))
    torch.sub(after, last_but_one, out=slope.select(axis, size - 1))
    return slope.mul_(0.5)


def _padded(u: torch.Tensor, axis: int, cells: int, periodic: bool, sign: float) -> torch.Tensor:
    """The field with ghost cells at both ends of an axis: the other end, or the mirror image times ``sign``."""
    size = u.shape[axis]
    first, last = u.narrow(axis, 0, cells), u.narrow(axis, size - cells, cells)
    if periodic:
        return torch.cat([last, u, first], dim=axis)
    return torch.cat([sign * first.flip(axis), u, sign * last.flip(axis)], dim=axis)
