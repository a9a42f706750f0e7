"""Evaluation: features of pictures, the scores computed from them, and a report on a run or on samples from anywhere."""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
