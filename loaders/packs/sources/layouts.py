"""Folders with a known layout: saved data sets, tables of images, lists beside the images.

For each, this module finds the PATH that a user who knows the layout would give.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from pathlib import Path

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.sources.image_table import TABLE_SUFFIXES, holds_images
from loaders.packs.sources.list_rows import column_names, first_rows
from loaders.packs.sources.naming import is_hidden_folder, is_image_name
from loaders.packs.sources.path_list import ListColumns
from loaders.packs.sources.table_columns import ColumnOptions, unused_labels, unused_note

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's imagefolder
_ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet
# The part number at the end of a stem, and the hash of older exports: train-00000-of-00002-0123456789abcdef.
_PART_NUMBER = re.compile(r"[-_.]?[0-9]+(-of-[0-9]+)?(-[0-9a-f]{16})?$")
_LOOKED_AT = 4096


def resolve_layout(source: str, options: ColumnOptions) -> tuple[str, list[str]]:
    """Return the PATH that reads a folder according to its layout, and notes on it for the summary.

    Args:
        source: PATH as the user gave it; only a local folder, with or without `#split`, is changed.
        options: columns that the user chose.

    Raises:
        UserError: the folder has several splits and `source` names none of them, or the folder cannot be read
            as it is.
    """
    folder, _, split = (source, "", "") if os.path.isdir(source) else source.partition("#")
    if not os.path.isdir(folder) or split.startswith("labels="):
        return source, []
    root = Path(folder)
    if (root / "dataset_dict.json").is_file():
        root, split = _chosen_of_dict(root, split), ""
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        return _saved(root), []
    tables = _tables_without_images(root)
    if tables:
        return _pattern_of(root, tables, split), []
    if split:
        return source, []
    if (root / _ANNOTATIONS).is_file():
        return f"{source}#labels={root / _ANNOTATIONS}", [f"the labels are those of {root / _ANNOTATIONS}"]
    lists = [root / name for name in _METADATA if (root / name).is_file()]
    return _with_metadata(source, lists[0], options) if lists else (source, [])


def _chosen_of_dict(root: Path, split: str) -> Path:
    """Return the folder of one split of a saved DatasetDict."""
    names = sorted(path.parent.name for path in root.glob("*/state.json"))
    if split not in names:
        raise UserError(
            f"{root} holds the splits {', '.join(names)}: name one as {root}#{(names or ['train'])[0]}"
        )
    return root / split


def _saved(root: Path) -> str:
    """Return a pattern for the files of a data set that `save_to_disk` wrote."""
    try:
        state = parse_json((root / "state.json").read_bytes())
        names = [file["filename"] for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / 'state.json'} is damaged ({error}): save the data set again") from None
    if state.get("_indices_data_files"):
        raise UserError(
            f"{root} holds a selection of rows: call flatten_indices() and save the data set again"
        )
    return _glob_of(root, [root / name for name in names], "")


def _tables_without_images(root: Path) -> list[Path]:
    """Return the tables below a folder; none if the first has no images, or if an image file is there too."""
    tables = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden_folder(name))
        for name in sorted(files):
            if is_image_name(name) and not name.startswith("._"):
                return []
            if name.lower().endswith(TABLE_SUFFIXES) and not name.startswith("."):
                tables.append(Path(folder, name))
    return tables if tables and holds_images(tables[0]) else []


def _pattern_of(root: Path, tables: list[Path], split: str) -> str:
    """Return a pattern for the tables of one split.

    These have one name, part numbers apart, or, if their names are numbers only, lie in one folder.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in tables:
        begin = _PART_NUMBER.sub("", path.stem)
        groups[begin or (path.parent.name if path.parent != root else "")].append(path)
    if not split and len(groups) == 1:
        return _glob_of(root, tables, next(iter(groups)))
    names = [name for name in groups if name == split or name.endswith(("-" + split, "/" + split))]
    if not split or len(names) != 1:
        raise UserError(
            f"{root} holds tables of several splits, {', '.join(sorted(groups))}: name one as "
            f"{root}#{split or min(groups)}, or a pattern such as '{tables[0].parent}/*{tables[0].suffix}'"
        )
    return _glob_of(root, groups[names[0]], names[0])


def _glob_of(root: Path, files: list[Path], begin: str) -> str:
    """Return a pattern that matches exactly these files; `begin` is how their names may begin."""
    folders, suffixes = {path.parent for path in files}, {path.suffix for path in files}
    if len(folders) == len(suffixes) == 1:
        folder, suffix = glob.escape(str(folders.pop())), suffixes.pop()
        for middle in (f"{glob.escape(begin)}-*", f"{glob.escape(begin)}*", "*"):
            pattern = f"{folder}/{middle}{suffix}"
            if sorted(glob.glob(pattern)) == sorted(map(str, files)):
                return pattern
    raise UserError(
        f"{root} holds tables in several folders or under several names, such as {files[0]}: give each "
        f"as a split, such as '{files[0].parent}/*{files[0].suffix}'"
    )


def _with_metadata(source: str, path: Path, options: ColumnOptions) -> tuple[str, list[str]]:
    """Return the PATH with the list at `path` as its labels, if the list has any, and notes on the list."""
    rows = first_rows(path, _LOOKED_AT)
    if not rows:
        return source, [f"{path} holds no row and is not used"]
    columns = ListColumns(path, column_names(rows), options)
    unused = unused_labels(rows, (columns.path, columns.label, columns.split, columns.key))
    note = unused_note(str(path), unused, columns.label)
    if columns.label is None:
        return source, [note or f"{path} is not used: no column of it looks like labels"]
    said = [f"the labels are column {columns.label!r} of {path}"] + ([note] if note else [])
    return f"{source}#labels={path}", said


def lists_beside(source: str) -> list[str]:
    """Return the lists beside a folder whose names suggest that they hold its labels."""
    root = Path(source)
    if not root.is_dir():
        return []
    name, parent = root.resolve().name, root.resolve().parent
    begins = [f"{name}{end}" for end in ("", "_labels", "Labels", "_annotations", "_label")]
    begins += ["labels", "annotations", "metadata", "val_annotations" if name == "images" else "label"]
    found = [
        f"{begin}{suffix}" for begin in begins for suffix in (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
    ]
    return [str(parent / file) for file in dict.fromkeys(found) if (parent / file).is_file()]
