"""Samplers: from level K back to level 0."""

from diffusion.samplers.base import MeanColour, Sampler, Start
from diffusion.samplers.ode import ODE
from diffusion.samplers.resample import Posterior, Resample
from diffusion.samplers.residual import Residual

__all__ = ["ODE", "MeanColour", "Posterior", "Resample", "Residual", "Sampler", "Start"]
