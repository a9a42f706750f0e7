"""The heat equation, solved exactly in Fourier space: advection-diffusion at Pe = 0.

A mode of wavenumber k decays by exp(-alpha k^2 t) = exp(-k^2 sigma^2 / 2). The modes are cosines between walls (the DCT of inverse
heat dissipation, Rissanen et al. 2023), sines and cosines on periodic images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from lbm_warp.checks import InputError


def blur(u: torch.Tensor, sigma: torch.Tensor, periodic: bool) -> torch.Tensor:
    """Gaussian blur between walls (mirror images beyond them) or of periodic images, differentiable any number of times.

    Args:
        u: float32 or float64 [N, C, H, W].
        sigma: blur width of every image [pixels], float64 [N] on the CPU.
        periodic: periodic boundary, otherwise walls.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        InputError: inside ``torch.func.functionalize``, which cannot transform functions with derivatives of their own.
    """
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform and transform.key() == torch._C._functorch.TransformType.Functionalize:
        raise InputError("torch.func.functionalize cannot transform this operator; call it outside")
    return _Blur.apply(u.contiguous(), sigma, periodic)


class _Blur(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: torch.Tensor, sigma: torch.Tensor, periodic: bool) -> torch.Tensor:
        (ky, rows), (kx, columns) = (_modes(size, periodic, u.dtype, u.device) for size in u.shape[2:])
        half_variance = (sigma.square() / 2).to(u.device, u.dtype, non_blocking=True)[:, None, None, None]
        with full_precision(u.device):
            amplitudes = rows @ u @ columns.T * torch.exp(-half_variance * (ky.square()[:, None] + kx.square()))
            blurred = rows.T @ amplitudes @ columns
        # Without blur the result is the image itself, bit for bit.
        return torch.where(half_variance == 0.0, u, blurred)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, bool], output: torch.Tensor) -> None:
        _, sigma, ctx.periodic = inputs
        ctx.save_for_backward(sigma)
        ctx.save_for_forward(sigma)

    @staticmethod
    def backward(ctx: Any, w: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # The operator is symmetric.
        (sigma,) = ctx.saved_tensors
        return blur(w, sigma, ctx.periodic), None, None

    @staticmethod
    def jvp(ctx: Any, u: torch.Tensor, *_: None) -> torch.Tensor:
        (sigma,) = ctx.saved_tensors
        return blur(u, sigma, ctx.periodic)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in the dtype of the images: without autocast, and on a GPU without TF32."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    known = torch.amp.is_autocast_available(device.type)  # not of the device meta
    with torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext():
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32 = tf32


# 4 MB for a side of 1,000 pixels.
@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a later call may be outside of it
def _modes(size: int, periodic: bool, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Wavenumbers [1 / pixel] and orthonormal modes, [size] and [size, size], one mode per row."""
    k, modes = _sines_and_cosines(size) if periodic else cosines(size)
    return k.to(device, dtype), modes.to(device, dtype)


def cosines(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Wavenumbers [1 / pixel] and orthonormal cosines between walls (DCT-II), float64 [size] and [size, size], one mode per row."""
    k = torch.pi / size * torch.arange(size, dtype=torch.float64, device="cpu")
    modes = torch.cos(k[:, None] * (torch.arange(size, device="cpu") + 0.5)) * (2.0 / size) ** 0.5
    modes[0] /= 2.0**0.5
    return k, modes


def to_modes(images: torch.Tensor) -> torch.Tensor:
    """Amplitudes of the orthonormal cosine modes between walls (DCT-II along both sides) of images [..., H, W]."""
    (_, rows), (_, columns) = (_modes(size, False, images.dtype, images.device) for size in images.shape[-2:])
    with full_precision(images.device):
        return rows @ images.contiguous() @ columns.T


def from_modes(modes: torch.Tensor) -> torch.Tensor:
    """Images [..., H, W] from the amplitudes of their cosine modes: the inverse of :func:`to_modes`."""
    (_, rows), (_, columns) = (_modes(size, False, modes.dtype, modes.device) for size in modes.shape[-2:])
    with full_precision(modes.device):
        return rows.T @ modes.contiguous() @ columns


def _sines_and_cosines(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Periods per side: 0, 1, 1, 2, 2, ...; odd rows are cosines, even rows sines.
    order = (torch.arange(size, device="cpu") + 1) // 2
    k = 2.0 * torch.pi / size * order.double()
    phase = k[:, None] * torch.arange(size, device="cpu")
    modes = torch.where((torch.arange(size, device="cpu") % 2 == 0)[:, None], torch.sin(phase), torch.cos(phase))
    modes[0] = 1.0
    # The mean of cos^2 is 1/2, except for the constant and for the cosine of two pixels per period.
    norm = torch.where((order == 0) | (2 * order == size), 1.0, 2.0).double()
    return k, modes * (norm / size).sqrt()[:, None]
