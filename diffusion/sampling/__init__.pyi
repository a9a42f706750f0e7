from .pipeline import Pipeline as Pipeline
from .prior import Prior as Prior
from .samplers import resampling_sampler as resampling_sampler
from .samplers import residual_sampler as residual_sampler
