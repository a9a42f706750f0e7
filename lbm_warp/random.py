"""Counter-based Gaussian noise: the noise of an image is a function of its seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lbm_warp.checks import Device, Integers, as_batch, as_device
from lbm_warp.interop import launch
from lbm_warp.kernels.hashing import normal_kernel


def normal(seed: Integers, shape: Sequence[int], device: Device = "cpu") -> torch.Tensor:
    """Standard normal numbers, the same in any batch and, up to rounding, on any device.

    Args:
        seed: one integer per image, or one for all images, which then get the same noise. A tensor that is already on ``device``
            needs no synchronisation.
        shape: [N, ...].
        device: device of the result.

    Returns:
        float32 tensor of this shape.

    Raises:
        InputError: if the seeds are not integer or not N, or kernels do not work on the device.
    """
    device = as_device(device)
    seeds = as_batch("seed", seed, shape[0], device)
    out = torch.empty((shape[0], torch.Size(shape[1:]).numel()), dtype=torch.float32, device=device)
    launch(normal_kernel, out.shape, batched=[seeds], outputs=[out])
    return out.view(tuple(shape))
