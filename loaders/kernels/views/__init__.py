"""Fused numba kernels: from decoded pixels to a finished view in few passes over the pixels."""
