"""Packs: images packed once into shards with an index, and what reads and writes them."""

from loaders.packs.labels.tables import LabelTable
from loaders.packs.pack import Pack, Split, open_pack
from loaders.packs.stores.store import StoreOptions

__all__ = ["LabelTable", "Pack", "Split", "StoreOptions", "open_pack"]
