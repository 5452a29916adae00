"""Compiled inner loops: what would cost more as Python than the work itself."""
