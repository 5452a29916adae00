"""Compiled inner loops of packing, in which Python would cost more than the work itself."""
