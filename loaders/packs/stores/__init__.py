"""Packs behind a network."""
