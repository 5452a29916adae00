"""Remote folders of images: s3://, gs://, hf:// and every other protocol that fsspec knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loaders.packs.sources.item import UNKNOWN_BYTES, Source, SourceItem, UnreadableItem, check_size
from loaders.packs.sources.tree import TreeListing
from loaders.packs.stores.connect import connect, store_errors


class RemoteFolderSource(Source):
    """Files below a remote folder, one request each; a file's label is the name of its folder."""

    labels_are_folders = True

    def __init__(self, url: str) -> None:
        """Connect, without listing anything."""
        self._url = url
        self._fs, self._root = connect(url.rstrip("/"))

    def items(self) -> Iterator[SourceItem]:
        """List the tree and yield its files in the order of a folder walk."""
        listing = TreeListing(self._url, None)
        with store_errors(self._url, "cannot be listed"):
            found = self._fs.find(self._root, detail=True)
            sizes = {path: info["size"] for path, info in found.items()}
            untold = [path for path, size in sizes.items() if size is None]  # a web page lists only names
            sizes |= dict(zip(untold, self._fs.sizes(untold), strict=True))
        prefix = self._root.rstrip("/") + "/"
        for path, size in sizes.items():
            listing.add(SourceItem(path.removeprefix(prefix), "", None, known_size(size)))
        return listing.items()

    def read(self, item: SourceItem) -> bytes:
        """Fetch one file."""
        return fetch(self._fs, f"{self._root.rstrip('/')}/{item.name}", self._url, item)


def known_size(size: Any) -> int:
    """Return the size that a file system reports, or `UNKNOWN_BYTES` if it reports none."""
    return UNKNOWN_BYTES if size is None else int(size)


def fetch(fs: Any, path: str, source: str, item: SourceItem) -> bytes:
    """Return the bytes of a remote file.

    Raises:
        UnreadableItem: the server refuses this file.
        UserError: the file is gone, its size has changed since the listing, or the server does not answer.
    """
    remedy = "bring the source back and start the same command again, it resumes"
    try:
        with store_errors(path, "was listed and cannot be read now", remedy, let=PermissionError):
            data: bytes = fs.cat_file(path)
    except PermissionError as error:
        raise UnreadableItem(f"cannot be read: {error}") from None
    check_size(source, item, len(data))
    return data
