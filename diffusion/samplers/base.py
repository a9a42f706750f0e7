"""What samplers have in common: the levels that they visit, where they start, and their terms of a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch

from diffusion.denoisers import Denoiser, Reverse, noisy, with_signal
from diffusion.forward.process import ForwardProcess, UnitNoise
from diffusion.rng import seeds
from lbm_warp.checks import InputError, check_choice, check_integer, check_number
from lbm_warp.random import normal

Callback = Callable[[int, torch.Tensor], None]
SPACINGS = ("even", "edm")


@dataclass(frozen=True)
class Start:
    """What sampling starts from: level K of pictures, thumbnails of those that were learned, each sample from another one."""

    start_noise: float = 0.0
    """Standard deviation of white noise added to the start, >= 0, for a process without noise of its own."""
    colours: ClassVar[bool] = False
    """Whether flat images with a mean colour, drawn from a Gaussian that is fitted to those of the pictures, take their place."""

    def __post_init__(self) -> None:
        check_number("start noise", self.start_noise, 0.0)

    def noised(self, u: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """The start with its noise."""
        return u + self.start_noise * normal(seeds(seed, "start"), u.shape, u.device) if self.start_noise > 0.0 else u


@dataclass(frozen=True)
class MeanColour(Start):
    """Flat images with a mean colour drawn from a Gaussian that is fitted to those of the pictures (Bansal et al. 2022)."""

    start_noise: float = 0.001
    colours: ClassVar[bool] = True


@dataclass(frozen=True)
class Sampler:
    """Base class: how a trained network makes images, from level K back to level 0.

    A researcher's own sampler is a frozen dataclass that writes :meth:`step`; it may ask the network for the clean image
    (``reverse.clean``) or for what it predicts (``reverse.predict``).
    """

    steps: int | None = None
    """Steps of sampling by default, at least 2; K if there are fewer levels, or if it is None."""
    spacing: Literal["even", "edm"] = "even"
    """Levels that are visited in fewer steps than levels: even, or by EDM's rule in the noise-to-signal ratio, edm."""
    sampling_noise: float = 1.0
    """Standard deviation of the noise added in sampling, in units of the process's own, >= 0."""
    start: Start = Start()
    """What sampling starts from."""
    needs_step: ClassVar[bool] = False
    """Whether it takes the predicted step; otherwise the predicted clean image."""
    has_density: ClassVar[bool] = False
    """Whether its steps have densities, and so a bound of the likelihood."""
    integrates: ClassVar[bool] = False
    """Whether it follows an ODE, whose density is known (:meth:`log_density`); otherwise the steps have terms of a bound."""

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_integer("steps", self.steps, 2)
        check_choice("spacing", self.spacing, SPACINGS)
        check_number("sampling noise", self.sampling_noise, 0.0)
        if not isinstance(self.start, Start):
            raise InputError(f"start must be a diffusion.Start, such as MeanColour(), got {self.start!r}")

    def check(self, forward: ForwardProcess, denoiser: Denoiser) -> None:
        """Raise InputError if the sampler makes no sense for a forward process and a denoiser."""
        name, other = type(self).__name__, type(denoiser).__name__
        if self.needs_step and not denoiser.gives_step:
            raise InputError(f"sampler {name} needs the predicted step, which denoiser {other} does not give: take Step")
        if not self.needs_step and not denoiser.gives_clean(forward):
            fitting = "Residual" if denoiser.gives_step else "ODE"
            raise InputError(f"sampler {name} needs the clean image, which denoiser {other} does not give here: take {fitting}")
        if self.spacing == "edm":
            noisy(forward, "spacing edm")
            with_signal(forward, "spacing edm")

    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        """Images at the level below, float32 [N, C, H, W].

        Args:
            reverse: the network, the forward process and the flows of the images.
            u: images at ``level``.
            level, below: k and j < k.
            noise: standard normal numbers in the shape of the images, as a function of a level.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method step(reverse, u, level, below, noise)")

    def begin(self, forward: ForwardProcess, u: torch.Tensor, level: int, noise: UnitNoise) -> torch.Tensor:
        """Images at the level that sampling starts from, with its noise, from those without."""
        return u + self.sampling_noise * float(forward.noise[level]) * noise(level)

    @torch.inference_mode()
    def __call__(
        self,
        reverse: Reverse,
        u: torch.Tensor,
        noise: UnitNoise,
        callback: Callback | None = None,
        *,
        start: int | None = None,
        steps: int | None = None,
    ) -> torch.Tensor:
        """Go down the levels. No step waits for the device.

        Args:
            reverse: the network, the forward process and the flows of the images.
            u: images at level ``start`` without their noise, float32 [N, C, H, W].
            noise: standard normal numbers in the shape of ``u``, as a function of a level (``ForwardProcess.seeded_noise``).
            callback: called as ``callback(level, u)`` after every step.
            start: the level to start from, 1 to K; K by default.
            steps: number of steps, at most ``start``; the sampler's own by default. With fewer than ``start``, steps skip levels.

        Returns:
            Samples, float32 [N, C, H, W], values around [0, 1].

        Raises:
            InputError: if ``start`` or ``steps`` is out of its range.
        """
        visited = self.visited(reverse.forward, start, steps)
        u = self.begin(reverse.forward, u, visited[0], noise)
        same = 4 if reverse.forward.operator.keeps_size else 2
        for images, below in self.walk(reverse, u, visited, noise):
            if not isinstance(images, torch.Tensor) or images.shape[:same] != u.shape[:same]:
                got = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
                raise InputError(f"{type(self).__name__}.step must give all images, a tensor {list(u.shape)}, got {got}")
            u = images
            if callback is not None:
                callback(below, u)
        return u

    def walk(
        self, reverse: Reverse, u: torch.Tensor, visited: Sequence[int], noise: UnitNoise
    ) -> Iterator[tuple[torch.Tensor, int]]:
        """The images after every step, and their level."""
        for level, below in pairwise(visited):
            u = self.step(reverse, u, level, below, noise)
            yield u, below

    def visited(self, forward: ForwardProcess, start: int | None = None, steps: int | None = None) -> list[int]:
        """The levels that it visits: from ``start`` down to 1, then 0.

        They are evenly spaced, or with ``spacing`` = edm nearest to the noise-to-signal ratios of Karras et al. (2022, equation 5),
        whose roots of order 7 are evenly spaced.

        Args:
            forward: the forward process.
            start: 1 to K; K by default.
            steps: number of steps, 2 to ``start`` (1 where ``start`` is 1); by default the sampler's, in proportion to ``start``.

        Raises:
            InputError: if an argument is out of its range.
        """
        last = forward.levels
        start = last if start is None else start
        check_integer("level", start, 1, last)
        least = min(2, start)
        steps = max(least, -(-min(self.steps or last, last) * start // last)) if steps is None else steps
        # The last step always starts from level 1: level 0 has no log(sigma).
        check_integer("steps", steps, least, start)
        if self.spacing == "edm":
            root = forward.ratio[1:] ** (1.0 / 7.0)
            levels = np.array([1 + np.abs(root - place).argmin() for place in np.linspace(root[start - 1], root[0], steps)])
            # Every step goes down, and leaves a level for each of those after it.
            for i in range(1, steps):
                levels[i] = max(min(levels[i], levels[i - 1] - 1), steps - i)
        else:
            levels = np.linspace(start, 1, steps).round().astype(int)
        return [*levels.tolist(), 0]

    def check_density(self, forward: ForwardProcess) -> None:
        """Raise InputError unless it adds noise at the start and in every step above the last, so that all have densities."""
        name = type(self).__name__
        if not self.has_density:
            raise InputError(f"no likelihood: its sampler {name} gives no terms of one (has_density)")
        if not float(forward.noise[-1]) * self.sampling_noise > 0.0 or not self.adds_noise(forward):
            raise InputError(
                f"no likelihood with sampling noise {self.sampling_noise:g}: {name} has steps without fresh noise; runs of fluid, "
                "ddpm, blurring, ihd and the beyond-blur family have one, with noise above 0"
            )

    def adds_noise(self, forward: ForwardProcess) -> bool:
        """Whether every step above the last adds noise."""
        return True

    def start_scale(self, forward: ForwardProcess) -> float:
        """Standard deviation of the noise that sampling starts with."""
        return self.sampling_noise * float(forward.noise[-1])

    def last_image(self, reverse: Reverse, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The picture that the last step gives, from images u_k, float32 [N, C, H, W]."""
        return reverse.clean(u, level)

    def end_deviation(self, forward: ForwardProcess) -> float | None:
        """Standard deviation of p(x | u) of the last step; None if it is to be measured on pictures that were learned."""
        return None

    def divergence(
        self, reverse: Reverse, x: torch.Tensor, u: torch.Tensor, level: torch.Tensor, below: torch.Tensor
    ) -> torch.Tensor:
        """KL(q(u_j | u_k, x) | p(u_j | u_k)) of a step for pictures x [N, C, H, W], in nats, float64 [N].

        Args:
            u: a draw of the pictures at ``level``.
            level, below: k and j, int64 [N] on the CPU.
        """
        raise InputError(f"{type(self).__name__} has no terms of a likelihood")

    def log_density(
        self, reverse: Reverse, u: torch.Tensor, visited: Sequence[int], seed: torch.Tensor, probes: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images u at the lowest of the levels, brought up to the highest, and the change of the logarithm of the density; for a
        sampler that integrates an ODE.

        Args:
            reverse: the network, the forward process and the flows of the images.
            u: images, float32 [N, C, H, W].
            visited: levels, falling, all above 0.
            seed: seeds of the random signs of the estimate, int64 [N].
            probes: how many are drawn for each image.

        Returns:
            The images at the highest level, and what is added to the logarithm of their density [N], float64.
        """
        raise InputError(f"{type(self).__name__} has no density by the change of variables")


def gaussian_divergence(forward: ForwardProcess, difference: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of Gaussians whose means have a difference [N, C, H, W], with standard deviations [N] of the first and the second."""
    ratio = (own / other).double().to(difference.device).square()
    spread = 0.5 * difference[0].numel() * (ratio - 1.0 - ratio.log())
    return spread + energy(forward, difference) / (2.0 * other.double().to(difference.device).square())


def energy(forward: ForwardProcess, field: torch.Tensor) -> torch.Tensor:
    """Sum of squares, every mode in units of the noise's variance there, float64 [N]."""
    return forward.whitened(field).double().square().flatten(1).sum(dim=1)


def noise_of_parts(first: UnitNoise, later: UnitNoise, start: int) -> UnitNoise:
    """Noise that is ``first`` at the level that a sampler starts from, and ``later`` below it."""
    return lambda level: first(level) if level == start else later(level)


def spherical(first: UnitNoise, second: UnitNoise, place: torch.Tensor) -> UnitNoise:
    """Noise between two independent noises of images [N, C, H, W], by :func:`circular`."""
    return lambda level: circular(first(level), second(level), place)


def circular(first: torch.Tensor, second: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Interpolation on a circle between independent noises of one variance: that variance everywhere, the two at the ends.

    Args:
        first, second: noise with mean zero, float [N, C, H, W].
        place: position between the two, 0 to 1, float [N, 1, 1, 1].
    """
    quarter = 0.5 * torch.pi
    return torch.sin(quarter * (1.0 - place)) * first + torch.sin(quarter * place) * second
