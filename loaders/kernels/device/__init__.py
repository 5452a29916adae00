"""Triton kernels: the views of `loaders.kernels.views` on a device, from the same drawn numbers."""
