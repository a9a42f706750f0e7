"""Samplers that go by way of the clean image: corrupt it again to a lower level, and add noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch

from diffusion.denoisers import Denoiser, Reverse, noisy, white
from diffusion.forward.process import ForwardProcess, Level, UnitNoise
from diffusion.rng import seeds, uniform
from diffusion.samplers.base import Sampler, energy, gaussian_divergence
from diffusion.size import Size
from lbm_warp.checks import InputError, check_choice, check_integer, check_number
from lbm_warp.heat import from_modes, to_modes


@dataclass(frozen=True)
class Resample(Sampler):
    """Predict the clean image, corrupt it again to a lower level, add noise.

    With x the predicted clean image, M_k = m + s_k (A_k(x) - m) and j < k the level below,

        u_j = M_j + r (u_k - M_k) + sigma_fresh eps,    r^2 sigma_k^2 + sigma_fresh^2 = sigma_j^2.

    Without noise (r = 1) this is cold diffusion's improved sampling (Bansal et al. 2022, algorithm 2). Without fresh noise it is
    DDIM (Song et al. 2021, equation 12). Of fresh noise there is DDIM's share eta,

        sigma_fresh^2 = eta^2 (sigma_j / sigma_k)^2 v,    v = sigma_k^2 - (s_k / s_j)^2 sigma_j^2,

    with eta = 1 the posterior of DDPM (Ho et al. 2020, equation 7). With ``variance`` fixedlarge r is the same and the noise has
    the variance eta^2 v of the forward process (section 3.2 there); under blur this is soft diffusion's momentum sampler (Daras et
    al. 2023, section 3.3), which changes the blur by the predicted image and the noise by a step of the reverse diffusion.

    Steps above the noise-to-signal ratio ``second_order_above`` extrapolate the clean image in h = log(s / sigma), from the
    prediction x_i of the level before: x + (h_j - h_k) / (2 (h_k - h_i)) (x - x_i). They have second order: without blur and flow
    this is DPM-Solver++(2M), and with eta = 1 its stochastic form (Lu et al. 2022, algorithm 2 and appendix C).

    With random flows theta a step of the reverse process draws x and theta from p(x, theta | u_k), and then u_j. In small steps the
    mean is enough, as without flow: that of M_j - r M_k over both, sum over theta of p(theta | u_k) (M_j - r M_k)(x_theta, theta)
    with x_theta = E[x | u_k, theta]. A network that is told the flow gives x_theta, and theta, drawn at the start, is a draw from
    its posterior at every level: one flow throughout is exact. A network that is not told gives x = sum of p(theta | u_k) x_theta,
    the mean over all flows, and no choice of theta makes that the mean above. It is that where u_k leaves x and theta independent,
    as at high noise, or says what x is. Both limits are kept where theta is drawn given x, from

        p(theta | x, u_k) ~ p(theta) exp(-|u_k - M_k(x, theta)|^2 / (2 sigma_k^2)).

    Of ``flow_candidates`` one is drawn with these weights: the flow of the step before, which a narrow posterior keeps, and new
    ones. That leaves the posterior as it is for any number of them, and gives it for many (iterated sampling importance resampling;
    Andrieu, Lee and Vihola 2018).
    """

    eta: float = 1.0
    """Share of the fresh noise, 0 to 1: 1 is ancestral sampling, 0 DDIM or, without noise, cold diffusion's."""
    variance: Literal["fixedsmall", "fixedlarge"] = "fixedsmall"
    """Variance of the fresh noise: the posterior's, fixedsmall, or the forward process's, fixedlarge (Ho et al. 2020, section
    3.2)."""
    clip_clean: bool = False
    """Clip the predicted clean image to [0, 1] in every step."""
    second_order_above: float | None = None
    """Noise-to-signal ratio (of images from -1 to 1) above which steps have second order, >= 0: they extrapolate the clean image
    from the last two levels. None: all steps have first order."""
    flow_candidates: int = 1
    """Flows of which one is drawn in each step, by how well it explains the image, for a network that is not told the flow; 1 keeps
    the flow of the start."""
    has_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, 0.0, 1.0)
        check_choice("variance", self.variance, ("fixedsmall", "fixedlarge"))
        if self.second_order_above is not None:
            check_number("second order above", self.second_order_above, 0.0)
        check_integer("flow candidates", self.flow_candidates, 1, 1000)

    def check(self, forward: ForwardProcess, denoiser: Denoiser) -> None:
        super().check(forward, denoiser)
        if self.second_order_above is not None:
            noisy(forward, "second order")
        if self.flow_candidates > 1:
            noisy(forward, "a draw among flow candidates")
            if denoiser.tell_flow:
                raise InputError("flow candidates above 1 are for a network that is not told the flow: leave out tell flow")

    def clean(self, reverse: Reverse, u: torch.Tensor, level: Level) -> torch.Tensor:
        """The predicted clean image, clipped if that is asked for."""
        clean = reverse.clean(u, level)
        return clean.clamp(0.0, 1.0) if self.clip_clean else clean

    def walk(
        self, reverse: Reverse, u: torch.Tensor, visited: Sequence[int], noise: UnitNoise
    ) -> Iterator[tuple[torch.Tensor, int]]:
        forward, signal, sigma = reverse.forward, reverse.forward.signal.tolist(), reverse.forward.noise.tolist()
        second_order = float("inf") if self.second_order_above is None else self.second_order_above
        previous, flow = None, reverse.seed
        for level, below in pairwise(visited):
            predicted = clean = self.clean(reverse, u, level)
            if previous is not None and below > 0 and 2.0 * sigma[level] > second_order * signal[level]:
                before, last = previous
                here, there, far = (np.log(signal[k] / sigma[k]) for k in (level, below, before))
                clean = predicted + (there - here) / (2.0 * (here - far)) * (predicted - last)
            previous = level, predicted
            flow = self.flow(reverse, predicted, u, level, flow)
            kept, _, anew = self.noise_scales(forward, level, below)
            lower, same = forward.means(clean, (below, level), flow)
            u = lower + kept * (u - same)
            if anew > 0.0:
                u = u + anew * noise(below)
            yield u, below

    def flow(self, reverse: Reverse, clean: torch.Tensor, u: torch.Tensor, level: int, flow: torch.Tensor) -> torch.Tensor:
        """Seeds of the flows of a step, int64 [N]: one of the candidates each.

        Args:
            reverse: gives the forward process, and the seeds of the new candidates.
            clean: predicted clean images, float32 [N, C, H, W].
            u: images at ``level``.
            level: k.
            flow: seeds of the flows of the step before, int64 [N].
        """
        forward, others = reverse.forward, self.flow_candidates - 1
        if others == 0 or not forward.operator.random:
            return flow
        drawn = seeds(reverse.seed[None], "flow candidate", (level * others + np.arange(others))[:, None])
        candidates = torch.cat([flow[None], drawn])
        misfit = torch.stack([energy(forward, u - forward.mean(clean, level, one)) for one in candidates]).cpu()
        share = torch.softmax(-misfit / (2.0 * float(forward.noise[level]) ** 2), dim=0).cumsum(dim=0)
        chosen = (uniform(reverse.seed, "flow", level) > share[:-1]).sum(dim=0)
        return candidates[chosen, torch.arange(len(u))]

    def noise_scales(self, forward: ForwardProcess, level: int, below: int) -> tuple[float, float, float]:
        """Noise of a step from level k to j.

        Returns:
            The factor r of the noise of level k, sigma_fresh, and the standard deviation of the noise that the sampler adds:
            another one with ``variance`` fixedlarge.
        """
        signal, signal_below = (float(forward.signal[k]) for k in (level, below))
        sigma, sigma_below = (float(forward.noise[k]) for k in (level, below))
        ratio = sigma_below / sigma if sigma > 0.0 else 1.0
        added = max(sigma**2 - (signal / signal_below * sigma_below) ** 2, 0.0) ** 0.5
        fresh = self.eta * ratio * added
        kept = ratio if fresh == 0.0 else max(sigma_below**2 - fresh**2, 0.0) ** 0.5 / sigma
        return kept, fresh, self.eta * added if self.variance == "fixedlarge" and fresh > 0.0 else fresh

    def check_density(self, forward: ForwardProcess) -> None:
        super().check_density(forward)
        if self.flow_candidates > 1 and forward.operator.random:
            raise InputError("no likelihood with flow candidates above 1: its bound is for one flow throughout")

    def adds_noise(self, forward: ForwardProcess) -> bool:
        return all(self.noise_scales(forward, level, level - 1)[2] > 0.0 for level in range(2, forward.levels + 1))

    def last_image(self, reverse: Reverse, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.clean(reverse, u, level)

    def divergence(
        self, reverse: Reverse, x: torch.Tensor, u: torch.Tensor, level: torch.Tensor, below: torch.Tensor
    ) -> torch.Tensor:
        """As :meth:`Sampler.divergence`: the means are M_j + r (u_k - M_k), of x and of the predicted picture, the variances those
        of :meth:`noise_scales`."""
        clean = self.clean(reverse, u, level)
        pairs = zip(level.tolist(), below.tolist(), strict=True)
        kept, fresh, added = torch.tensor([self.noise_scales(reverse.forward, *pair) for pair in pairs]).T
        error = reverse.mean(x, below) - reverse.mean(clean, below)
        still = reverse.mean(x, level) - reverse.mean(clean, level)
        return gaussian_divergence(reverse.forward, error - kept.to(x)[:, None, None, None] * still, fresh, added)


@dataclass(frozen=True)
class Posterior(Sampler):
    """Draw every cosine mode of the level below from its posterior, given the level and the clean image.

    A mode has a_k = s_k d_k of the clean image and white noise, as if it had a noise schedule of its own (Hoogeboom and Salimans
    2023, section 4 and appendix A). With b = a_k / a_j and v = sigma_k^2 - b^2 sigma_j^2, the noise that is added from j to k,

        p(u_j | u_k, x) = N(w (b / v u_k + a_j / sigma_j^2 x), w),    1 / w = b^2 / v + 1 / sigma_j^2.
    """

    has_density: ClassVar[bool] = True

    def check(self, forward: ForwardProcess, denoiser: Denoiser) -> None:
        super().check(forward, denoiser)
        white(forward, "sampler Posterior")
        if not forward.operator.diagonal:
            raise InputError("sampler Posterior needs a diagonal operator, walls and no flow: peclet 0 and boundary wall")

    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        clean = reverse.clean(u, level)
        if below == 0:
            return clean
        of_image, of_clean, variance = posterior_scales(reverse.forward, level, below, u)
        image, target = to_modes(u - 0.5), to_modes(clean - 0.5)
        # White noise has the same distribution in the modes as in the pixels.
        mean = of_image.to(u) * image + of_clean.to(u) * target
        return 0.5 + from_modes(mean + variance.sqrt().to(u) * noise(below))

    def divergence(
        self, reverse: Reverse, x: torch.Tensor, u: torch.Tensor, level: torch.Tensor, below: torch.Tensor
    ) -> torch.Tensor:
        """As :meth:`Sampler.divergence`, mode by mode (Hoogeboom and Salimans 2023)."""
        clean = reverse.clean(u, level)
        _, factor, variance = posterior_scales(reverse.forward, level, below, u)
        modes = to_modes(x - clean).double()
        return 0.5 * (factor.square() / variance * modes.square()).flatten(1).sum(dim=1)


def posterior_scales(
    forward: ForwardProcess, level: Level, below: Level, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior of every cosine mode in a step of :class:`Posterior`: the factors of u_k and of x in its mean, and its variance w;
    float64 [N, 1, H, W], or [1, 1, H, W] for one level."""
    size = Size(*like.shape[2:])
    (here, there), (noise, variance) = (
        [torch.as_tensor(scale)[torch.as_tensor(k).reshape(-1)][:, None, None, None].to(like.device) for k in (level, below)]
        for scale in (forward.signal, forward.noise**2)
    )
    here, there = (scale * forward.operator.transfer(k, size).to(like.device) for scale, k in ((here, level), (there, below)))
    factor = here / there
    added = noise - factor.square() * variance
    posterior = 1.0 / (factor.square() / added + 1.0 / variance)
    return posterior * factor / added, posterior * there / variance, posterior
