"""Forward processes: operators, scales, and what the two make of an image."""

from diffusion.forward.operators import Blur, FlowAndBlur, Geometric, Identity, Operator, Sine, Truncated, Waves
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import ConstantNoise, Cosine, FirstQuarter, LinearBeta, LinearPath, LogSNR, Scales, VariancePreserving

__all__ = [
    "Blur",
    "ConstantNoise",
    "Cosine",
    "FirstQuarter",
    "FlowAndBlur",
    "ForwardProcess",
    "Geometric",
    "Identity",
    "LinearBeta",
    "LinearPath",
    "LogSNR",
    "Operator",
    "Scales",
    "Sine",
    "Truncated",
    "VariancePreserving",
    "Waves",
]
