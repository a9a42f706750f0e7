"""Pictures: where they come from, how they are prepared once, and how training reads them."""

import lazy_loader

# The public names, imported at first use: see __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
