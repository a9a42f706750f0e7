"""Inverse problems: draw images that a linear measurement may have come from, with a trained run as the prior.

A measurement is y = H x + noise of a known standard deviation, with any linear H: a mask, a downsampling, a blur, a camera, a
physics of deepinv. In every step of the sampler the clean image x0 that the network predicts is replaced by the solution of

    min over x of |y - H x|^2 / (2 sigma_y^2) + |x - x0|^2 / (2 rho^2),

whose first term is the measurement and whose second one is the network's answer, trusted to rho, the error that its prediction has
at that level: plug-and-play restoration by diffusion (DiffPIR, Zhu et al. 2023, equation 12). It is found by conjugate gradients,
so H needs its adjoint; where none is given it comes from automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffusion.denoisers import Reverse, noisy, with_signal
from diffusion.forward.process import ForwardProcess, Level
from diffusion.rng import seeds
from diffusion.samplers.base import Callback
from diffusion.sampling.pipeline import Pipeline
from lbm_warp import Operator
from lbm_warp.checks import MOST, InputError, as_tensor, check_integer, check_number

ITERATIONS, TOLERANCE = 50, 1e-5
Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """A linear map of images, on which noise was added.

    Measurement(lambda x: x * mask)                                                  # inpainting
    Measurement(lambda x: torch.nn.functional.avg_pool2d(x, 4))                      # super-resolution
    Measurement.of(deepinv.physics.Blur(filter=kernel))                              # a physics of deepinv
    Measurement.of(AdvectionDiffusion(schedule, peclet=8.0), level=3, seed=0)        # an operator of ours at a level
    """

    forward: Linear
    """H: images float32 [N, C, H, W] to measurements [N, ...]."""
    adjoint: Linear | None = None
    """H^T; by default from automatic differentiation."""

    @classmethod
    def of(cls, physics: Any, level: int | None = None, seed: int = 0) -> Measurement:
        """The measurement of a linear function, a physics of deepinv (or whatever has A and A_adjoint), or an operator at a level.

        Raises:
            InputError: if it is none of these, or the operator is not linear.
        """
        if isinstance(physics, Measurement):
            return physics
        if isinstance(physics, Operator):
            if not physics.linear or level is None:
                raise InputError("a measurement needs a linear operator and its level, such as Measurement.of(operator, level=10)")
            return cls(lambda x: physics(x, level, seed), lambda y: physics.adjoint(y, level, seed))
        if callable(getattr(physics, "A", None)):
            return cls(physics.A, getattr(physics, "A_adjoint", None))
        if not callable(physics):
            raise InputError(
                f"a measurement is a linear function of images or has methods A and A_adjoint, got {type(physics).__name__}"
            )
        return cls(physics)

    def check(self, shape: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
        """The shape of the measurement of one image of this shape.

        Raises:
            InputError: if H is not linear, differs from call to call, or the adjoint is not H's, by dot products of random images.
        """
        generator = torch.Generator().manual_seed(0)
        one, other = (torch.rand((2, *shape), generator=generator).to(device) for _ in range(2))
        y = self.forward(one)
        if not isinstance(y, torch.Tensor) or y.is_complex() or not y.is_floating_point() or len(y) != len(one):
            found = f"{y.dtype} {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
            hint = " (torch.view_as_real makes complex values real)" if isinstance(y, torch.Tensor) and y.is_complex() else ""
            raise InputError(
                f"a measurement must give real floating-point tensors [N, ...] of images [N, C, H, W], got {found}{hint}"
            )
        scale = y.abs().max().clamp_min(1e-12)
        for what, error in (
            ("differs from call to call", self.forward(one) - y),
            ("is not linear: a black image must give 0", self.forward(torch.zeros_like(one))),
            ("is not linear: H(a - 2 b) must be H(a) - 2 H(b)", self.forward(one - 2.0 * other) - y + 2.0 * self.forward(other)),
        ):
            if not float(error.abs().max() / scale) < 1e-3:
                raise InputError(
                    f"the measurement {what}; it is off by {float(error.abs().max() / scale):.2g} of its largest value"
                )
        w = torch.rand(y.shape, generator=generator).to(y)
        products = ((y * w).sum(), (one * self.transpose(w, one)).sum())
        if not float((products[0] - products[1]).abs()) <= 1e-3 * float((y * w).abs().sum()):
            raise InputError(f"the adjoint is not H's: <H x, w> = {products[0]:.4g}, and <x, adjoint(w)> = {products[1]:.4g}")
        return tuple(y.shape[1:])

    def transpose(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """H^T y, an image in the shape of ``like``."""
        if self.adjoint is not None:
            return self.adjoint(y)
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(like.shape, device=like.device, requires_grad=True)
            return torch.autograd.grad(self.forward(x), x, y.clone())[0]


@dataclass(frozen=True)
class Informed(Reverse):
    """A network whose clean images agree with a measurement."""

    measurement: Measurement
    y: torch.Tensor
    noise: float
    trust: float

    def clean(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Reverse.clean`, drawn to the measurement by as much as the network may be wrong at this level."""
        clean = super().clean(u, level)
        rho = self.trust * error_of(self.forward, int(torch.as_tensor(level).reshape(-1)[0]))
        weight = (self.noise / rho) ** 2

        def normal_equations(x: torch.Tensor) -> torch.Tensor:
            return self.measurement.transpose(self.measurement.forward(x), x) + weight * x

        residual = self.measurement.transpose(self.y - self.measurement.forward(clean), clean)
        return clean + conjugate_gradients(normal_equations, residual)

    def velocity(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Reverse.velocity`, of these clean images."""
        return self.forward.velocity(self.clean(u, level), u, level, self.seed)


def error_of(forward: ForwardProcess, level: int) -> float:
    """Standard deviation of a clean pixel that is known from level k alone: half of r / sqrt(1 + r^2), with the noise-to-signal
    ratio r, for pixels of unit variance between -1 and 1."""
    ratio = 2.0 * float(forward.ratio[level])
    return 0.5 * ratio / (1.0 + ratio**2) ** 0.5 if np.isfinite(ratio) else 0.5


def conjugate_gradients(matrix: Linear, right: torch.Tensor) -> torch.Tensor:
    """Solution of matrix(x) = right for every image [N, ...] by itself, from zero; the matrix is symmetric and positive."""
    x, residual = torch.zeros_like(right), right
    direction, energy = residual, _products(residual, residual)
    least = TOLERANCE**2 * energy
    for _ in range(ITERATIONS):
        if bool((energy <= least).all()):
            break
        ahead = matrix(direction)
        step = torch.where(energy > least, energy / _products(direction, ahead).clamp_min(1e-30), 0.0)
        x, residual = x + step * direction, residual - step * ahead
        new = _products(residual, residual)
        direction, energy = residual + new / energy.clamp_min(1e-30) * direction, new
    return x


def solve(
    pipeline: Pipeline,
    y: torch.Tensor,
    measurement: Any,
    noise: float,
    images: int = 1,
    seed: int = 0,
    *,
    steps: int | None = None,
    trust: float = 1.0,
    label: str | int | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Draw images that a measurement may have come from, by the run's own sampler.

    Args:
        pipeline: a run whose sampler goes by the clean image (``Resample``, ``ODE``).
        y: the measurement of one image, [...] as the measurement gives it without the batch.
        measurement: what gave it: a :class:`Measurement`, a linear function of images [N, C, H, W], or a physics of deepinv.
        noise: standard deviation of the noise on ``y``, above 0; images run from 0 to 1.
        images: how many are drawn.
        seed: of everything random: image number i is a function of it and of i.
        steps: number of steps of the sampler, at most K.
        trust: how far off the network may be, in units of what its level says, above 0: less keeps to the prior, more to the
            measurement.
        label: class of the images, as for :meth:`Pipeline.sample`.
        callback: called as ``callback(level, u)`` at the start and after every step.

    Returns:
        float32 [images, C, H, W] on the CPU, values around [0, 1].

    Raises:
        InputError: if an argument is out of its range, the measurement does not fit, or the sampler takes no clean image.
    """
    check_number("noise", noise, 1e-6)
    check_number("trust", trust, 1e-6)
    check_integer("images", images, 1, MOST)
    method = pipeline.method
    if not method.denoiser.gives_clean(pipeline.forward) or method.sampler.needs_step:
        raise InputError(f"{pipeline.config.process_name}: a measurement needs a run whose sampler goes by the clean image")
    for check in (noisy, with_signal):
        check(pipeline.forward, f"{pipeline.config.process_name}: a measurement")
    measurement = Measurement.of(measurement)
    expected = measurement.check(pipeline.config.shape, pipeline.device)
    y = as_tensor("the measurement", y)
    if tuple(y.shape) != expected:
        raise InputError(f"a measurement of images {list(pipeline.config.shape)} has shape {list(expected)}, got {list(y.shape)}")
    if not y.is_floating_point() or not y.isfinite().all():
        raise InputError(f"the measurement must be finite floating-point numbers, got {y.dtype} from {y.min():g} to {y.max():g}")
    y = y.to(pipeline.device, torch.float32)
    own = seeds(seed, "measurement", np.arange(images))

    def draw(rows: slice) -> torch.Tensor:
        chosen = own[rows]
        reverse = Informed(**vars(pipeline.reverse(chosen, label)), measurement=measurement, y=y[None], noise=noise, trust=trust)
        u = pipeline.prior.draw(chosen, method, pipeline.config.size, pipeline.device)
        if callback is not None:
            callback(method.levels, u)
        return method.sampler(reverse, u, pipeline.forward.seeded_noise(chosen, u), callback, steps=steps)

    return pipeline.batched(images, draw)


def _products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Inner products of images [N, ...], in the shape [N, 1, 1, 1]."""
    return (one * other).flatten(1).sum(dim=1)[:, None, None, None]
