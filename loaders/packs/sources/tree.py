"""Files listed in any order, brought into the order and the keys of a folder walk.

Archives and remote stores list their members as they please. Sorting them as a walk over the unpacked
folder would visit them makes the pack of an archive the pack of its folder, byte for byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from loaders.errors import UserError
from loaders.packs.sources.item import SourceItem
from loaders.packs.sources.naming import file_keys, folder_key, join_key


class FileEntry(NamedTuple):
    """A file as an archive lists it: its path, where its bytes are, and why it cannot be read, if so."""

    name: str
    offset: int
    size_bytes: int
    problem: str | None = None


class TreeListing:
    """Collects entries and gives them as items."""

    def __init__(self, source: str, inside: str | None) -> None:
        """Begin a listing.

        Args:
            source: name of the archive, for messages.
            inside: folder that is the root; None takes the deepest folder that holds all files, so that the
                one top folder most archives have does not become a class.
        """
        self._source = source
        self._inside = None if inside is None else inside.strip("/")
        self._entries: list[FileEntry] = []

    def add(self, entry: FileEntry) -> None:
        """Add a file; "./" and "/" in front are dropped, ".." is text, since nothing is written to disk."""
        name = "/".join(part for part in entry.name.split("/") if part not in ("", "."))
        self._entries.append(entry if name == entry.name else entry._replace(name=name))

    def items(self) -> Iterator[SourceItem]:
        """Yield the files below the root in the order of a folder walk.

        Raises:
            UserError: no file lies below the root.
        """
        entries = self._entries
        root = _common_folder([e.name for e in entries]) if self._inside is None else self._inside
        prefix = f"{root}/" if root else ""
        chosen = [e for e in entries if e.name.startswith(prefix)]
        if not chosen:
            raise UserError(self._nothing_below(root))
        last = {entry.name: index for index, entry in enumerate(chosen)}
        names = sorted(last, key=lambda name: name.replace("/", "\0"))
        keys = _keys([name[len(prefix) :] for name in names])
        repeats: dict[str, list[FileEntry]] = defaultdict(list)
        for index, entry in enumerate(chosen):
            if last[entry.name] != index:
                repeats[entry.name].append(entry)
        for name, key in zip(names, keys, strict=True):
            for number, entry in enumerate(repeats.get(name, ())):
                problem = "a later member of the archive has the same name"
                yield _item(entry, prefix, f"{key}%2Frepeat{number}", problem)
            yield _item(chosen[last[name]], prefix, key, None)

    def _nothing_below(self, root: str) -> str:
        if not self._entries:
            return f"{self._source} holds no file: expected an archive or a folder of images"
        tops = sorted({"/".join(e.name.split("/")[:2]) for e in self._entries if "/" in e.name})[:4]
        return (
            f"{self._source} holds no file below {root!r}: expected one of its folders, e.g. "
            f"{', '.join(tops)}"
        )


def _item(entry: FileEntry, prefix: str, key: str, problem: str | None) -> SourceItem:
    name = entry.name[len(prefix) :]
    label = name.rpartition("/")[0].rpartition("/")[2] or None
    return SourceItem(name, key, label, entry.size_bytes, entry.offset, problem or entry.problem)


def _common_folder(names: list[str]) -> str:
    if not names:
        return ""
    folders = [name.rpartition("/")[0] for name in (min(names), max(names))]
    common = []
    for a, b in zip(*(folder.split("/") for folder in folders), strict=False):
        if a != b:
            break
        common.append(a)
    return "/".join(common)


def _keys(names: list[str]) -> list[str]:
    """Return the key of each path, distinct as in a folder walk."""
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        files[folder].append(file)
    by_folder = {}
    for folder, inside in files.items():
        by_folder[folder] = (folder_key(folder), dict(zip(inside, file_keys(inside), strict=True)))
    keys = []
    for name in names:
        folder, _, file = name.rpartition("/")
        key, inside_keys = by_folder[folder]
        keys.append(join_key(key, inside_keys[file]))
    return keys
