"""Generative diffusion on the advection-diffusion operator: processes, network, data, training, sampling, evaluation.

Pipeline        a trained run: load, sample, interpolate, restore, share
train           train a run (RunConfig: ForwardProcess, NetworkConfig, TrainingConfig) on a data set
open_dataset    pictures from a folder, an archive or a name
evaluate        score a run, or samples from anywhere, against real pictures
named_process   a forward process by name (PROCESSES); preset: a whole run by name (PRESETS)
residual_sampler, resampling_sampler    the samplers, as functions
"""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
