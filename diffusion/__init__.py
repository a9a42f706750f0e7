"""Generative diffusion on the advection-diffusion operator: methods, networks, data, training, sampling, evaluation.

Pipeline        a trained run: load, sample, interpolate, restore, share; solve: draw what a measurement may have come from
train           train a run (RunConfig: Method, NetworkSpec, TrainingConfig) on pictures; Observer: what it tells
Method          an operator, scales, a denoiser, a density of levels and a sampler; named_method: the published ones (METHODS)
Operator, Scales, Denoiser, Density, Sampler, NetworkSpec, LearningRate    base classes, to bring your own
open_dataset    pictures from a folder, an archive or a name; as_dataset: from arrays and from the data sets of other libraries
evaluate        score a run, or samples from anywhere, against real pictures
preset          a whole run by name (PRESETS)
"""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
