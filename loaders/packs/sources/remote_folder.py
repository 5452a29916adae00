"""Images behind fsspec: folders on s3://, gs://, hf:// and whatever else fsspec reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from loaders.common.errors import MissingBackendError, UserError
from loaders.packs.sources.item import FolderLabels, ImageSource, SourceItem, UnreadableItem, check_size
from loaders.packs.sources.tree import FileEntry, TreeListing

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str) -> bool:
    """Tell whether a path names a protocol."""
    return _PROTOCOL.match(path) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it.

    Raises:
        MissingBackendError: the protocol needs a package that is not installed.
        UserError: fsspec does not know the protocol, or refuses to connect.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingBackendError(f"{url}: {error}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{url} cannot be reached ({error}): check the address") from None
    return fs, path


def remote_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of fsspec for a server that refuses or does not answer."""
    kinds: list[type[BaseException]] = [OSError, TimeoutError]
    try:
        import aiohttp

        kinds.append(aiohttp.ClientError)
    except ImportError:
        pass
    return tuple(kinds)


def open_remote_file(url: str) -> Any:
    """Open one remote file for reading from its beginning.

    Raises:
        UserError: the file does not exist or cannot be reached.
    """
    fs, path = file_system(url)
    try:
        return fs.open(path, "rb")
    except remote_errors() as error:
        raise UserError(f"{url} cannot be opened ({error}): check the address") from None


def open_remote_folder(url: str) -> ImageSource:
    """Open the tree below a remote folder."""
    return RemoteFolderSource(url)


class RemoteFolderSource(FolderLabels):
    """Files below a remote folder, one request each; the class of a file is its folder."""

    def __init__(self, url: str) -> None:
        """Connect, without listing anything."""
        self._url = url
        self._fs, self._root = file_system(url.rstrip("/"))

    def items(self) -> Iterator[SourceItem]:
        """List the tree and yield its files in the order of a folder walk."""
        listing = TreeListing(self._url, None)
        try:
            found = self._fs.find(self._root, detail=True)
        except remote_errors() as error:
            raise UserError(f"{self._url} cannot be listed ({error}): check the address") from None
        prefix = self._root.rstrip("/") + "/"
        for path, info in found.items():
            listing.add(FileEntry(path.removeprefix(prefix), 0, int(info["size"] or 0)))
        for item in listing.items():
            yield item._replace(position=-1)

    def read(self, item: SourceItem) -> bytes:
        """Fetch one file."""
        return fetch(self._fs, f"{self._root.rstrip('/')}/{item.name}", self._url, item)


def fetch(fs: Any, path: str, source: str, item: SourceItem) -> bytes:
    """Return the bytes of a remote file.

    Raises:
        UnreadableItem: the server refuses this file.
        UserError: the file is gone, its size has changed, or the server does not answer.
    """
    try:
        data: bytes = fs.cat_file(path)
    except PermissionError as error:
        raise UnreadableItem(f"cannot be read: {error}") from None
    except remote_errors() as error:
        raise UserError(
            f"{path} was listed and cannot be read now ({error}): bring the source back and start the same "
            f"command again, it resumes"
        ) from None
    check_size(source, item, len(data))
    return data
