"""Turbulence as an augmentation, for torchvision's v2 transforms, kornia's pipelines or alone.

The operator carries and blurs images. Masks and boxes are carried by the same flow along its paths, dx/dt = v(x), without the blur.
A path to the blur width sigma is as long as Pe sigma^2 / (2 L) times v pixels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from lbm_warp.advection_diffusion import AdvectionDiffusion
from lbm_warp.checks import DEVICES, InputError, Integers, as_batch, check_integer, check_number, check_object
from lbm_warp.grids import with_ghost_cells
from lbm_warp.schedule import Schedule
from lbm_warp.turbulence import CurlNoise, Turbulence

# Longest part of a path in one step of the fourth-order Runge-Kutta method [pixels], and points on each side of a carried box.
STEP, POINTS = 0.5, 33


class RandomTurbulence(nn.Module):
    """Carry and blur each image by a random flow of its own, up to a random level.

    Called like a transform of torchvision's v2: with images, or with any nested lists and dictionaries of them. ``Image`` and plain
    tensors are images, ``Video`` is carried by one flow, ``Mask`` and ``BoundingBoxes`` follow the flow of their image; of several
    plain tensors only the first is an image; all else stays as it is. Without torchvision, use :meth:`draw`.

    Images are [..., C, H, W], floating-point or uint8 (0 to 255), on any device; the result is alike. Floating-point images are
    differentiable. The random numbers come from torch's global generator, so ``torch.manual_seed`` repeats them.

    Args:
        peclet: advection relative to diffusion, >= 0. Particles move at most Pe sigma_max^2 / 2 image sides (2.7 % by default).
        sigma_max: widest blur, as a fraction of the shorter image side, above 0. The square of the blur width is uniform.
        p: share of the images that are changed, 0 to 1.
        turbulence: generator of the velocity fields, by default :class:`CurlNoise`.
        levels: number of levels; 16 differ by less than one sees.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        *,
        peclet: float = 60.0,
        sigma_max: float = 0.03,
        p: float = 1.0,
        turbulence: Turbulence | None = None,
        levels: int = 16,
    ) -> None:
        super().__init__()
        check_number("peclet", peclet, 0.0)
        check_number("sigma_max", sigma_max, 1e-6, 1.0)
        check_number("p", p, 0.0, 1.0)
        check_integer("levels", levels, 1)
        self.peclet, self.sigma_max, self.p, self.levels = peclet, sigma_max, p, levels
        self.turbulence = CurlNoise() if turbulence is None else turbulence
        check_object("turbulence", self.turbulence, Turbulence)

    def forward(self, *inputs: Any) -> Any:
        """Transform a sample.

        Raises:
            InputError: if there is no image, images differ in size or number, or masks, boxes or points do not fit them.
        """
        flat, structure = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        kinds = _kinds(flat)
        shapes = {
            (1 if kind == "video" else math.prod(tensor.shape[:-3]), *tensor.shape[-2:])
            for tensor, kind in zip(flat, kinds, strict=True)
            if kind in ("image", "video")
        }
        if len(shapes) != 1:
            raise InputError(
                "expected images [..., C, H, W] of one size and number (for a PIL image put torchvision's v2.ToImage before), "
                f"got (number, height, width) {sorted(shapes)}"
            )
        flow = self.draw(*shapes.pop())
        return tree_unflatten([CARRY[kind](flow, tensor) for tensor, kind in zip(flat, kinds, strict=True)], structure)

    def draw(self, count: int, height: int, width: int, seed: Integers | None = None) -> Transport:
        """A flow and a level for each of ``count`` images of this size, from a seed for each or torch's global generator.

        Raises:
            InputError: if there are no images, a side is shorter than 2 pixels, or the seeds are not integers, one for each.
        """
        for name, value, least in (("count", count, 1), ("height", height, 2), ("width", width, 2)):
            check_integer(name, value, least)
        drawn = torch.randint(2**62, (count,), device="cpu") if seed is None else as_batch("seed", seed, count)
        numbers = torch.stack([torch.rand(2, generator=torch.Generator().manual_seed(one), device="cpu") for one in drawn.tolist()])
        level = torch.where(numbers[:, 0] < self.p, 1 + (numbers[:, 1] * self.levels).long(), 0)
        sigma = self.sigma_max * min(height, width) * torch.linspace(0.0, 1.0, self.levels + 1, device="cpu").sqrt()
        operator = AdvectionDiffusion(Schedule(sigma.double().numpy()), peclet=self.peclet, turbulence=self.turbulence)
        return Transport(operator, level, drawn, (height, width))

    def extra_repr(self) -> str:
        """The arguments, for print."""
        return f"peclet={self.peclet}, sigma_max={self.sigma_max}, p={self.p}, turbulence={self.turbulence}"


@dataclass(frozen=True)
class Transport:
    """A flow and a level for each of N images, to carry whatever belongs to them, in tensors of any layout in memory.

    Its methods raise InputError for a tensor of another shape.

    Attributes:
        operator: the advection-diffusion.
        level, seed: int64 [N] on the CPU.
        size: height and width [pixels].
    """

    operator: AdvectionDiffusion
    level: torch.Tensor
    seed: torch.Tensor
    size: tuple[int, int]

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W], carried and blurred; dtype and device stay."""
        _check("images", images, (len(self.level), None, *self.size))
        if images.dtype == torch.uint8:
            return (255.0 * self.images(images.float() / 255.0)).round().clamp(0.0, 255.0).to(torch.uint8)
        return self.operator(images, self.level, self.seed)

    def masks(self, masks: torch.Tensor) -> torch.Tensor:
        """Labels or masks [N, M, H, W] of any dtype: each pixel takes the value at the start of its path."""
        count, height, width = len(self.level), *self.size
        _check("masks", masks, (count, None, height, width))
        y, x = torch.meshgrid(torch.arange(height, device="cpu") + 0.5, torch.arange(width, device="cpu") + 0.5, indexing="ij")
        pixels = torch.stack([x, y], dim=-1).view(1, -1, 2).expand(count, -1, -1)
        start = self.points(pixels.to(masks.device), backward=True).floor().long()
        column, row = start[..., 0].clamp(0, width - 1), start[..., 1].clamp(0, height - 1)
        index = (row * width + column)[:, None].expand(-1, masks.shape[1], -1)
        return masks.flatten(2).gather(2, index).reshape(masks.shape)

    def boxes(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes (x0, y0, x1, y1) [pixels], [N, M, 4]: the smallest ones around the carried borders; their dtype stays."""
        _check("boxes", boxes, (len(self.level), None, 4))
        along = torch.linspace(0.0, 1.0, POINTS, device=boxes.device)
        x0, y0, x1, y1 = (edge[..., None] for edge in boxes.float().unbind(-1))
        x, y = torch.lerp(x0, x1, along), torch.lerp(y0, y1, along)
        sides = [torch.stack(torch.broadcast_tensors(*side), dim=-1) for side in ((x, y0), (x, y1), (x0, y), (x1, y))]
        border = torch.cat(sides, dim=-2)
        carried = self.points(border.flatten(1, 2)).view_as(border)
        new = torch.cat([carried.amin(dim=-2), carried.amax(dim=-2)], dim=-1)
        new = torch.where(self.level.to(boxes.device)[:, None, None] > 0, new, boxes.float())
        return new.to(boxes.dtype) if boxes.is_floating_point() else new.round().to(boxes.dtype)

    def points(self, points: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
        """Points (x, y) [pixels], the corner of the image at (0, 0), float32 [N, M, 2], at the end of their paths.

        ``backward`` goes from the end of a path to its start.
        """
        _check("points", points, (len(self.level), None, 2))
        height, width = self.size
        sigma = torch.tensor(self.operator.schedule.sigma, device="cpu")[self.level]
        length = self.operator.peclet * sigma**2 / (2.0 * min(self.size)) * (-1.0 if backward else 1.0)
        velocity = self.operator.velocity(self.seed, height, width, device=points.device)
        way = length.to(velocity)[:, None, None, None] * velocity
        steps = max(1, math.ceil(float(way.abs().max()) / STEP))
        field, extent = with_ghost_cells(way / steps, periodic=False), points.new_tensor([width, height])

        def inside(x: torch.Tensor) -> torch.Tensor:
            return torch.minimum(x.clamp_min(0.0), extent)

        def step_at(x: torch.Tensor) -> torch.Tensor:
            # The field has one cell more on each side; grid_sample counts from -1 to 1.
            grid = 2.0 * (inside(x) + 1.0) / (extent + 2.0) - 1.0
            return functional.grid_sample(field, grid[:, None], align_corners=False)[:, :, 0].transpose(1, 2)

        x = points
        for _ in range(steps):
            k1 = step_at(x)
            k2 = step_at(x + 0.5 * k1)
            k3 = step_at(x + 0.5 * k2)
            k4 = step_at(x + k3)
            x = inside(x + (k1 + 2.0 * k2 + 2.0 * k3 + k4) / 6.0)
        return x


def _check(name: str, value: torch.Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless ``value`` is a dense tensor of this shape, None for any length, where kernels work."""
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type in DEVICES
    if not dense or value.ndim != len(shape) or any(want not in (None, n) for n, want in zip(value.shape, shape, strict=True)):
        got = f"{list(value.shape)} on {value.device}" if isinstance(value, torch.Tensor) else type(value).__name__
        expected = ", ".join("M" if side is None else str(side) for side in shape)
        raise InputError(f"{name} must be a dense tensor [{expected}] on a CPU or a CUDA device, got {got}")


def _kinds(flat: list[Any]) -> list[str]:
    """What each part of a sample is, by torchvision's types if it is in use and by its rule for plain tensors."""
    tv = sys.modules.get("torchvision.tv_tensors")
    names = ("image", "video", "mask", "boxes", "keypoints")
    types = (tv.Image, tv.Video, tv.Mask, tv.BoundingBoxes, tv.KeyPoints) if tv else ()
    kinds = [next((name for name, kind in zip(names, types, strict=False) if isinstance(part, kind)), "other") for part in flat]
    plain = [number for number, part in enumerate(flat) if type(part) in (torch.Tensor, nn.Parameter) and part.ndim >= 3]
    if plain and not {"image", "video"} & set(kinds):
        kinds[plain[0]] = "image"
    return kinds


def _image(flow: Transport, images: torch.Tensor) -> torch.Tensor:
    return _like(images, flow.images(images.reshape(len(flow.level), *images.shape[-3:])).reshape(images.shape))


def _video(flow: Transport, frames: torch.Tensor) -> torch.Tensor:
    count = math.prod(frames.shape[:-3])
    return _image(replace(flow, level=flow.level.expand(count), seed=flow.seed.expand(count)), frames)


def _mask(flow: Transport, masks: torch.Tensor) -> torch.Tensor:
    count = len(flow.level)
    if masks.shape[-2:] != flow.size or (count > 1 and (masks.ndim < 3 or len(masks) != count)):
        raise InputError(f"masks must be [..., H, W] like their images ({count} of {flow.size}), got {list(masks.shape)}")
    return _like(masks, flow.masks(masks.reshape(count, -1, *flow.size)).reshape(masks.shape))


def _boxes(flow: Transport, boxes: Any) -> torch.Tensor:
    from torchvision.transforms.v2.functional import convert_bounding_box_format as convert

    if len(flow.level) > 1 or boxes.shape[-1] != 4:
        raise InputError("boxes must be upright and come with one image; carry those of a batch with RandomTurbulence.draw")
    corners = convert(boxes.as_subclass(torch.Tensor), old_format=boxes.format, new_format="XYXY")
    carried = flow.boxes(corners.reshape(1, -1, 4)).reshape(boxes.shape)
    return _like(boxes, convert(carried, old_format="XYXY", new_format=boxes.format))


def _keypoints(flow: Transport, points: torch.Tensor) -> torch.Tensor:
    if len(flow.level) > 1:
        raise InputError("key points must come with one image; carry those of a batch with RandomTurbulence.draw")
    return _like(
        points, flow.points(points.as_subclass(torch.Tensor).float().reshape(1, -1, 2)).reshape(points.shape).to(points.dtype)
    )


def _like(part: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The result with torchvision's type of the part of the sample, if it has one."""
    tv = sys.modules.get("torchvision.tv_tensors")
    return tv.wrap(result, like=part) if tv and isinstance(part, tv.TVTensor) else result


CARRY: dict[str, Callable[[Transport, Any], Any]] = {
    "image": _image,
    "video": _video,
    "mask": _mask,
    "boxes": _boxes,
    "keypoints": _keypoints,
    "other": lambda flow, part: part,
}
