"""Advection-diffusion of images on the lattice, with turbulence: batched NVIDIA Warp kernels that share memory with torch."""

import warp

from lbm_warp.advection_diffusion import AdvectionDiffusion
from lbm_warp.augmentation import RandomTurbulence, Transport
from lbm_warp.checks import InputError
from lbm_warp.medium import Medium
from lbm_warp.operator import Operator
from lbm_warp.optics import OpticalTurbulence
from lbm_warp.physics import as_physics
from lbm_warp.report import OperatorReport, check_operator
from lbm_warp.schedule import Schedule
from lbm_warp.strokes import StrokeFlow
from lbm_warp.textbook import TextbookSolver
from lbm_warp.turbulence import (
    CurlNoise,
    FieldRequest,
    GivenVelocity,
    SpectralTurbulence,
    Turbulence,
    energy_spectrum,
    solenoidal,
)
from lbm_warp.waves import TravellingWaves, WaveAdvectionDiffusion

# Warp prints a banner, and a line for every module, to standard output; who wants them sets the level after this import.
if warp.config.log_level == warp.LOG_INFO:
    warp.config.log_level = warp.LOG_WARNING

__all__ = [
    "AdvectionDiffusion",
    "CurlNoise",
    "FieldRequest",
    "GivenVelocity",
    "InputError",
    "Medium",
    "Operator",
    "OperatorReport",
    "OpticalTurbulence",
    "RandomTurbulence",
    "Schedule",
    "SpectralTurbulence",
    "StrokeFlow",
    "TextbookSolver",
    "Transport",
    "TravellingWaves",
    "Turbulence",
    "WaveAdvectionDiffusion",
    "as_physics",
    "check_operator",
    "energy_spectrum",
    "solenoidal",
]
