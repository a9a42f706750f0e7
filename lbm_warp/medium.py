"""What images diffuse in: a diffusivity that varies, walls inside, sources.

    du/dFo = div(a grad u) - Pe div(v u) + q        lengths in shorter sides L; a grad u and v vanish on walls

The field a, zero in walls, is in the weights of the iterations (``lbm_warp.kernels.rules``); a source is the tenth number of a
stencil. A velocity is led around walls by its stream function (Bridson, Houriham and Nordenstam 2007).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from lbm_warp.checks import InputError, as_floats, as_tensor, check_no_tangent
from lbm_warp.interop import check_no_transform
from lbm_warp.planner import DEFAULT_SCHEME, Scheme
from lbm_warp.turbulence import FieldRequest, Turbulence, curl, stream_function

# A grid resolves a field that changes by at most this from a cell to the next: alpha as a share of itself, a source of its largest.
RESOLVED = 0.1
# Around walls a flow is at rest for this many cells, and comes to rest in a layer of this width [shorter sides].
REST, LAYER = 3, 1.0 / 8.0


@dataclass(frozen=True, eq=False)
class Medium:
    """What the images of an :class:`lbm_warp.AdvectionDiffusion` diffuse in, cell by cell and the same in all channels.

    Every field has the size of the images: [H, W] or [1, 1, H, W] for all of them, or [N, 1, H, W], one for each.

    A cell of a wall exchanges nothing with others: it keeps its value, and what a source in it adds. A flow is led around walls:
    its stream function is multiplied by a smooth ramp, zero up to three cells from them and one after another eighth of the shorter
    side. So it has no divergence, whatever it had before, and between two obstacles, or an obstacle and the border, nothing flows
    through on balance. V is the rms of the flow without walls. With them it is slowed as a whole if a component would be above 6 V.

    Images are coarsened once they are blurred enough where alpha is smallest, on grids that resolve alpha, the source and the flow;
    with walls or jumps never. All media of a batch have the plan of the most demanding one.

    Args:
        alpha: diffusivity relative to that of the schedule, 0 to 1. Level k is blurred by sigma_k where it is 1, by about
            sigma_k sqrt(alpha) where it is constant. Between two cells it is the harmonic mean.
        walls: the cells that block, bool.
        source: the density q that is added in one unit of the Fourier number, sigma^2 / (2 L^2).

    Raises:
        InputError: if a field has the wrong shape, dtype or range, or they do not fit each other.
    """

    alpha: torch.Tensor | None = None
    walls: torch.Tensor | None = None
    source: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.fields:
            raise InputError("a medium needs alpha, walls or source")
        check_no_transform()
        for name, given in self.fields.items():
            field = as_tensor(name, given)
            check_no_tangent(f"{name} of a medium", field)
            if field.requires_grad:
                raise InputError(f"the operator gives no gradient in {name} of a medium: pass {name}.detach()")
            if (field.dtype == torch.bool) != (name == "walls"):
                kind = "bool, as mask > 0.5" if name == "walls" else f"floating-point, as {name}.float()"
                raise InputError(f"{name} must be {kind}, got {field.dtype}")
            field = field[None, None] if field.ndim == 2 else field
            numbers = as_floats(name, field.float() if name == "walls" else field, "N, 1, H, W")
            low, high = (0.0, 1.0) if name == "alpha" else (-1e30, 1e30)
            least, most = (end.item() for end in numbers.aminmax())
            if not low <= least <= most <= high:
                how = " (relative to the diffusivity of the schedule: divide by the largest)" if name == "alpha" else ""
                raise InputError(f"{name} must be finite and from {low:g} to {high:g}{how}, got {least:g} to {most:g}")
            object.__setattr__(self, name, field.contiguous())
        largest = max(self.fields.values(), key=len)
        self.check_fits(len(largest), *largest.shape[2:])

    @property
    def fields(self) -> dict[str, torch.Tensor]:
        """The fields that there are, by name."""
        given = {"alpha": self.alpha, "walls": self.walls, "source": self.source}
        return {name: field for name, field in given.items() if field is not None}

    def check_fits(self, count: int, height: int, width: int) -> None:
        """Raise InputError unless the fields are for so many images of this size."""
        for name, field in self.fields.items():
            check_fits(name, field, count, height, width)

    @functools.cached_property
    def conductivity(self) -> torch.Tensor | None:
        """alpha, zero in walls, float64 [N or 1, 1, H, W]; None if it is one everywhere."""
        if self.walls is None:
            return None if self.alpha is None else self.alpha.double()
        return (~self.walls).double() if self.alpha is None else self.alpha.double().to(self.walls.device) * ~self.walls

    def scheme(self, scheme: Scheme, periodic: bool) -> Scheme:
        """The numbers of the scheme for this medium: when images are coarsened, and how far."""
        relative, least = [], 1.0
        if self.conductivity is not None:
            least = max(self.conductivity.min().item(), 1e-12)
            relative.append(self.conductivity.clamp(min=1e-12).log())
        if self.source is not None:
            relative.append(self.source.double() / self.source.abs().max().clamp(min=1e-30))
        cells = max(_largest_step(field, periodic) / RESOLVED * min(field.shape[2:]) for field in relative)
        return replace(
            scheme,
            coarsen_from_sigma_lu=scheme.coarsen_from_sigma_lu / least**0.5,
            min_cells=max(scheme.min_cells, math.ceil(cells)),
            min_cells_per_peclet=scheme.min_cells_per_peclet / least,
        )

    def on_grid(self, factor: int, length: int) -> dict[str, torch.Tensor]:
        """The fields that ``stepping.stencil`` takes, float64 [N or 1, h, w], where a cell has ``factor`` x ``factor`` pixels.

        Args:
            factor: side of a cell [pixels].
            length: shorter side of the images [pixels].
        """
        fields = {}
        if self.conductivity is not None:
            fields["resistance"] = 1.0 / functional.avg_pool2d(self.conductivity, factor)[:, 0]
        if self.source is not None:
            # An iteration takes theta factor^2 / (2 L^2) of the Fourier number.
            fields["source"] = functional.avg_pool2d(self.source.double(), factor)[:, 0] * (factor / length) ** 2 / 2.0
        return fields


def check_fits(name: str, field: torch.Tensor, count: int, height: int, width: int) -> None:
    """Raise InputError unless a field of a medium is for so many images of this size."""
    if field.shape[0] not in (1, count) or field.shape[2:] != (height, width):
        need = f"[1, 1, {height}, {width}]" + f" or [{count}, 1, {height}, {width}]" * (count > 1)
        raise InputError(f"{name} of the medium must be {need} here, got {list(field.shape)}")


def _largest_step(field: torch.Tensor, periodic: bool) -> float:
    """The largest change of a field [N, 1, H, W] from a cell to the next."""
    return max(field.diff(dim=axis, append=field.narrow(axis, 0, 1) if periodic else None).abs().max().item() for axis in (2, 3))


@dataclass(frozen=True, eq=False)
class AroundWalls(Turbulence):
    """A flow that is led around walls: see :class:`Medium`.

    Args:
        flow: the flow without walls.
        walls: bool [N or 1, 1, H, W], in the size of the fields.
    """

    flow: Turbulence
    walls: torch.Tensor

    compressible = False
    bounded = True

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the flow without walls depends on the seed."""
        return self.flow.random

    def field(self, ask: FieldRequest) -> torch.Tensor:
        """As :meth:`lbm_warp.Turbulence.field`."""
        size = (ask.height, ask.width)
        check_fits("walls", self.walls, len(ask.seed), *size)
        free = self.flow.velocity(ask.seed, *size, boundary=ask.boundary, device=ask.device, time=ask.time, span=ask.span)
        distance = corner_distance(self.walls.to(ask.device), REST + LAYER * min(size), ask.boundary == "periodic")
        part = ((distance - REST) / (LAYER * min(size))).clamp(0.0, 1.0)
        velocity = curl(stream_function(free, ask.boundary) * (part * part * (3.0 - 2.0 * part)))
        peak = velocity.abs().amax((1, 2, 3), keepdim=True)
        return (velocity / (peak / DEFAULT_SCHEME.peak_to_rms).clamp(min=1.0)).to(free.dtype)


def corner_distance(walls: torch.Tensor, most: float, periodic: bool) -> torch.Tensor:
    """Distance from the corners of all cells to the nearest corner of a wall [cells], up to ``most``, beyond which it is infinite.

    Args:
        walls: bool [N, 1, H, W].
        most: the largest distance of interest.
        periodic: periodic boundary; otherwise there is nothing beyond the border.

    Returns:
        float64 [N, H + 1, W + 1].
    """
    reach = math.ceil(most)
    padded = walls[:, 0].double()
    for axis in (1, 2):
        size = padded.shape[axis]
        cells = torch.arange(-reach - 1, size + reach + 1, device=walls.device)
        # The cells at the border once more beyond it are never the nearest.
        padded = padded.index_select(axis, cells % size if periodic else cells.clamp(0, size - 1))
    blocked = functional.max_pool2d(padded, 2, stride=1) > 0.0
    square = torch.where(blocked, 0.0, torch.inf).double()
    for axis in (1, 2):
        size = square.shape[axis] - 2 * reach
        shifted = (square.narrow(axis, reach + shift, size) + shift**2 for shift in range(-reach, reach + 1))
        square = functools.reduce(torch.minimum, shifted)
    return square.sqrt()
