"""Fused numba kernels: from decoded pixels to a finished view in few traverses of the pixels."""
