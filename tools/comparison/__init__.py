"""Comparisons of methods at an equal budget of CPU time."""
