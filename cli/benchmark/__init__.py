"""Measure speed and memory: the operator, training, sampling, reading pictures."""
