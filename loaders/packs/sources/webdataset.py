"""WebDataset shards: a sample is a run of members whose paths agree up to the file name's first dot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from loaders.common.json_text import parse_json
from loaders.packs.reasons import Reason
from loaders.packs.sources.bytes_at import open_file, read_at
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size
from loaders.packs.sources.naming import IMAGE_SUFFIXES, folder_key, unwanted
from loaders.packs.sources.numbers import NumberedClasses, NumberLabels
from loaders.packs.sources.table_columns import LABEL_COLUMNS, ColumnOptions, find_column, unused_labels
from loaders.packs.sources.tar_members import list_members

_MAX_LABEL_BYTES = 1 << 16
_MAYBE_LABELS = ("txt", "label", "label.txt", "class", "cls.txt", "category", "target", "index")


class WebDatasetSource(NumberLabels):
    """Samples of one or more shards; the label is in `.cls`, or in a field such as `label` of `.json`.

    A `.txt` is taken as a caption, as in shards of img2dataset, unless the user chooses it as the label.
    """

    def __init__(self, paths: list[Path], options: ColumnOptions | None = None) -> None:
        """Use these shards, in this order.

        Args:
            paths: the shards, uncompressed tars.
            options: `label_column` is the suffix of a member, such as `txt`, or a field of `.json`.
        """
        self._paths = {path.name: path for path in paths}
        self._opened: dict[str, int] = {}
        options = options or ColumnOptions()
        self._asked, self._classes = options.label_column, NumberedClasses(None, options.multi_label)
        self.has_labels = False
        self._unused: dict[str, None] = {}

    def items(self) -> Iterator[SourceItem]:
        """Yield the images of all samples; unwanted files and samples without an image have a problem."""
        self._unused = {}
        for shard, path in self._paths.items():
            refused: list[SourceItem] = []
            members = _wanted(shard, list_members(path), refused)
            for stem, sample in groupby(members, key=lambda m: _split_name(m.name)[0]):
                yield from self._sample(shard, stem, list(sample))
            yield from refused

    def _sample(self, shard: str, stem: str, members: list[SourceItem]) -> Iterator[SourceItem]:
        images = [m for m in members if _split_name(m.name)[1].rpartition(".")[2].lower() in IMAGE_SUFFIXES]
        label, no_label = None, None
        try:
            label = self._label(shard, members)
        except UnreadableItem as error:
            no_label = f"its label {error}"
        key = folder_key(stem).replace(".", "%2E") if "." in stem else folder_key(stem)
        if not images:
            problem = f"a sample without an image: {', '.join(_split_name(m.name)[1] for m in members)}"
            name = f"{shard}/{members[0].name}"
            yield SourceItem(name, key, None, 0, problem=problem, reason=Reason.NO_IMAGE)
        for number, m in enumerate(images):
            # A sample with several images becomes several rows, since no image may be dropped silently.
            own = key if len(images) == 1 else f"{key}%2F{number}"
            why = (m.problem, m.reason) if m.problem else (no_label, Reason.UNREADABLE)
            yield SourceItem(f"{shard}/{m.name}", own, label, m.size_bytes, m.position, *why)

    def _label(self, shard: str, members: list[SourceItem]) -> str | None:
        texts = {_split_name(m.name)[1].lower(): m for m in members if m.size_bytes <= _MAX_LABEL_BYTES}
        asked = self._asked or "cls"
        for suffix in dict.fromkeys((asked.lower(), "json")):
            if suffix not in texts:
                continue
            entry = texts[suffix]
            if entry.problem:
                raise UnreadableItem(f"is {entry.problem}")
            where = f"{shard}/{entry.name}"
            data = read_at(self._file(shard), entry.position, entry.size_bytes)
            if suffix != "json":
                self.has_labels = True
                text = data.decode("utf-8-sig", "replace").strip()
                return self._classes.label(text, where)
            fields = _json_fields(data)
            found = find_column(fields, (self._asked.lower(),) if self._asked else LABEL_COLUMNS)
            if found is not None:
                self.has_labels = True
                return self._classes.label(fields[found], f"{where}, field {found!r}")
            self._unused.update(dict.fromkeys(f".json {name}" for name in unused_labels([fields], ())))
        self._unused.update(dict.fromkeys(f".{s}" for s in texts if s in _MAYBE_LABELS))
        return None

    def _file(self, shard: str) -> int:
        if shard not in self._opened:
            self._opened[shard] = open_file(self._paths[shard])
        return self._opened[shard]

    def notes(self) -> list[str]:
        """Return the notes on labels, and on unused members and fields, for the summary."""
        notes = self._classes.notes()
        if self._unused and not self.has_labels:
            notes.append(
                f"no sample has a .cls or a .json with the field label; not used, but maybe labels: "
                f"{', '.join([*self._unused][:4])} (--label-column takes the suffix of a member or a field)"
            )
        return notes

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of an image."""
        shard = item.name.split("/", 1)[0]
        data = read_at(self._file(shard), item.position, item.size_bytes)
        check_size(str(self._paths[shard]), item, len(data))
        return data

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._opened.values():
            os.close(descriptor)


def _wanted(shard: str, members: Iterator[SourceItem], refused: list[SourceItem]) -> Iterator[SourceItem]:
    """Yield the members that belong to samples; collect other members, such as macOS's, in `refused`."""
    for m in members:
        if reason := unwanted(m.name):
            key = folder_key(m.name).replace(".", "%2E")
            name = f"{shard}/{m.name}"
            refused.append(SourceItem(name, key, None, 0, problem=reason, reason=Reason.HIDDEN))
        else:
            yield m


def _split_name(name: str) -> tuple[str, str]:
    """Split `folder/a.seg.png` into `folder/a` and `seg.png`."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix


def _json_fields(data: bytes) -> dict[str, Any]:
    try:
        raw = parse_json(data)
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}
