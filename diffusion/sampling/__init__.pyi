from .inverse import Measurement as Measurement
from .inverse import solve as solve
from .pipeline import Pipeline as Pipeline
from .prior import Prior as Prior
