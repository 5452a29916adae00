"""Comparisons of all methods at an equal budget of processor time."""
