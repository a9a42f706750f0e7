"""Warp kernels. Nothing here knows torch: arrays in, arrays out."""
