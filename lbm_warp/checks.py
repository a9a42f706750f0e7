"""Checks of arguments at the public interface."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Iterable, Sequence
from numbers import Number

import numpy as np
import torch
from torch.autograd import forward_ad

BOUNDARIES = ("wall", "periodic")
LARGEST = sys.float_info.max
MOST = 10_000_000  # pictures, frames, ...: a list of more does not fit into the memory
# What images and velocities may be: kernels work on these devices and, after a conversion, with these numbers.
DEVICES = ("cpu", "cuda")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# One integer for a whole batch, or one per image; of Python, numpy or torch.
Integers = int | np.integer | Sequence[int] | np.ndarray | torch.Tensor
Device = torch.device | str


class InputError(ValueError):
    """An error the caller can correct. Its message is one line: what was wrong, what was expected."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).splitlines()))


def amount(count: int, thing: str) -> str:
    """How many things there are, in words: 1 picture, 2,000 pictures, 3 classes."""
    return f"{count:,} {thing}{'' if count == 1 else 'es' if thing.endswith('s') else 's'}"


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if value not in (choices := tuple(choices)):
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_boundary(boundary: str) -> None:
    """Raise InputError unless ``boundary`` is one of ``BOUNDARIES``."""
    check_choice("boundary", boundary, BOUNDARIES)


def check_object(name: str, value: object, kind: type) -> None:
    """Raise InputError unless ``value`` is an object of the class ``kind``, which its package exports."""
    if not isinstance(value, kind):
        got = f"a class; pass an object: {value.__name__}()" if isinstance(value, type) else type(value).__name__
        raise InputError(f"{name} must be a {kind.__module__.partition('.')[0]}.{kind.__name__}, got {got}")


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise InputError unless ``value``, of Python or numpy, is finite and ``low <= value <= high``."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST or not low <= value <= high:
        least, most = (f"{limit:g}" if isinstance(limit, float) else str(limit) for limit in (low, high))
        raise InputError(f"{name} must be {f'at least {least}' if high == math.inf else f'from {least} to {most}'}, got {value!r}")


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


def as_tensor(name: str, value: object) -> torch.Tensor:
    """An array or tensor of numbers as a tensor.

    Raises:
        InputError: if it is something else, or a part of it is masked.
    """
    if np.ma.is_masked(value):
        raise InputError(f"{name} must be numbers everywhere, got masked values: fill them, {name}.filled(0)")
    if isinstance(value, np.ndarray):  # torch takes no negative strides and no foreign byte order, as FITS files have
        value = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be an array or tensor of numbers, got {type(value).__name__}") from None


def check_no_tangent(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError if a tensor has a derivative in forward mode, which would be lost without a word."""
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise InputError(f"the operator gives no derivative in {name} in forward mode; pass it without a tangent")


def as_integers(name: str, value: Integers) -> torch.Tensor:
    """Integers of Python, numpy or torch as int64, in their shape and, for a tensor, on its device.

    Raises:
        InputError: if they are not integers, or do not fit int64.
    """
    wrong = InputError(f"{name} must be an integer from 0 to 2^63 - 1, or one for each image")
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type not in DEVICES:
            raise InputError(f"{name} must be integers on a CPU or a CUDA device, got {value.layout} on {value.device}")
        if value.is_floating_point() or value.is_complex() or value.is_quantized or value.dtype == torch.bool:
            raise InputError(f"{name} must be integer, got {value.dtype}")
        if value.dtype == torch.uint64 and bool((value.to(torch.int64) < 0).any()):
            raise wrong
        return value.to(torch.int64)
    if isinstance(value, Sequence) and value and all(isinstance(item, torch.Tensor) for item in value):
        return torch.stack([as_integers(name, item) for item in value])
    # Python's integers and numpy's of several kinds in one list have no dtype in common that keeps them all.
    array = value if isinstance(value, np.ndarray) else np.array(value, dtype=object)
    if array.dtype == object:
        others = [kind for kind in map(type, array.flat) if kind is bool or not issubclass(kind, (int, np.integer))]
        if others:
            raise InputError(f"{name} must be integer, got {others[0].__name__}") if issubclass(others[0], Number) else wrong
    elif array.size and array.dtype.kind not in "iu":  # numpy makes an empty list float64
        raise InputError(f"{name} must be integer, got {array.dtype}")
    try:
        integers = array.astype(np.int64)
    except OverflowError:
        raise wrong from None
    if array.dtype.kind == "u" and (integers < 0).any():
        raise wrong
    return torch.from_numpy(integers)


def as_batch(name: str, value: Integers, batch: int, device: Device = "cpu") -> torch.Tensor:
    """One integer per image, int64 [batch] on ``device``, from one integer for all images or one per image.

    Raises:
        InputError: if ``value`` is not integer, does not fit int64, or has another length.
    """
    tensor, device = as_integers(name, value), torch.device(device)
    if tensor.ndim == 0:
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise InputError(f"{name} must be one integer or one for each of the {batch} images, got shape {list(tensor.shape)}")
    return tensor.to(device, non_blocking=device.type != "cpu").contiguous()


def check_levels(level: Integers, batch: int, lowest: int, highest: int) -> torch.Tensor:
    """One level per image, int64 [batch] on the CPU.

    Raises:
        InputError: if they are not ``lowest`` to ``highest``, or have the wrong number or dtype, or cannot be read.
    """
    try:
        levels = as_batch("level", level, batch)
        least, most = int(levels.min()), int(levels.max())
    except RuntimeError:
        raise InputError(
            "levels have no values under vmap over them, nor in a trace (torch.func.linearize, make_fx, export): give a batch one "
            "level for each image, and take derivatives with torch.func.jvp or torch.autograd"
        ) from None
    if not lowest <= least <= most <= highest:
        raise InputError(f"level must be from {lowest} to {highest}, got {least} to {most}")
    return levels


def as_device(device: Device) -> torch.device:
    """The device of this name, where kernels can work.

    Raises:
        InputError: if it is neither a CPU nor a CUDA device, or there is no such device here.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if found.type not in DEVICES:
        raise InputError(f"device must be cpu, cuda or cuda:N, got {found}: kernels do not work there")
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"device {found}: torch sees {amount(count, 'CUDA device')} here; take cpu")
    return found


def as_floats(name: str, value: torch.Tensor, shape: str) -> torch.Tensor:
    """A tensor of floating-point numbers of any layout in memory, as a contiguous one.

    Args:
        name: what it is, for messages.
        value: the tensor.
        shape: its shape, such as ``N, 2, H, W``: a letter is any length but 0, H and W at least 2.

    Raises:
        InputError: if it is something else, sparse, quantised, or on a device where kernels do not work.
    """
    axes = shape.split(", ")
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} must be a torch tensor [{shape}], got {type(value).__name__}")
    if value.layout != torch.strided or value.device.type not in DEVICES:
        raise InputError(f"{name} must be a dense tensor on a CPU or a CUDA device, got {value.layout} on {value.device}")
    least = {"H": 2, "W": 2}
    if value.ndim != len(axes) or not all(
        size == int(axis) if axis.isdigit() else size >= least.get(axis, 1) for size, axis in zip(value.shape, axes, strict=True)
    ):
        empty = "" if value.numel() else ": it is empty"
        raise InputError(f"{name} must have shape [{shape}] with H, W >= 2, got {list(value.shape)}{empty}")
    if value.dtype not in FLOATS:
        raise InputError(f"{name} must be floating-point, got {value.dtype}: expected float16, bfloat16, float32 or float64")
    return value.contiguous()


def as_images(u0: torch.Tensor) -> torch.Tensor:
    """Images, floating-point [N, C, H, W] with at least 2 x 2 pixels, of any layout in memory, as a contiguous tensor.

    Raises:
        InputError: if they are no such tensor, or if the caller records a CUDA graph: seeds and levels are copied from the CPU,
            which a graph cannot hold.
    """
    u0 = as_floats("images", u0, "N, C, H, W")
    if u0.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "the operator copies from the CPU and cannot be recorded into a CUDA graph; call it outside torch.cuda.graph"
        )
    return u0
