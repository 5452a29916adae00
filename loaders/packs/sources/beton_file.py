"""FFCV's .beton files, written by Sluice or by FFCV itself: images as JPEG bytes or as pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from loaders.packs.shards.beton_layout import MODE_JPEG, read_beton
from loaders.packs.sources.bytes_at import open_file, read_at
from loaders.packs.sources.item import SourceItem, check_size
from loaders.packs.sources.naming import file_key
from loaders.packs.sources.numbers import NumberedClasses, NumberLabels


class BetonSource(NumberLabels):
    """Samples of one or more betons; a beton has no keys, so the number of a sample is its key."""

    def __init__(self, paths: list[Path]) -> None:
        """Use these betons, in this order."""
        self._paths = {path.name: path for path in paths}
        self._opened: dict[str, int] = {}
        self._classes = NumberedClasses()

    def items(self) -> Iterator[SourceItem]:
        """List the samples file by file."""
        for file, path in self._paths.items():
            prefix = f"{file_key(path.stem, False)}/" if len(self._paths) > 1 else ""
            content = read_beton(path)
            for number, (sample, size) in enumerate(zip(content.samples, content.sizes, strict=True)):
                image, label = (
                    sample["image"],
                    self._classes.label(int(sample["label"]), f"{file}, sample {number}"),
                )
                key, name = f"{prefix}{number:08d}", f"{file}/{number}"
                if image["mode"] != MODE_JPEG:
                    # Pixels alone do not tell the size of the image, so the item's name carries it to `read`.
                    name += f"/{image['width']}x{image['height']}"
                    size = len(_pixmap_head(name)) + int(size)
                yield SourceItem(name, key, label, int(size), int(image["data_ptr"]))

    def read(self, item: SourceItem) -> bytes:
        """Return the JPEG bytes of a sample, or its pixels as a binary portable pixmap."""
        file, _, rest = item.name.partition("/")
        if file not in self._opened:
            self._opened[file] = open_file(self._paths[file])
        head = _pixmap_head(item.name) if "/" in rest else b""
        data = head + read_at(self._opened[file], item.position, item.size_bytes - len(head))
        check_size(str(self._paths[file]), item, len(data))
        return data

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._opened.values():
            os.close(descriptor)


def _pixmap_head(name: str) -> bytes:
    width, _, height = name.rpartition("/")[2].partition("x")
    return f"P6\n{width} {height}\n255\n".encode()
