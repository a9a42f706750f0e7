"""Warp kernels. They import no torch: arrays in, arrays out."""
