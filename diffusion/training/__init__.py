"""Training: the loop, its state, checkpoints, log and ranks, and an estimate of what a run takes."""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
