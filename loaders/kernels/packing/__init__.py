"""Compiled inner loops of packing: what would cost more as Python than the work itself."""
