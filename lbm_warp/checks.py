"""Checks of arguments at the public interface."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

BOUNDARIES = ("wall", "periodic")

# One integer for a whole batch, or one per image.
Integers = int | Sequence[int] | torch.Tensor
Device = torch.device | str


class InputError(ValueError):
    """An error the caller can correct. Its message is one line: what was wrong, what was expected."""


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if value not in (choices := tuple(choices)):
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_boundary(boundary: str) -> None:
    """Raise InputError unless ``boundary`` is one of ``BOUNDARIES``."""
    check_choice("boundary", boundary, BOUNDARIES)


def check_object(name: str, value: object, kind: type) -> None:
    """Raise InputError unless ``value`` is an object of the class ``kind`` of this library."""
    if not isinstance(value, kind):
        got = f"a class; pass an object: {value.__name__}()" if isinstance(value, type) else type(value).__name__
        raise InputError(f"{name} must be a lbm_warp.{kind.__name__}, got {got}")


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise InputError unless ``value``, of Python or numpy, is finite and ``low <= value <= high``."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value) or not low <= value <= high:
        limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise InputError(f"{name} must be {limits}, got {value!r}")


def check_integer(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Raise InputError unless ``value`` is an integer, of Python or numpy, from ``low`` to ``high``."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise InputError(f"{name} must be an integer, got {value!r}")
    check_number(name, value, low, high)


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raise InputError, with the most similar name, unless ``name`` is one of ``known``."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown {what} {name!r}: expected one of {', '.join(known)}{hint}")


def as_batch(name: str, value: Integers, batch: int, device: Device = "cpu") -> torch.Tensor:
    """One integer per image, int64 [batch] on ``device``, from one integer for all images or one per image.

    Raises:
        InputError: if ``value`` is not integer, does not fit int64, or has another length.
    """
    try:
        tensor = torch.as_tensor(value)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} must be an integer from 0 to 2^63 - 1, or one for each of the {batch} images") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{name} must be integer, got {tensor.dtype}")
    if tensor.ndim == 0:
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise InputError(f"{name} must be one integer or one for each of the {batch} images, got shape {list(tensor.shape)}")
    device = torch.device(device)
    return tensor.to(device, torch.int64, non_blocking=device.type != "cpu").contiguous()


def check_levels(level: Integers, batch: int, lowest: int, highest: int) -> torch.Tensor:
    """One level per image, int64 [batch] on the CPU.

    Raises:
        InputError: if they are not ``lowest`` to ``highest``, or have the wrong number or dtype.
    """
    levels = as_batch("level", level, batch)
    if not (lowest <= int(levels.min()) and int(levels.max()) <= highest):
        raise InputError(f"level must be from {lowest} to {highest}, got {int(levels.min())} to {int(levels.max())}")
    return levels


def check_images(u0: torch.Tensor) -> None:
    """Raise InputError unless ``u0`` is a floating-point tensor [N, C, H, W] of images with at least 2 x 2 pixels.

    And if the caller records a CUDA graph: seeds and levels are copied from the CPU, which a graph cannot hold.
    """
    if not isinstance(u0, torch.Tensor):
        raise InputError(f"images must be a torch tensor [N, C, H, W], got {type(u0).__name__}")
    if u0.ndim != 4 or 0 in u0.shape or min(u0.shape[2:]) < 2:
        raise InputError(f"images must have shape [N, C, H, W] with H, W >= 2, got {list(u0.shape)}")
    if not u0.dtype.is_floating_point:
        raise InputError(f"images must be floating-point, got {u0.dtype}")
    if u0.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "the operator copies from the CPU and cannot be recorded into a CUDA graph; call it outside torch.cuda.graph"
        )
