"""A finished pack as a source: to change its shard format but not its images, or to pack it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from loaders.common.errors import UserError
from loaders.kernels.encodings import ENCODING_RAW
from loaders.packs.image import Action, ImagePolicy, PreparedImage
from loaders.packs.labels.multi_labels import MultiLabels
from loaders.packs.pack import open_pack
from loaders.packs.quarantine import quarantined, warned
from loaders.packs.reasons import Reason
from loaders.packs.shards.checksum import content_hash
from loaders.packs.sources.item import Source, SourceItem, UnreadableItem

PACK_PREFIX = "pack:"


class PackSource(Source):
    """The images of one split of a pack, and the quarantined inputs of this split with their reasons."""

    has_labels = True

    def __init__(self, text: str, multi_label: bool = False) -> None:
        """Open a split of a pack.

        Args:
            text: `FOLDER#split`; the split may be left out if the pack has only one.
            multi_label: whether images have several labels, both in this pack and in the new one.

        Raises:
            UserError: no finished pack, no such split, several splits but none named, or a `multi_label` that
                does not fit the pack.
        """
        folder, _, split = text.rpartition("#") if "#" in text else (text, "", "")
        self._pack = open_pack(folder)
        if not split and len(self._pack.splits) > 1:
            raise UserError(
                f"{folder} has the splits {', '.join(self._pack.splits)}: name one as {folder}#split"
            )
        self._split = self._pack.split(split or self._pack.splits[0])
        if self._pack.is_multi_label != multi_label:
            has, remedy = ("one label", "leave out") if multi_label else ("several labels", "give")
            raise UserError(f"{folder} has {has} per image: {remedy} --multi-label")
        self._messages = {entry["key"]: tuple(entry["messages"]) for entry in warned(Path(self._pack.path))}

    def items(self) -> Iterator[SourceItem]:
        """Yield the rows of the split in order, then the quarantined inputs."""
        pack, prefix = self._pack, f"{self._split.name}/"
        labels = self._labels()
        for first, stop in self._split.row_ranges:
            for row in range(first, stop):
                label = labels(row)
                key = pack.key(row).removeprefix(prefix)
                yield SourceItem(key, key, label, int(pack.columns.size[row]), row)
        for entry in quarantined(Path(pack.path)):
            if entry["split"] == self._split.name:
                key = entry["key"].removeprefix(prefix)
                name, reason = entry["name"], Reason(entry["code"])
                yield SourceItem(name, key, None, 0, problem=entry["reason"], reason=reason)

    def _labels(self) -> Callable[[int], str | None]:
        """Return a function from a row to its label as a `SourceItem` holds it."""
        pack = self._pack
        if pack.is_multi_label:
            several = MultiLabels.read(pack.path, len(pack.classes))
            return lambda row: several.as_text(row, pack.classes)
        dense = pack.labels.dense(len(pack))
        return lambda row: pack.classes[dense[row]] if dense[row] >= 0 else None

    def class_names(self) -> tuple[str, ...]:
        """Return the classes of the pack."""
        return self._pack.classes

    def read(self, item: SourceItem) -> bytes:
        """Return an image file: JPEG bytes, or pixels as a portable pixmap."""
        columns, row = self._pack.columns, item.position
        data = self._checked(row)
        if columns.encoding[row] == ENCODING_RAW:
            return b"P6\n%d %d\n255\n" % (columns.width[row], columns.height[row]) + data
        return data

    def prepared(self, item: SourceItem, policy: ImagePolicy) -> PreparedImage | None:
        """Return an image as the pack stores it, or None if `policy` would change the image."""
        columns, row = self._pack.columns, item.position
        is_raw = bool(columns.encoding[row] == ENCODING_RAW)
        height, width = int(columns.height[row]), int(columns.width[row])
        unchanged = policy.geometry(height, width) == (height, width, height, width)
        if policy.encodes_all or not unchanged or is_raw != (policy.encoding == "raw"):
            return None
        action, messages = Action(int(columns.action[row])), self._messages.get(self._pack.key(row), ())
        return PreparedImage(self._checked(row), height, width, action, is_raw, messages)

    def _checked(self, row: int) -> bytes:
        data = self._pack.read(row)
        if content_hash(data) != self._pack.columns.content_hash[row].tobytes():
            raise UnreadableItem(f"damaged in {self._pack.path}: its content hash differs")
        return data
