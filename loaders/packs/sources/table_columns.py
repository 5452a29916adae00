"""Finding the columns of a list or a table by name, and noticing unused columns that look like labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loaders.common.errors import UserError

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path",
    "image_file", "image_name", "img_name", "img", "fname", "image_id", "imageid",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
SPLIT_COLUMNS = ("split", "subset", "partition")
KEY_COLUMNS = ("key", "id")
# Columns whose names end like this hold classes, though not always the wanted ones: fine_label, coarse_label.
_LABEL_ENDINGS = ("label", "labels", "class", "category", "target")
# Columns that never hold classes, even if their values repeat.
_NEVER_LABELS = frozenset(
    "width height w h x y xmin ymin xmax ymax bbox size bytes url caption text prompt description title "  # noqa: SIM905
    "md5 sha256 hash license author date time timestamp index idx row status error_message "
    "original_width original_height exif uid confidence source cycle".split()
)
_FEW_ROWS = 20
_SHOWN = 4


@dataclass(frozen=True)
class ColumnOptions:
    """The user's choice of columns in lists and tables.

    Attributes:
        image_column: column of paths or of image bytes; None finds one by its name.
        label_column: column of labels; in WebDataset, suffix of a member or field of `.json`. None finds one.
        multi_label: whether an image may have several labels, which the pack keeps in a table of their own.
    """

    image_column: str | None = None
    label_column: str | None = None
    multi_label: bool = False


def column_options(recorded: Mapping[str, Any]) -> ColumnOptions:
    """Return the options that a manifest records; defaults if the pack is older than these options."""
    return ColumnOptions(
        recorded.get("image_column"), recorded.get("label_column"), bool(recorded.get("multi_label"))
    )


def find_column(names: Iterable[str], known: Sequence[str]) -> str | None:
    """Return the one of `names` that, stripped and in lower case, comes first in `known`; None if none is."""
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in known if name in by_lower), None)


def asked_column(where: str, names: Sequence[str], wanted: str, option: str) -> str:
    """Return the column `wanted`, which the user named by `option`.

    Raises:
        UserError: there is no such column.
    """
    found = find_column(names, (wanted.strip().lower(),))
    if found is None:
        raise UserError(f"{where} has no column {wanted!r} for {option}: it has {', '.join(names)}")
    return found


def find_labels(where: str, names: Sequence[str], wanted: str | None, declared: Sequence[str]) -> str | None:
    """Return the column of labels; None if there is none.

    If `wanted` is given, only the column of this name counts. Otherwise a column with a usual name is taken,
    else a declared column, else a column whose name has a usual ending.

    Args:
        names: columns of the file without that of the images or paths.
        wanted: name from `--label-column`.
        declared: columns that the file declares as class labels.

    Raises:
        UserError: several columns may be the labels.
    """
    if wanted is not None:
        return find_column(names, (wanted.strip().lower(),))
    known = find_column(names, LABEL_COLUMNS)
    if known is not None:
        return known
    meant = list(declared) or [n for n in names if n.strip().lower().endswith(_LABEL_ENDINGS)]
    if len(meant) > 1:
        raise UserError(
            f"{where} has several columns of labels, {', '.join(meant)}: choose one with --label-column"
        )
    return meant[0] if meant else None


def unused_labels(rows: Sequence[dict[str, Any]], used: Iterable[str | None]) -> list[str]:
    """Return the columns not in `used` that look like labels in `rows`, the first rows of a file.

    Such a column is not named like other data (`url`), and its values are text, whole numbers or lists. If
    there are more than a few rows, each value occurs twice or more on average.
    """
    taken = set(used)
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in taken and _repeats(name, rows)]


def _repeats(name: str, rows: Sequence[dict[str, Any]]) -> bool:
    lower = name.strip().lower()
    if not lower or lower in _NEVER_LABELS or lower in (*SPLIT_COLUMNS, *KEY_COLUMNS, *PATH_COLUMNS):
        return False
    values = [row.get(name) for row in rows]
    given = [value for value in values if value is not None and value != ""]
    if not given or not all(isinstance(value, str | int | list) for value in given):
        return False
    return len(rows) < _FEW_ROWS or 2 * len({str(value) for value in given}) <= len(given)


def unused_note(where: str, columns: Sequence[str], used: str | None) -> str | None:
    """Return the note on columns that look like labels; None if there are none."""
    if not columns:
        return None
    shown = ", ".join(columns[:_SHOWN]) + (f" and {len(columns) - _SHOWN} more" * (len(columns) > _SHOWN))
    what = "no column is used as labels" if used is None else f"the labels are column {used!r}"
    return f"{where}: {what}; not used, but maybe labels: {shown} (choose with --label-column {columns[0]!r})"
