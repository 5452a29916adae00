"""Compiled loops of packing, called without loading the compiler: see `kernel`."""
