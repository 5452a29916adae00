"""WebDataset shards: samples are runs of members with one name up to the first dot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from loaders.json_text import parse_json
from loaders.packs.reasons import Reason
from loaders.packs.sources.bytes_at import open_file, read_at
from loaders.packs.sources.item import SourceItem, UnreadableItem, check_size
from loaders.packs.sources.naming import IMAGE_SUFFIXES, folder_key
from loaders.packs.sources.numbers import NumberedClasses
from loaders.packs.sources.tar_members import list_members
from loaders.packs.sources.tree import FileEntry

_MAX_LABEL_BYTES = 1 << 16


class WebDatasetSource:
    """Samples of one or more shards; the label is in `.cls`, in `.txt`, or in `label` of `.json`."""

    labels_are_folders = False

    def __init__(self, paths: list[Path]) -> None:
        """Use these shards, in this order."""
        self._paths = {path.name: path for path in paths}
        self._opened: dict[str, int] = {}
        self._classes = NumberedClasses()

    def items(self) -> Iterator[SourceItem]:
        """List the samples shard by shard."""
        for shard, path in self._paths.items():
            for stem, members in groupby(list_members(path), key=lambda m: _split_name(m.name)[0]):
                yield from self._sample(shard, stem, list(members))

    def _sample(self, shard: str, stem: str, members: list[FileEntry]) -> Iterator[SourceItem]:
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
            # A sample with several images becomes several rows: none may vanish without a word.
            own = key if len(images) == 1 else f"{key}%2F{number}"
            why = (m.problem, m.reason) if m.problem else (no_label, Reason.UNREADABLE)
            yield SourceItem(f"{shard}/{m.name}", own, label, m.size_bytes, m.offset, *why)

    def _label(self, shard: str, members: list[FileEntry]) -> str | None:
        texts = {_split_name(m.name)[1].lower(): m for m in members if m.size_bytes <= _MAX_LABEL_BYTES}
        for suffix in ("cls", "json", "txt"):
            if suffix not in texts:
                continue
            entry = texts[suffix]
            if entry.problem:
                raise UnreadableItem(f"is {entry.problem}")
            data = read_at(self._file(shard), entry.offset, entry.size_bytes)
            text = _json_label(data) if suffix == "json" else data.decode("utf-8", "replace").strip()
            if text:
                return self._classes.label(text)
        return None

    def _file(self, shard: str) -> int:
        if shard not in self._opened:
            self._opened[shard] = open_file(self._paths[shard])
        return self._opened[shard]

    def class_names(self) -> tuple[str, ...] | None:
        """Return 0, 1, ... where all labels are numbers."""
        return self._classes.names()

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


def _split_name(name: str) -> tuple[str, str]:
    """Split `folder/a.seg.png` into `folder/a` and `seg.png`."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix


def _json_label(data: bytes) -> str:
    try:
        raw = parse_json(data)
    except ValueError:
        return ""
    label = raw.get("label") if isinstance(raw, dict) else None
    return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else ""
