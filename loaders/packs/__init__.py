"""Packs: images packed once into shards with an index, and what reads and writes them."""

from loaders.packs.labels import LabelTable
from loaders.packs.pack import Pack, Split, open_pack
from loaders.packs.store import StoreOptions

__all__ = ["LabelTable", "Pack", "Split", "StoreOptions", "open_pack"]
