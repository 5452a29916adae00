"""Packs: images packed once into shards with an index, and what reads and writes them."""

from loaders.packs.labels import LabelTable
from loaders.packs.pack import Pack, Split, open_pack

__all__ = ["LabelTable", "Pack", "Split", "open_pack"]
