"""A .tar of a folder tree, read in place: the members are listed once, then read by offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loaders.packs.sources.bytes_at import open_file, read_at
from loaders.packs.sources.item import Source, SourceItem, check_size
from loaders.packs.sources.tar_members import list_members
from loaders.packs.sources.tree import TreeListing


class TarSource(Source):
    """The files below one folder of a tar; the class of a file is its folder, as in a folder tree."""

    labels_are_folders = True

    def __init__(self, path: Path, inside: str | None, name: str) -> None:
        """Open a tar.

        Args:
            inside: folder inside the tar that is the root, see `TreeListing`.
            name: PATH that the user gave, for messages.

        Raises:
            UserError: the file cannot be opened.
        """
        self._path, self._inside, self._name = path, inside, name
        self._descriptor = open_file(path)

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

    def close(self) -> None:
        """Close the tar."""
        os.close(self._descriptor)
