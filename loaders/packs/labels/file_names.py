"""Finding the rows of a pack by the names of the files that they were packed from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.pack import Pack
from loaders.packs.sources.naming import file_stem, folder_key, name_key

_SHOWN = 3


class RowNames:
    """Finds a row of a pack by a part of its path that no other row has.

    A name finds the row whose path ends with it, such as `IMG_1.jpg` or `cat/IMG_1.jpg`, or whose path it
    ends with, such as `/home/me/photos/cat/IMG_1.jpg`; the suffix of an image may be left out. So does a key.
    """

    def __init__(self, pack: Pack, row_ranges: Sequence[tuple[int, int]]) -> None:
        """Index the keys of these rows."""
        self._pack = pack
        self._rows: dict[str, list[tuple[list[str], int]]] = {}  # last part of the key -> parts, row
        for first, stop in row_ranges:
            for row in range(first, stop):
                parts = pack.key(row).split("/")
                self._rows.setdefault(parts[-1], []).append((parts, row))

    def find(self, name: str, where: str | Path, remedy: str = "") -> int:
        """Return the row that a name means.

        Args:
            name: name of a file, with as much of its path as is needed to be unique.
            where: begins the message.
            remedy: ends it; by default an example of a list.

        Raises:
            UserError: no row has the name, or several have it.
        """
        for key, row in self._rows.get(name.rpartition("/")[2], []):
            if "/".join(key) == name:  # a whole key is never another's, however its parts read as a path
                return row
        given = name.strip().replace("\\", "/").removeprefix("./")
        folder, _, file = given.rpartition("/")
        stems = dict.fromkeys((name_key(file_stem(file)), name_key(file), file))
        folders = [part for part in folder.split("/") if part not in ("", ".")]
        parts = [part if "%" in part else folder_key(part) for part in folders]
        for stem in stems:
            ends = [(_common(key, [*parts, stem]), row) for key, row in self._rows.get(stem, [])]
            longest = max((length for length, _ in ends), default=0)
            rows = [row for length, row in ends if length == longest > 0]
            if len(rows) == 1:
                return rows[0]
            if rows:
                shown = ", ".join(self._pack.key(row) for row in rows[:_SHOWN])
                raise UserError(
                    f"{where}: {name!r} may be {len(rows)} images, such as {shown}: give more of its path"
                )
        raise UserError(f"{where}: the pack has no image called {name!r}; {remedy or self.example()}")

    def name(self) -> str:
        """Return the name of an image of this very pack."""
        parts, _ = next(iter(self._rows.values()))[0]
        return f"{'/'.join(parts[1:] or parts)}.jpg"

    def example(self) -> str:
        """Return a line of the expected form with a name and a class of this very pack."""
        label = self._pack.classes[0] if self._pack.classes else "cat"
        return f"expected a heading and a line per image, such as: path,class / {self.name()},{label}"


def _common(key: list[str], name: list[str]) -> int:
    """Return how many parts match, if the name ends the key or the key without its split ends the name."""
    path = key[1:]
    if key[-len(name) :] == name:
        return len(name)
    return len(path) if name[-len(path) :] == path else 0
