"""Fused numba kernels: from decoded pixels to a finished view in as few traverses as the mathematics allows."""
