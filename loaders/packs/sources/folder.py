"""A folder tree: class folders (`root/class/x.jpg`) or a flat folder without labels."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs.reasons import Reason
from loaders.packs.sources.bytes_at import read_listed_file
from loaders.packs.sources.item import MAX_FILE_BYTES, Source, SourceItem, printable
from loaders.packs.sources.naming import file_key, file_stem, folder_key, join_key, name_key, unwanted


class FolderSource(Source):
    """Files below `root`; a file's label is the name of its folder, and files in `root` itself have none."""

    labels_are_folders = True

    def __init__(self, root: Path) -> None:
        """Use the tree below `root`.

        Raises:
            UserError: `root` is no folder.
        """
        if not root.is_dir():
            raise UserError(f"{root} is not a folder: expected a folder of images or a .tar file")
        self._root = os.fspath(root)

    def items(self) -> Iterator[SourceItem]:
        """Walk the tree in the order of names; memory holds the listing of one folder per level."""
        yield from self._walk("", (os.path.realpath(self._root),))

    def _walk(self, folder: str, ancestors: tuple[str, ...]) -> Iterator[SourceItem]:
        path = os.path.join(self._root, folder) if folder else self._root
        try:
            with os.scandir(path) as scan:
                entries = sorted((entry.name, entry.is_dir()) for entry in scan)
        except OSError as error:
            raise UserError(
                f"cannot list the folder {printable(path)} ({error.strerror}): make it readable and start "
                f"again"
            ) from None
        stems = [file_stem(name) for name, is_folder in entries if not is_folder]
        # Files that share a stem, such as "a", "a.jpg" and "a.png", keep their suffixes in their keys.
        shared = {stem for stem, count in Counter(stems).items() if count > 1}
        following = iter(stems)
        prefix, key_prefix = (f"{folder}/", folder_key(folder)) if folder else ("", "")
        label = folder.rpartition("/")[2] or None
        for name, is_folder in entries:
            if not is_folder:
                stem = next(following)
                key = join_key(key_prefix, name_key(name if stem in shared else stem or name))
                yield self._file(prefix + name, key, label, f"{path}/{name}")
            elif (real := os.path.realpath(f"{path}/{name}")) not in ancestors:
                yield from self._walk(prefix + name, (*ancestors, real))
            else:
                key = join_key(key_prefix, file_key(name, False))
                problem = "a link to a folder that contains it (endless loop)"
                yield SourceItem(prefix + name, key, None, 0, problem=problem, reason=Reason.NOT_A_FILE)

    @staticmethod
    def _file(name: str, key: str, label: str | None, path: str) -> SourceItem:
        if reason := unwanted(name):
            return SourceItem(name, key, None, 0, problem=reason, reason=Reason.HIDDEN)
        try:
            facts = os.stat(path)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            return SourceItem(name, key, label, 0, problem=problem)
        if not stat.S_ISREG(facts.st_mode):
            return SourceItem(name, key, label, 0, problem="not a regular file", reason=Reason.NOT_A_FILE)
        return SourceItem(name, key, label, facts.st_size)

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a file."""
        return read_listed_file(os.path.join(self._root, item.name), self._root, item)

    def read_many(
        self, items: Sequence[SourceItem]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
        """Read many files in one call; see `Source.read_many`."""
        # This import loads compiled code, which a small folder does not need.
        from loaders.kernels.packing.read import read_files

        root = f"{self._root}/"
        paths = [os.fsencode(root + item.name) for item in items]
        ends = np.cumsum([0, *(len(path) + 1 for path in paths)])
        fits = [item.problem is None and item.size_bytes <= MAX_FILE_BYTES for item in items]
        sizes = np.array([item.size_bytes if fit else 0 for item, fit in zip(items, fits, strict=True)])
        data, starts, good = read_files(b"\0".join([*paths, b""]), ends[:-1], sizes)
        return data, starts, good & np.array(fits)
