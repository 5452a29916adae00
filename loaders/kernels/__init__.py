"""Compiled inner loops, in which Python would cost more than the work itself."""
