"""Diffusion alone: the heat equation, solved exactly in the waves that fit the image.

With no flow a wave of wavenumber k fades by exp(-alpha k^2 t) = exp(-k^2 sigma^2 / 2). Between walls the waves are cosines (the DCT
of inverse heat dissipation, Rissanen et al. 2023), on periodic images sines and cosines.
"""

from __future__ import annotations

import functools

import torch


def blur(u: torch.Tensor, sigma: torch.Tensor, periodic: bool) -> torch.Tensor:
    """Gaussian blur with walls (mirror images beyond them) or periodic images.

    Args:
        u: float32 or float64 [N, C, H, W].
        sigma: blur width of every image [pixels], float64 [N] on the CPU.
        periodic: what lies beyond the border.

    Returns:
        A new tensor of the same shape and type.
    """
    kind = "fourier" if periodic else "cosine"
    (ky, rows), (kx, columns) = (_waves(kind, size, u.dtype, u.device) for size in u.shape[2:])
    half_variance = (sigma.square() / 2).to(u.device, u.dtype, non_blocking=True)[:, None, None, None]
    amplitudes = rows @ u @ columns.T * torch.exp(-half_variance * (ky.square()[:, None] + kx.square()))
    # Without blur the image is left as it is, to the last bit.
    return torch.where(half_variance == 0.0, u, rows.T @ amplitudes @ columns)


@functools.lru_cache(maxsize=32)
def _waves(kind: str, size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Wavenumbers [1 / pixel] and orthonormal waves, [size] and [size, size], one wave a row."""
    k, waves = cosines(size) if kind == "cosine" else _sines_and_cosines(size)
    return k.to(device, dtype), waves.to(device, dtype)


def cosines(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Wavenumbers and orthonormal cosines between walls (DCT-II), float64 [size] and [size, size], one wave a row."""
    k = torch.pi / size * torch.arange(size, dtype=torch.float64)
    waves = torch.cos(k[:, None] * (torch.arange(size) + 0.5)) * (2.0 / size) ** 0.5
    waves[0] /= 2.0**0.5
    return k, waves


def _sines_and_cosines(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Orders 0, 1, 1, 2, 2, ...: cosines at the odd places, sines at the even ones.
    order = (torch.arange(size) + 1) // 2
    k = 2.0 * torch.pi / size * order.double()
    phase = k[:, None] * torch.arange(size)
    waves = torch.where((torch.arange(size) % 2 == 0)[:, None], torch.sin(phase), torch.cos(phase))
    waves[0] = 1.0
    # The cosine of half the grid's frequency is +-1 everywhere.
    halves = torch.where((order == 0) | (2 * order == size), 1.0, 2.0).double()
    return k, waves * (halves / size).sqrt()[:, None]
