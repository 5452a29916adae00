"""The options that a label table or folder of results was made with, kept in a file for later commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json

Options = Mapping[str, object]


def is_made(table: Path, options: Options) -> bool:
    """Return whether a table exists that was made with the same options.

    A table without a file of options comes from an older version and is accepted.

    Args:
        table: path of the table.
        options: the options of this command that decide the table, by their names on the command line.

    Raises:
        UserError: the table was made with other options, or its file of options is damaged.
    """
    if not table.is_file():
        return False
    if (file := _beside(table)).is_file():
        check_same(file, options, table)
    return True


def check_same(file: Path, options: Options, made: Path) -> None:
    """Refuse to continue with a table or folder `made` with other options, which are in `file`.

    Raises:
        UserError: the options differ, or their file is damaged.
    """
    try:
        used = dict(parse_json(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: expected the options that made {made}, found none ({error}); give another --out"
        ) from None
    for name, asked in options.items():
        if used.get(name) != asked:
            raise UserError(
                f"{name}: expected {used.get(name)!r}, with which {made} was made, found {asked!r}; give "
                f"another --out, or the same {name}"
            )


def keep_options(table: Path, options: Options) -> None:
    """Write the options that a table was made with into a file beside the table."""
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_beside(table), to_json(dict(options)))


def _beside(table: Path) -> Path:
    return table.with_suffix(".json")
