"""The corruption of images of one size: a forward process's numbers turned into an operator and one scale for every level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from diffusion.process import TURBULENCE, ForwardProcess
from diffusion.rng import below, seeds, uniform
from diffusion.size import Size
from lbm_warp import AdvectionDiffusion, Operator, Schedule, WaveAdvectionDiffusion
from lbm_warp.checks import Integers
from lbm_warp.heat import cosines
from lbm_warp.random import normal


class Corruption:
    """A forward process for images of one size: u_k = m + s_k (A_k(u_0) - m) + sigma_k eps, m = 1/2 (``diffusion.process``).

    The flow and the noise of an image are functions of its seed, whatever the level, the batch and the device.

    Args:
        process: the numbers.
        size: height and width of the images.

    Attributes:
        operator: A_k, levels 0..K.
        sigma: blur widths of levels 0..K [pixels], float64 [K + 1].
        signal, noise: s_k and sigma_k of levels 0..K, float64 [K + 1].
        noise_power: variance of every cosine mode of the noise eps, mean one, float64 [H, W]; None for white noise.

    Raises:
        InputError: if the process is not valid, or not at this size.
    """

    def __init__(self, process: ForwardProcess, size: Size) -> None:
        process.validate()
        self.process = process
        self.size = size
        self.levels = process.levels
        self.sigma = process.blur_widths(size.shorter)
        self.signal, self.noise = process.scales()
        self.operator = _operator(process, self.sigma)
        self.noise_power = None
        if process.noise_exponent:
            k = torch.hypot(*torch.meshgrid(*(torch.arange(side) * (size.shorter / side) for side in size), indexing="ij")).double()
            power = (1.0 + k) ** (-2.0 * process.noise_exponent)
            self.noise_power = power / power.mean()

    def mean(self, u0: torch.Tensor, level: int | torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Level k without its noise, m + s_k (A_k(u_0) - m).

        Args:
            u0: clean images, float32 [N, C, H, W].
            level: k, 0 to K, one for all or int64 [N] on the CPU.
            seed: seeds of the images, int64 [N].

        Returns:
            float32 [N, C, H, W].
        """
        return self._scaled(self.operator(u0, level, seeds(seed, "flow")), level)

    def corrupt(self, u0: torch.Tensor, level: int | torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Level k of clean images, u_k; arguments as for :meth:`mean`."""
        return self.mean(u0, level, seed) + self.at(self.noise, level, u0) * self.unit_noise(seed, u0)

    def pair(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Level k - 1 without its noise and level k with it, for levels 1 to K; arguments as for :meth:`mean`."""
        before, after = self.operator.pair(u0, level, seeds(seed, "flow"))
        noise = self.at(self.noise, level, u0) * self.unit_noise(seed, u0)
        return self._scaled(before, level - 1), self._scaled(after, level) + noise

    def trajectory(self, u0: torch.Tensor, seed: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """``(k, u_k)`` for all levels 0 to K in one pass; arguments as for :meth:`mean`."""
        noise = self.unit_noise(seed, u0)
        for level, u in self.operator.trajectory(u0, seeds(seed, "flow")):
            yield level, self._scaled(u, level) + float(self.noise[level]) * noise

    def draw_levels(self, seed: torch.Tensor) -> torch.Tensor:
        """A training level for every seed, int64 [N], 1 to K, by the process's ``level_density``."""
        if self.process.level_density == "uniform":
            return 1 + below(self.levels, seed, "level")
        return 1 + torch.from_numpy(np.searchsorted(self.level_shares().cumsum()[:-1], uniform(seed, "level").numpy()))

    def level_shares(self) -> np.ndarray:
        """Shares of the levels 1..K among the training levels, float64 [K]; their sum is one."""
        process = self.process
        if process.level_density == "uniform":
            return np.full(self.levels, 1.0 / self.levels)
        deviation = (np.log(2.0 * self.noise[1:] / self.signal[1:]) - process.log_mean) / process.log_deviation
        share = np.exp(-0.5 * deviation**2)
        return share / share.sum()

    def transfer(self, level: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Factor of every cosine mode in A_k without flow, (1 - d) exp(-kappa^2 sigma_k^2 / 2) + d with the floor d of the blur.

        Its shape is [N, 1, H, W], or [1, 1, H, W] for one level; ``like`` gives its device and dtype.
        """
        ky, kx = (cosines(side)[0] for side in self.size)
        widths = torch.from_numpy(self.sigma)[torch.as_tensor(level).reshape(-1)][:, None, None, None]
        factor = torch.exp(-0.5 * widths.square() * (ky.square()[:, None] + kx.square()))
        return torch.lerp(factor, torch.ones_like(factor), self.process.blur_floor).to(like.device, like.dtype)

    def tell(self, inputs: torch.Tensor, level: int | torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """What the network sees: its view of the images and, with ``tell_flow``, how far the flow has carried them.

        At t = sigma_k^2 / (2 alpha) that is V t v = Pe sigma_k^2 / (2 L) v pixels, as the network maps its inputs from [0, 1] to
        [-1, 1].

        Args:
            inputs: float32 [N, C, H, W].
            level, seed: as for :meth:`mean`.

        Returns:
            float32 [N, C, H, W] or [N, C + 2, H, W].
        """
        if not self.process.tell_flow:
            return inputs
        turbulence = TURBULENCE[self.process.turbulence]
        velocity = turbulence.velocity(seeds(seed, "flow"), *self.size, boundary=self.process.boundary, device=inputs.device)
        carried = self.at(self.process.peclet * self.sigma**2 / (2.0 * self.size.shorter), level, inputs)
        return torch.cat([inputs, 0.5 + 0.5 * carried * velocity], dim=1)

    def iterations(self) -> np.ndarray:
        """Lattice iterations from the clean image to levels 0..K, in units of one on the pixel grid, float64 [K + 1]."""
        return self.operator.iterations(*self.size)

    def _scaled(self, u: torch.Tensor, level: int | torch.Tensor) -> torch.Tensor:
        return u if self.process.signal == "constant" else 0.5 + self.at(self.signal, level, u) * (u - 0.5)

    def unit_noise(self, seed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """eps of unit variance, in the shape of ``like`` [N, C, H, W]."""
        return self.coloured(normal(seeds(seed, "noise"), like.shape, like.device))

    def coloured(self, white: torch.Tensor) -> torch.Tensor:
        """White noise [N, C, H, W] with the spectrum of the process's noise."""
        if self.noise_power is None:
            return white
        rows, columns = (cosines(side)[1].to(white) for side in self.size)
        return rows.T @ (self.noise_power.sqrt().to(white) * (rows @ white @ columns.T)) @ columns

    def at(self, scale: np.ndarray, level: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor | float:
        """A scale, [K + 1], at one level for all images, or at one level each as [N, 1, 1, 1]."""
        if isinstance(level, int):
            return float(scale[level])
        return torch.from_numpy(scale)[level].to(like.device, like.dtype, non_blocking=True)[:, None, None, None]


class Sharp:
    """The operator of a process without blur and flow: every level is the clean image."""

    solver = "identity"

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.__call__`."""
        return u0

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`AdvectionDiffusion.pair`."""
        return u0, u0

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`AdvectionDiffusion.trajectory`."""
        return ((level, u0) for level in range(self.levels + 1))

    def iterations(self, height: int, width: int) -> np.ndarray:
        """As :meth:`AdvectionDiffusion.iterations`: none."""
        return np.zeros(self.levels + 1)


class Floored:
    """A blur that loses no mode: (1 - d) A_k + d with the floor d (Hoogeboom and Salimans 2023, appendix A)."""

    def __init__(self, operator: Operator, floor: float) -> None:
        self.operator = operator
        self.floor = floor
        self.solver = operator.solver

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.__call__`."""
        return torch.lerp(self.operator(u0, level, seed), u0, self.floor)

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`AdvectionDiffusion.pair`."""
        before, after = self.operator.pair(u0, level, seed)
        return torch.lerp(before, u0, self.floor), torch.lerp(after, u0, self.floor)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`AdvectionDiffusion.trajectory`."""
        return ((level, torch.lerp(u, u0, self.floor)) for level, u in self.operator.trajectory(u0, seed))

    def iterations(self, height: int, width: int) -> np.ndarray:
        """As :meth:`AdvectionDiffusion.iterations`."""
        return self.operator.iterations(height, width)


class ByChannel:
    """An operator that gives every channel a flow of its own: the channels become images."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.solver = operator.solver

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.__call__`."""
        return self.operator(*self._split(u0, level, seed)).view_as(u0)

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`AdvectionDiffusion.pair`."""
        before, after = self.operator.pair(*self._split(u0, level, seed))
        return before.view_as(u0), after.view_as(u0)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`AdvectionDiffusion.trajectory`."""
        channels, _, flows = self._split(u0, 0, seed)
        return ((level, u.view_as(u0)) for level, u in self.operator.trajectory(channels, flows))

    def iterations(self, height: int, width: int) -> np.ndarray:
        """As :meth:`AdvectionDiffusion.iterations`."""
        return self.operator.iterations(height, width)

    def _split(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, Integers, torch.Tensor]:
        """Channels as images, their levels and their seeds."""
        count, channels = u0.shape[:2]
        own = torch.as_tensor(seed).reshape(-1, 1).expand(count, 1)
        level = level if isinstance(level, int) else torch.as_tensor(level).repeat_interleave(channels)
        return u0.reshape(count * channels, 1, *u0.shape[2:]), level, seeds(own, "channel", np.arange(channels)).flatten()


class StructuredNoise:
    """The effect of a flow on its background, and on images nothing but the blur: A_0(u_0) + A(c) - c."""

    def __init__(self, flow: AdvectionDiffusion) -> None:
        self.flow = flow
        self.blur = AdvectionDiffusion(flow.schedule, peclet=0.0, boundary=flow.boundary)
        self.solver = flow.solver

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.__call__`."""
        return self.blur(u0, level, seed) + self.flow(torch.zeros_like(u0), level, seed)

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`AdvectionDiffusion.pair`."""
        blurred, noise = self.blur.pair(u0, level, seed), self.flow.pair(torch.zeros_like(u0), level, seed)
        return blurred[0] + noise[0], blurred[1] + noise[1]

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`AdvectionDiffusion.trajectory`."""
        noises = self.flow.trajectory(torch.zeros_like(u0), seed)
        for (level, blurred), (_, noise) in zip(self.blur.trajectory(u0, seed), noises, strict=True):
            yield level, blurred + noise

    def iterations(self, height: int, width: int) -> np.ndarray:
        """As :meth:`AdvectionDiffusion.iterations`."""
        return self.flow.iterations(height, width)


def flow_operator(process: ForwardProcess, sigma: np.ndarray) -> AdvectionDiffusion | WaveAdvectionDiffusion:
    """The advection-diffusion of a process that blurs; ``sigma`` are the blur widths of levels 0..K [pixels]."""
    if process.turbulence == "waves":
        options = {"offset": process.offset, "boundary": process.boundary, "transport": process.transport}
        return WaveAdvectionDiffusion(Schedule(sigma), peclet=process.peclet, wave_speed=process.wave_speed, **options)
    options = {"boundary": process.boundary, "offset": process.offset, "turbulence_time": process.turbulence_time}
    return AdvectionDiffusion(Schedule(sigma), peclet=process.peclet, turbulence=TURBULENCE[process.turbulence], **options)


def _operator(process: ForwardProcess, sigma: np.ndarray) -> Operator:
    if process.blur == "none":
        return Sharp(process.levels)
    operator = flow_operator(process, sigma)
    if not (process.transport or isinstance(operator, WaveAdvectionDiffusion)):
        operator = StructuredNoise(operator)
    if process.by_channel:
        operator = ByChannel(operator)
    return Floored(operator, process.blur_floor) if process.blur_floor > 0.0 else operator
