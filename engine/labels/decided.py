"""What decided a label table, or a folder of results, that a later command goes on with, kept in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json

Options = Mapping[str, object]


def is_made(table: Path, options: Options) -> bool:
    """Return whether a table is there to go on with; one without a description is of an older version.

    Args:
        table: path of the table.
        options: what decides the table now, by the names of the command line.

    Raises:
        UserError: other options decided the table, or their file is damaged.
    """
    if not table.is_file():
        return False
    if (file := _beside(table)).is_file():
        check_same(file, options, table)
    return True


def check_same(file: Path, options: Options, made: Path) -> None:
    """Refuse to go on with what other options made.

    Args:
        file: where these are.
        options: those of now.
        made: what is gone on with.

    Raises:
        UserError: other options, or the file is damaged.
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
                f"{name}: expected {used.get(name)!r}, by which {made} was made, found {asked!r}; give "
                f"another --out, or the same {name}"
            )


def keep_options(table: Path, options: Options) -> None:
    """Write the options that decided a table into a file beside it."""
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_beside(table), to_json(dict(options)))


def _beside(table: Path) -> Path:
    return table.with_suffix(".json")
