"""Sorting listed files into the order of a folder walk, and giving them the keys of such a walk.

Archives and remote stores list their members in any order. Here the members are sorted into the order of a
walk over the unpacked folder, so an archive gives the same shards as its folder, byte for byte.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.packs.listing_lines import from_line, to_line
from loaders.packs.reasons import Reason
from loaders.packs.repeats import repeated_rows
from loaders.packs.sources.bytes_at import open_file
from loaders.packs.sources.item import Source, SourceItem
from loaders.packs.sources.naming import file_key, file_stem, folder_key, join_key, unwanted

_ENTRIES_AT_ONCE = 100_000
_SHOWN_FOLDERS = 4


class ArchiveSource(Source):
    """Base of archives of a folder tree, read in place; a file's label is the name of its folder."""

    labels_are_folders = True

    def __init__(self, path: Path, inside: str | None, name: str) -> None:
        """Open an archive.

        Args:
            inside: folder inside the archive that is the root, see `TreeListing`.
            name: PATH that the user gave, for messages.

        Raises:
            UserError: the file cannot be opened.
        """
        self._path, self._inside, self._name = path, inside, name
        self._descriptor = open_file(path)

    def close(self) -> None:
        """Close the archive."""
        os.close(self._descriptor)


class TreeListing:
    """Collects entries and yields them as items, sorted; entries beyond a limit wait on disk."""

    def __init__(self, source: str, inside: str | None, entries_at_once: int = _ENTRIES_AT_ONCE) -> None:
        """Start an empty listing.

        Args:
            source: the archive or remote folder, for messages.
            inside: folder to take as the root. None takes the deepest folder that holds all but hidden files,
                so that the single top folder of most archives does not become a class.
            entries_at_once: approximate number of entries held in memory.
        """
        self._source = source
        self._inside = None if inside is None else inside.strip("/")
        self._entries_at_once = entries_at_once
        self._buffer: list[tuple[str, int, SourceItem]] = []
        self._runs: list[IO[bytes]] = []
        self._num_entries = 0
        self._bounds: tuple[str, str] | None = None
        self._tops: dict[str, None] = {}

    def add(self, entry: SourceItem) -> None:
        """Add a file; its key and label are filled in later.

        Empty parts and "." are dropped from its path; ".." stays, since nothing is unpacked.
        """
        name = "/".join(part for part in entry.name.split("/") if part not in ("", "."))
        entry = entry if name == entry.name else entry._replace(name=name)
        # Files that a system such as macOS puts beside the single top folder must not change the root.
        if self._inside is not None or unwanted(name) is None:
            low, high = self._bounds or (name, name)
            self._bounds = min(low, name), max(high, name)
        if len(self._tops) < _SHOWN_FOLDERS and "/" in name:
            self._tops["/".join(name.split("/")[:2])] = None
        # With "\0" for "/", names sort in the order of a folder walk. The number keeps the order of members
        # that share a name.
        self._buffer.append((name.replace("/", "\0"), self._num_entries, entry))
        self._num_entries += 1
        if len(self._buffer) >= self._entries_at_once:
            self._spill()

    def _spill(self) -> None:
        """Write the entries in memory to disk, sorted."""
        run = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the listing
        for _, number, entry in sorted(self._buffer):
            run.write(b"%d\t" % number + to_line(entry))
        self._runs.append(run)
        self._buffer = []

    def _in_order(self) -> Iterator[SourceItem]:
        """Yield all entries in the order of a walk; may be called again."""

        def read(run: IO[bytes]) -> Iterator[tuple[str, int, SourceItem]]:
            run.seek(0)
            for line in run:
                number, _, rest = line.partition(b"\t")
                entry = from_line(rest)
                yield entry.name.replace("/", "\0"), int(number), entry

        self._buffer.sort()
        for _, _, entry in heapq.merge(self._buffer, *map(read, self._runs)):
            yield entry

    def items(self) -> Iterator[SourceItem]:
        """Yield the files below the root in the order of a folder walk.

        Without `inside`, hidden files outside the root are yielded too, each with its problem.

        Raises:
            UserError: no file lies below the root.
        """
        if self._runs:
            self._spill()
        root = _common_folder(self._bounds) if self._inside is None else self._inside
        prefix = f"{root}/" if root else ""
        with tempfile.TemporaryFile() as hashes:
            ambiguous = self._ambiguous_stems(prefix, hashes)
        if ambiguous is None:
            raise UserError(self._nothing_below(root))
        number, waiting = -1, None
        for entry in self._in_order():
            if not entry.name.startswith(prefix):
                if self._inside is None:
                    yield _refused(entry)
                continue
            number += 1
            name = entry.name[len(prefix) :]
            if waiting is not None and waiting[0] != name:
                yield from self._same_name(*waiting)
                waiting = None
            keeps_suffix = bool(len(ambiguous)) and _contains(ambiguous, number)
            if waiting is None:
                waiting = (name, _key(name, keeps_suffix), [entry])
            else:
                waiting[2].append(entry)
        if waiting is not None:
            yield from self._same_name(*waiting)
        for run in self._runs:
            run.close()

    @staticmethod
    def _same_name(name: str, key: str, entries: list[SourceItem]) -> Iterator[SourceItem]:
        """Yield the members that share a name; the last one counts, as unpacking it overwrites the others."""
        if reason := unwanted(name):
            entries = [entry._replace(problem=reason, reason=Reason.HIDDEN) for entry in entries]
        label = None if unwanted(name) else name.rpartition("/")[0].rpartition("/")[2] or None
        problem = "a later member of the archive has the same name"
        for number, entry in enumerate(entries[:-1]):
            own = f"{key}%2Frepeat{number}"
            yield SourceItem(name, own, label, entry.size_bytes, entry.position, problem, Reason.DUPLICATE)
        yield entries[-1]._replace(name=name, key=key, label=label)

    def _ambiguous_stems(self, prefix: str, file: IO[bytes]) -> NDArray[np.int64] | None:
        """Find the files below the root whose path without an image suffix is also that of another file.

        Returns:
            int64 [K], increasing positions among the files below the root; None if there is no file.
        """
        count, previous = 0, None
        for entry in self._in_order():
            if entry.name.startswith(prefix):
                folder, slash, name = entry.name.rpartition("/")
                # A repeated member is not ambiguous: its position is hashed instead of its path. A file in no
                # folder whose stem is this position, such as "1", counts as ambiguous, so its key keeps its
                # suffix. Another rule would change keys, and packs of such archives would fail verification.
                text = f"{count}" if entry.name == previous else f"{folder}{slash}{file_stem(name)}"
                file.write(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())
                count, previous = count + 1, entry.name
        if count == 0:
            return None
        file.flush()
        hashes = np.memmap(file, np.uint64, "r", shape=(count,))
        found = list(repeated_rows(hashes))
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _nothing_below(self, root: str) -> str:
        if not self._num_entries:
            return f"{self._source} holds no file: expected an archive or a folder of images"
        return (
            f"{self._source} holds no file below {root!r}: expected one of its folders, e.g. "
            f"{', '.join(sorted(self._tops))}"
        )


def _refused(entry: SourceItem) -> SourceItem:
    """Return the item of a member outside the root, which is a file that a program keeps for itself."""
    key = _key(entry.name, True)
    return SourceItem(entry.name, key, None, 0, entry.position, unwanted(entry.name), Reason.HIDDEN)


def _contains(sorted_rows: NDArray[np.int64], row: int) -> bool:
    place = int(np.searchsorted(sorted_rows, row))
    return place < len(sorted_rows) and bool(sorted_rows[place] == row)


def _common_folder(bounds: tuple[str, str] | None) -> str:
    """Return the deepest folder that holds all names, given the first and the last name in sorted order."""
    if bounds is None:
        return ""
    folders = [name.rpartition("/")[0] for name in bounds]
    common = []
    for a, b in zip(*(folder.split("/") for folder in folders), strict=False):
        if a != b:
            break
        common.append(a)
    return "/".join(common)


def _key(name: str, keeps_suffix: bool) -> str:
    folder, _, file = name.rpartition("/")
    return join_key(folder_key(folder), file_key(file, keeps_suffix))
