"""Counter-based Gaussian noise: each image's numbers depend on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lbm_warp.checks import as_batch
from lbm_warp.interop import launch
from lbm_warp.kernels.hashing import normal_kernel


def normal(seed: int | Sequence[int] | torch.Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Standard normal numbers, the same whatever batch or device (up to rounding) they are drawn in.

    Args:
        seed: one integer per image, or one for all of them (who then get the same noise).
        shape: [N, ...].
        device: where the noise is made.

    Returns:
        float32 tensor of that shape.
    """
    seeds = as_batch("seed", seed, shape[0]).to(device, non_blocking=True)
    out = torch.empty((shape[0], torch.Size(shape[1:]).numel()), device=device)
    launch(normal_kernel, out.shape, batched=[seeds], outputs=[out])
    return out.view(tuple(shape))
