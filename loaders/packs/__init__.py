"""Packs: images packed once into shards with an index, and the code that reads and writes them.

Public names are imported on first use, so that a command line is checked before numpy and pyarrow load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaders.packs.labels.tables import LabelTable
    from loaders.packs.pack import Pack, Split, open_pack
    from loaders.packs.stores.store import StoreOptions

__all__ = ["LabelTable", "Pack", "Split", "StoreOptions", "open_pack"]

_HOMES = {
    "LabelTable": "loaders.packs.labels.tables",
    "Pack": "loaders.packs.pack",
    "Split": "loaders.packs.pack",
    "StoreOptions": "loaders.packs.stores.store",
    "open_pack": "loaders.packs.pack",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loaders.packs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, although they may not be imported yet."""
    return sorted({*globals(), *__all__})
