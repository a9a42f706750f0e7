"""Sampling: the samplers, the prior they start from, and the pipeline that holds a trained run."""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
