"""Checks of arguments at the public boundary: one ValueError that says what was wrong and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

BOUNDARIES = ("wall", "periodic")


def check_boundary(boundary: str) -> None:
    """Raise ValueError unless ``boundary`` is one of ``BOUNDARIES``."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless ``low <= value <= high`` and ``value`` is finite."""
    if not (math.isfinite(value) and low <= value <= high):
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {limits}, got {value:g}")


def as_batch(name: str, value: int | Sequence[int] | torch.Tensor, batch: int) -> torch.Tensor:
    """One integer an image: int64 [batch] on the CPU, from one integer for all of them or one for each.

    Raises:
        ValueError: if ``value`` is not integer or of another length.
    """
    tensor = torch.as_tensor(value)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be integer, got {tensor.dtype}")
    if tensor.ndim == 0:
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise ValueError(
            f"{name} must be one integer or one for each of the {batch} images, got shape {list(tensor.shape)}"
        )
    return tensor.to("cpu", torch.int64).contiguous()


def check_images(u0: torch.Tensor) -> None:
    """Raise ValueError unless ``u0`` is a float32 tensor [N, C, H, W] with images of at least 2 x 2 pixels."""
    if not isinstance(u0, torch.Tensor):
        raise ValueError(f"images must be a torch tensor [N, C, H, W], got {type(u0).__name__}")
    if u0.ndim != 4 or 0 in u0.shape or min(u0.shape[2:]) < 2:
        raise ValueError(f"images must have shape [N, C, H, W] with H, W >= 2, got {list(u0.shape)}")
    if u0.dtype != torch.float32:
        raise ValueError(f"images must be float32, got {u0.dtype}")
