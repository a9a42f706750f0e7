"""Generative diffusion on the advection-diffusion operator: processes, network, training, sampling."""
