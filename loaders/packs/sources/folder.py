"""A folder tree: class folders (`root/class/x.jpg`) or a flat folder without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loaders.errors import UserError
from loaders.packs.sources.bytes_at import read_listed_file
from loaders.packs.sources.item import SourceItem, printable
from loaders.packs.sources.naming import file_keys, folder_key, join_key


class FolderSource:
    """Files below `root`; the class is the folder a file lies in, files in the root itself have none."""

    labels_are_folders = True

    def __init__(self, root: Path) -> None:
        """Use the tree below `root`.

        Raises:
            UserError: `root` is no folder.
        """
        if not root.is_dir():
            raise UserError(f"{root} is no folder: expected a folder of images or a .tar file")
        self._root = os.fspath(root)

    def items(self) -> Iterator[SourceItem]:
        """Walk the tree in the order of the names, holding one folder's listing per level in memory."""
        yield from self._walk("", (os.path.realpath(self._root),))

    def _walk(self, folder: str, ancestors: tuple[str, ...]) -> Iterator[SourceItem]:
        path = os.path.join(self._root, folder) if folder else self._root
        try:
            with os.scandir(path) as scan:
                entries = sorted(((entry.name, entry.is_dir(), entry) for entry in scan), key=lambda e: e[0])
        except OSError as error:
            raise UserError(
                f"cannot list the folder {printable(path)} ({error.strerror}): make it readable and start "
                f"again"
            ) from None
        names = [name for name, is_folder, _ in entries if not is_folder]
        keys = dict(zip(names, file_keys(names), strict=True))
        prefix, key_prefix = (f"{folder}/", folder_key(folder)) if folder else ("", "")
        label = folder.rpartition("/")[2] or None
        for name, is_folder, entry in entries:
            if not is_folder:
                yield self._file(prefix + name, join_key(key_prefix, keys[name]), label, entry)
            elif (real := os.path.realpath(entry.path)) not in ancestors:
                yield from self._walk(prefix + name, (*ancestors, real))
            else:
                key = join_key(key_prefix, file_keys([name])[0])
                problem = "a link to a folder that holds it (endless loop)"
                yield SourceItem(prefix + name, key, None, 0, problem=problem)

    @staticmethod
    def _file(name: str, key: str, label: str | None, entry: os.DirEntry[str]) -> SourceItem:
        try:
            size = entry.stat().st_size
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            return SourceItem(name, key, label, 0, problem=problem)
        if not entry.is_file():
            return SourceItem(name, key, label, 0, problem="not a regular file")
        return SourceItem(name, key, label, size)

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a file."""
        return read_listed_file(os.path.join(self._root, item.name), self._root, item)

    def class_names(self) -> None:
        """A class is a folder; there is no order of their own."""

    def close(self) -> None:
        """Nothing is held open."""
