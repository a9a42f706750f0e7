"""Transfer of images and velocities between a grid and one of half its resolution.

Cell values are means over cells on every grid. So restriction does not blur an image, and prolongation is exact to fourth order in
the cell size.
"""

from __future__ import annotations

import torch

# Signs of a velocity component in the mirror image beyond a wall: normal and tangential to the wall.
NORMAL, TANGENTIAL = -1.0, 1.0


def restrict(u: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 cells: [N, C, H, W] to [N, C, H / 2, W / 2], H and W even."""
    return (u[..., ::2, ::2] + u[..., ::2, 1::2] + u[..., 1::2, ::2] + u[..., 1::2, 1::2]) / 4


def prolong(u: torch.Tensor, periodic: bool) -> torch.Tensor:
    """Means over the quarters of every cell: [N, C, H, W] to [N, C, 2 H, 2 W]; ``restrict(prolong(u))`` is ``u``.

    Along an axis, the halves of cell i have the means u_i -+ s_i, s_i = (22 (u_{i+1} - u_{i-1}) - 3 (u_{i+2} - u_{i-2})) / 128.
    They are those of the quartic polynomial that has the given means over cells i - 2 to i + 2.
    """
    for axis in (2, 3):
        padded = _padded(u, axis, 2, periodic, TANGENTIAL)
        size = u.shape[axis]
        two_low, low, high, two_high = (padded.narrow(axis, start, size) for start in (0, 1, 3, 4))
        slope = torch.add(22 / 128 * (high - low), two_high - two_low, alpha=-3 / 128)
        u = torch.stack([u - slope, u + slope], dim=axis + 1).flatten(axis, axis + 1)
    return u


def restrict_transposed(w: torch.Tensor) -> torch.Tensor:
    """The transpose of :func:`restrict`: each of the four cells gets a quarter."""
    return w.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4


def prolong_transposed(w: torch.Tensor, periodic: bool) -> torch.Tensor:
    """The transpose of :func:`prolong`: [N, C, 2 H, 2 W] to [N, C, H, W]."""
    for axis in (3, 2):
        low, high = w.unflatten(axis, (-1, 2)).unbind(axis + 1)
        size, slope = low.shape[axis], (high - low) / 128
        shape = list(slope.shape)
        shape[axis] += 4
        padded = slope.new_zeros(shape)
        for start, weight in ((0, 3), (1, -22), (3, 22), (4, -3)):
            padded.narrow(axis, start, size).add_(slope, alpha=weight)
        w = low + high + _folded(padded, axis, 2, periodic)
    return w


def restrict_velocity(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """A velocity on the coarser grid, in the same unit: [N, 2, H, W] to [N, 2, H / 2, W / 2].

    A component's mean has weights (1, 1, 1, 1) / 4 along its own axis and (1, 3, 3, 1) / 8 along the other. This is the curl of the
    stream function, smoothed by (1, 2, 1) / 4 along both axes and subsampled at every other corner. So a field without divergence
    stays without divergence, but a stream function is not needed.
    """
    x, y = with_ghost_cells(velocity, periodic).split(1, dim=1)
    return torch.cat([_sums(_sums(x, 3, 1), 2, 3), _sums(_sums(y, 2, 1), 3, 3)], dim=1).div_(32)


def _sums(u: torch.Tensor, axis: int, inner: int) -> torch.Tensor:
    """Sums with weights (1, inner, inner, 1) over four cells along an axis, for every other cell."""
    size = u.shape[axis]
    first, second, third, fourth = (u.narrow(axis, start, size - 3) for start in range(4))
    every = (slice(None),) * axis + (slice(None, None, 2),)
    ends, middle = first[every] + fourth[every], second[every] + third[every]
    return torch.add(ends, middle, alpha=inner)


def with_ghost_cells(velocity: torch.Tensor, periodic: bool) -> torch.Tensor:
    """A velocity field [N, 2, H, W] with a ring of ghost cells, [N, 2, H + 2, W + 2]; zero on walls in the linear interpolation."""
    components = []
    for component, own_axis in ((0, 3), (1, 2)):
        field = velocity[:, component : component + 1]
        for axis in (2, 3):
            field = _padded(field, axis, 1, periodic, NORMAL if axis == own_axis else TANGENTIAL)
        components.append(field)
    return torch.cat(components, dim=1)


def _padded(u: torch.Tensor, axis: int, cells: int, periodic: bool, sign: float) -> torch.Tensor:
    """``u`` with ghost cells at both ends of an axis: the opposite end, or the mirror image times ``sign``."""
    size = u.shape[axis]
    first, last = u.narrow(axis, 0, cells), u.narrow(axis, size - cells, cells)
    if periodic:
        return torch.cat([last, u, first], dim=axis)
    first, last = first.flip(axis), last.flip(axis)
    return torch.cat([first, u, last] if sign == TANGENTIAL else [-first, u, -last], dim=axis)


def _folded(padded: torch.Tensor, axis: int, cells: int, periodic: bool) -> torch.Tensor:
    """The transpose of :func:`_padded` with the sign 1: every ghost cell is added to the cell that it was a copy of."""
    size = padded.shape[axis] - 2 * cells
    u = padded.narrow(axis, cells, size).clone()
    before, after = padded.narrow(axis, 0, cells), padded.narrow(axis, cells + size, cells)
    first, last = u.narrow(axis, 0, cells), u.narrow(axis, size - cells, cells)
    if periodic:
        last.add_(before)
        first.add_(after)
    else:
        first.add_(before.flip(axis))
        last.add_(after.flip(axis))
    return u
