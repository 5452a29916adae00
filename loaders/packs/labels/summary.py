"""Collect the classes of a pack from the labels of all its splits, with notes for the packing summary."""

from __future__ import annotations

from loaders.common.errors import UserError
from loaders.packs.manifest import MULTI_LABELS_NAME
from loaders.packs.sources.folder_classes import FolderClasses
from loaders.packs.sources.item import Source
from loaders.packs.sources.numbers import class_text, list_text, names_of
from loaders.packs.sources.spec import SplitSource
from loaders.packs.sources.table_columns import ColumnOptions

_SHOWN = 3


class SplitLabels:
    """Collects the labels of one split."""

    def __init__(self, is_multi_label: bool, gives_lists: bool) -> None:
        """Begin.

        Args:
            is_multi_label: whether each label is stored as a list of names, see `names_of`.
            gives_lists: whether the source gives lists; other sources, such as folders, give one name.
        """
        self._is_multi_label, self._gives_lists = is_multi_label, gives_lists
        self._texts: dict[str, str] = {}
        self._found: set[str] | None = None
        self.numbered: tuple[str, ...] | None = None
        self.notes: list[str] = []

    def text(self, label: str | None) -> str | None:
        """Return a label in the form that packs store, and add its names to the classes."""
        if label is None:
            return None
        if label not in self._texts:
            text = label if self._gives_lists else class_text(label)
            one_of_several = self._is_multi_label and not self._gives_lists
            self._texts[label] = list_text([text]) if one_of_several else text
        return self._texts[label]

    def end(self, source: Source, folders: FolderClasses | None, name: str) -> None:
        """Note what is known only after the whole listing: names of classes, and notes."""
        self.numbered = source.class_names()
        if folders is not None:
            self._found, self.notes = folders.classes(), folders.notes(name)
        self.notes += source.notes()

    @property
    def found(self) -> set[str]:
        """Names of the classes that occur in the split."""
        if self._found is None:
            texts = set(self._texts.values())
            self._found = (
                {name for text in texts for name in names_of(text)} if self._is_multi_label else texts
            )
        return self._found


class LabelSummary:
    """Collects the classes of all splits, in alphabetical order or in the order that a source defines."""

    def __init__(self, base: tuple[str, ...], options: ColumnOptions) -> None:
        """Begin; `base` are the classes of the pack to append to, which keep their numbers."""
        self._base, self._options = base, options
        self._splits: dict[str, SplitLabels] = {}
        self._notes: list[str] = []
        self._has_columns = self._has_labels = False

    def begin(self, split: str, source: Source) -> SplitLabels:
        """Return the collector for the labels of a split."""
        several = self._options.multi_label
        self._splits[split] = SplitLabels(several, several and source.has_labels is not None)
        return self._splits[split]

    def say(self, split: SplitSource, source: Source, said: list[str], beside: list[str]) -> None:
        """Collect the notes on a split after its listing.

        Args:
            said: notes on the layout of the source.
            beside: files that may hold the labels of the split, if it has none.
        """
        labels = self._splits[split.split]
        notes = said + [note for note in labels.notes if note not in said]
        if not labels.found and beside:
            notes.append(
                f"no labels; {beside[0]} beside it is not used: give them with "
                f"{split.source}#labels={beside[0]}"
            )
        if source.has_labels is not None:
            self._has_columns, self._has_labels = True, self._has_labels or source.has_labels
            if self._options.label_column is not None and not source.has_labels:
                notes.append(f"no column {self._options.label_column!r}: its images have no label")
        self._notes += [f"split {split.split}: {note}" for note in notes]

    def classes(self) -> tuple[str, ...]:
        """Return the classes of the pack."""
        found = self._splits.values()
        numbered = [labels.numbered for labels in found if labels.numbered is not None]
        named = set[str]().union(*(labels.found for labels in found if labels.numbered is None))
        longest = max((self._base, *numbered), key=len)
        if longest[: len(self._base)] != self._base:
            longest = self._base
        if named <= set(longest) and all(names == longest[: len(names)] for names in numbered):
            return longest
        return self._base + tuple(sorted(named.union(*numbered) - set(self._base)))

    def notes(self) -> list[str]:
        """Return one line for each fact that a user should know about sources and labels.

        Raises:
            UserError: an option applies to none of the sources.
        """
        options, notes = self._options, list(self._notes)
        if options.label_column is not None and not self._has_labels:
            raise UserError(
                f"no split has the column {options.label_column!r} of --label-column; correct the name, or "
                f"give a list or a table"
            )
        if (options.image_column is not None or options.multi_label) and not self._has_columns:
            option = "--multi-label" if options.multi_label else "--image-column"
            raise UserError(f"{option} is for lists and tables, and no split is one: leave it out")
        if options.multi_label:
            notes.append(
                f"images have several labels, kept in {MULTI_LABELS_NAME}: classification recipes refuse "
                f"such a pack"
            )
        return notes + self._lone_classes() + self._numeric_names() + self._alike_names()

    def _lone_classes(self) -> list[str]:
        """Return notes on classes that only one split has; none for the only labelled split of a new pack."""
        labelled = {name: labels.found for name, labels in self._splits.items() if labels.found}
        notes = []
        for name, found in labelled.items():
            others = set(self._base).union(*(f for other, f in labelled.items() if other != name))
            lone = sorted(found - others)
            if lone and others:
                more = f" and {len(lone) - _SHOWN:,} more" if len(lone) > _SHOWN else ""
                notes.append(
                    f"no other split has {len(lone):,} of the {len(found):,} classes of split {name}: "
                    f"{', '.join(lone[:_SHOWN])}{more}"
                )
        return notes

    def _numeric_names(self) -> list[str]:
        """Return a note if a class is named by a number other than its label, or if labels may start at 1."""
        for number, name in enumerate(self.classes()):
            if name.isascii() and name.isdigit() and int(name) != number:
                return [
                    f"classes are named by numbers: the class {name!r} is label {number}; a list that means "
                    f"names must say so in a column `class`"
                ]
        found = set[str]().union(self._base, *(labels.found for labels in self._splits.values()))
        if "0" in self.classes() and "0" not in found:
            return ["no image has the label 0: if the labels count from 1, the class '0' stays empty"]
        return []

    def _alike_names(self) -> list[str]:
        """Return a note if the names of two classes differ only in case or blanks."""
        seen: dict[str, str] = {}
        for name in self.classes():
            first = seen.setdefault(" ".join(name.casefold().split()), name)
            if first != name:
                return [f"the classes {first!r} and {name!r} differ only in case or blanks"]
        return []
