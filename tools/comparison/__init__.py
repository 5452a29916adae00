"""Comparisons of all methods at an equal budget of CPU time."""
