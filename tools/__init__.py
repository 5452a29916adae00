"""Packing, verifying, measuring, reporting: one runnable file each."""
