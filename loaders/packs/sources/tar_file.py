"""A .tar of a folder tree, read in place: the members are listed once, then read by offset."""

from __future__ import annotations

from collections.abc import Iterator

from loaders.packs.sources.bytes_at import read_at
from loaders.packs.sources.item import SourceItem, check_size
from loaders.packs.sources.tar_members import list_members
from loaders.packs.sources.tree import ArchiveSource, TreeListing


class TarSource(ArchiveSource):
    """The files below one folder of a tar."""

    def items(self) -> Iterator[SourceItem]:
        """List the members and yield those below the root in the order of a folder walk."""
        listing = TreeListing(self._name, self._inside)
        for entry in list_members(self._path):
            listing.add(entry)
        return listing.items()

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a member."""
        data = read_at(self._descriptor, item.position, item.size_bytes)
        check_size(self._name, item, len(data))
        return data
