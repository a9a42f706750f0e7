"""Generative diffusion on the advection-diffusion operator: processes, network, training, sampling.

Pipeline        a trained run: load, sample, interpolate, restore, share
train           train a run (RunConfig: ForwardProcess, NetworkConfig, TrainingConfig) on a data set
open_dataset    pictures from a folder, an archive or a name
named_process   a forward process by name (PROCESSES); preset: a whole run by name (PRESETS)
residual_sampler, resampling_sampler    the walks themselves, as functions
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.checkpoint import RunConfig, TrainingConfig
    from diffusion.data import ImageDataset, open_dataset
    from diffusion.network import NetworkConfig, UNet
    from diffusion.pipeline import Pipeline
    from diffusion.presets import PRESETS, preset
    from diffusion.prior import Prior
    from diffusion.process import PROCESSES, ForwardProcess, named_process
    from diffusion.sampling import resampling_sampler, residual_sampler
    from diffusion.training import train

__all__ = [
    "PRESETS",
    "PROCESSES",
    "ForwardProcess",
    "ImageDataset",
    "NetworkConfig",
    "Pipeline",
    "Prior",
    "RunConfig",
    "TrainingConfig",
    "UNet",
    "named_process",
    "open_dataset",
    "preset",
    "resampling_sampler",
    "residual_sampler",
    "train",
]

_MODULES = {
    "checkpoint": ("RunConfig", "TrainingConfig"),
    "data": ("ImageDataset", "open_dataset"),
    "network": ("NetworkConfig", "UNet"),
    "pipeline": ("Pipeline",),
    "prior": ("Prior",),
    "presets": ("PRESETS", "preset"),
    "process": ("PROCESSES", "ForwardProcess", "named_process"),
    "sampling": ("resampling_sampler", "residual_sampler"),
    "training": ("train",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: each brings only what it needs (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
