"""Deciding which folders of a tree are classes, once the whole tree has been listed."""

from __future__ import annotations

import re
from collections import Counter

from loaders.common.errors import UserError
from loaders.packs.sources.naming import is_image_name
from loaders.packs.sources.numbers import class_text

# Names of folders that hold the images of the class that their parent folder names: class/images/x.jpg.
_CONTAINERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "jpeg", "jpg"))
_SPLITS = frozenset("train training val valid validation test testing dev unlabeled unlabelled".split())  # noqa: SIM905
_SHARD_NUMBER = re.compile(r"[0-9]{5,}")
_LIST_NAME = re.compile(
    r".*\.(csv|tsv|jsonl|parquet|arrow|mat|xlsx)|.*(label|annotation|class|truth|instances).*\.(txt|json)",
    re.IGNORECASE,
)
_OTHER_SOURCES = (".tar", ".tar.gz", ".tgz", ".zip", ".beton", ".parquet", ".arrow")
_SHOWN = 3


class FolderClasses:
    """Decides the class of every folder of a tree, after `see` was called for all files.

    A folder below the root that holds files with names of images is a class with the folder's name. There are
    exceptions: A folder with a name such as `images` has its parent's class if all images below the parent
    are in or below it. A folder whose name is a number of five digits or more, with texts beside its images,
    is taken for a shard of img2dataset and has no class; nor has the root.
    """

    def __init__(self) -> None:
        """Start with no files."""
        self._with_images: dict[str, None] = {}
        self._with_texts: set[str] = set()
        self._lists: list[str] = []
        self._num_lists = self._num_class_files = 0
        self._num_below: Counter[str] = Counter()
        self._without_suffix: dict[str, None] = {}
        self._others: dict[str, str] = {}

    def see(self, name: str) -> None:
        """Record a file, given by its path below the root."""
        folder = name.rpartition("/")[0]
        if is_image_name(name):
            self._with_images[folder] = None
            return
        if name.endswith((".txt", ".json")) and name[name.rfind(".") - 1].isdigit():
            self._with_texts.add(folder)
        elif name.endswith(".cls"):
            self._num_class_files += 1
        elif "." not in name[len(folder) :]:
            self._without_suffix[folder] = None
        elif suffix := next((suffix for suffix in _OTHER_SOURCES if name.endswith(suffix)), None):
            self._others.setdefault(suffix, name)
        if _LIST_NAME.fullmatch(name) and not name.rpartition("/")[2].partition(".")[0].isdigit():
            self._num_lists += 1
            if len(self._lists) < _SHOWN:
                self._lists.append(name)

    def refuse_others(self, source: str) -> None:
        """Refuse a tree with tables or archives but no image; the user must give the tables or archives.

        Raises:
            UserError: this is such a tree.
        """
        suffix = next((suffix for suffix in _OTHER_SOURCES if suffix in self._others), None)
        if self._with_images or suffix is None:
            return
        name = self._others[suffix]
        pattern = f"{source}/{name.rpartition('/')[0]}".rstrip("/") + f"/*{suffix}"
        prefix = "wds:" if suffix == ".tar" else ""
        raise UserError(
            f"{source} holds no image, but files such as {name}: give these, such as '{prefix}{pattern}'"
        )

    def corrections(self) -> dict[str, str | None]:
        """Return the class, or None, of every image folder whose name differs; call this before `classes`."""
        for folder in self._with_images:
            self._num_below.update(_ancestors(folder))
        found = {folder: self._label(folder) for folder in self._with_images}
        return {f: label for f, label in found.items() if label != (f.rpartition("/")[2] or None)}

    def _label(self, folder: str) -> str | None:
        name = folder.rpartition("/")[2]
        if _SHARD_NUMBER.fullmatch(name) and folder in self._with_texts:
            return None
        while folder:
            parent, _, name = folder.rpartition("/")
            alone = self._num_below[folder] == self._num_below[parent] and parent not in self._with_images
            if not (alone and name.lower() in _CONTAINERS):
                return name
            folder = parent
        return None

    def classes(self) -> set[str]:
        """Return the names of the classes."""
        labels = {self._label(folder) for folder in self._with_images}
        return {class_text(label) for label in labels if label is not None}

    def notes(self, source: str) -> list[str]:
        """Return the notes on the tree for the summary."""
        notes = []
        shards = [f for f in self._with_images if f and self._label(f) is None and f in self._with_texts]
        if shards:
            notes.append(
                f"{len(shards):,} numbered folders with texts beside the images, such as {shards[0]}, are "
                f"taken for shards, not for classes"
            )
        by_class: dict[str, str] = {}
        for folder in self._with_images:
            label = self._label(folder)
            first = folder if label is None else by_class.setdefault(class_text(label), folder)
            if first != folder:
                notes.append(
                    f"class {label} comes from more than one folder, such as {first} and {folder}: if "
                    f"these are splits, give each as a split of its own"
                )
                break
        if called := sorted(label for label in by_class if label.lower() in _SPLITS):
            notes.append(
                f"classes have the names of splits ({', '.join(called)}): if they are splits, give each as a "
                f"split"
            )
        bare = [folder for folder in self._without_suffix if folder and folder not in self._with_images]
        if bare:
            notes.append(
                f"files without a suffix do not make a folder a class ({', '.join(bare[:_SHOWN])}): if they "
                f"are images, add .jpg to their names"
            )
        if self._num_lists:
            more = f" and {self._num_lists - _SHOWN:,} more" if self._num_lists > _SHOWN else ""
            notes.append(
                f"lists that may hold labels are not used: {', '.join(self._lists)}{more} (give labels with "
                f"{source}#labels=FILE)"
            )
        if self._num_class_files:
            notes.append(
                f"{self._num_class_files:,} .cls files are not used: for WebDataset shards, put wds: in front"
            )
        return notes


def _ancestors(folder: str) -> list[str]:
    """Return all parents of a folder, from the root "" on, and the folder itself."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:count]) for count in range(len(parts) + 1)]
