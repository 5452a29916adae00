"""Find the rows of a pack by the names of the files that they were packed from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loaders.common.errors import UserError
from loaders.packs.pack import Pack
from loaders.packs.sources.naming import file_stem, folder_key, name_key

_SHOWN = 3


class RowNames:
    """Finds rows of a pack by the paths of their files, of which a unique part suffices.

    A name may be the end of the row's path, such as `IMG_1.jpg` or `cat/IMG_1.jpg`, or a longer path that
    ends with the row's path, such as `/home/me/photos/cat/IMG_1.jpg`. The suffix of the file may be left out.
    The key of a row is a name, too.
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
        """Return the row with this name.

        Args:
            name: name of a file, with enough of its path to be unique, or a key.
            where: begins the error message.
            remedy: ends the message if no row has the name; by default an example of a list.

        Raises:
            UserError: no row has the name, or several have it.
        """
        for key, row in self._rows.get(name.rpartition("/")[2], []):
            if "/".join(key) == name:  # a key means its own row, even if it is part of another path
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
                    f"{where}: {name!r} matches {len(rows)} images, such as {shown}: give more of its path"
                )
        raise UserError(f"{where}: the pack has no image called {name!r}; {remedy or self.example()}")

    def name(self) -> str:
        """Return the name of one of the rows, as an example."""
        parts, _ = next(iter(self._rows.values()))[0]
        return f"{'/'.join(parts[1:] or parts)}.jpg"

    def example(self) -> str:
        """Return a text that shows the expected form of a list, with a name and a class of this pack."""
        label = self._pack.classes[0] if self._pack.classes else "cat"
        return f"expected a heading and a line per image, such as: path,class / {self.name()},{label}"


def _common(key: list[str], name: list[str]) -> int:
    """Return how many parts of a path a key and a name have in common at the end; 0 for a partial match.

    In a full match the key ends with all of `name`, or `name` ends with all of the key but its split.
    """
    path = key[1:]
    if key[-len(name) :] == name:
        return len(name)
    return len(path) if name[-len(path) :] == path else 0
