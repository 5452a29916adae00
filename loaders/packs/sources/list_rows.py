"""The rows of lists of files: .csv, .tsv, .txt, .jsonl, or .parquet, as other programs write them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.sources.naming import is_image_name

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
_DELIMITERS = (",", ";", "\t", "|")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BATCH_ROWS = 4096


def read_rows(path: Path, short: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list as dictionaries, a block in memory at a time.

    Commas, semicolons, tabs or bars may separate the cells of a .csv or .tsv; blanks around them are dropped,
    and an empty cell is None. A .txt has no heading: each line is a path, or a path and a label; its keys are
    `path` and `label`. Rows of .jsonl and .parquet stay as they are; an object of .jsonl may lack keys.

    Args:
        short: whether a row of a .csv or .tsv may lack its last cells, as spreadsheets leave out empty ones.

    Raises:
        UserError: a file that cannot be read, a wrong heading, or a row that does not fit the heading.
    """
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".txt": _text_rows}
    reader = readers.get(path.suffix.lower())
    try:
        yield from reader(path) if reader else _csv_rows(path, short)
    except (UnicodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a list ({error}): expected UTF-8 text; save it as such, "
            "which a spreadsheet calls CSV UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and the disk") from None


def first_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a list."""
    return list(islice(read_rows(path), count))


def column_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of all columns in some rows; an object of .jsonl may lack some columns."""
    return [*dict.fromkeys(name for row in rows for name in row)]


def _open_text(path: Path) -> TextIO:
    with open(path, "rb") as file:
        mark = file.read(2)
    return open(path, newline="", encoding="utf-16" if mark in _UTF16_MARKS else "utf-8-sig")


def _csv_rows(path: Path, short: bool) -> Iterator[dict[str, Any]]:
    with _open_text(path) as file:
        heading = next((line for line in file if line.strip()), "")
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        if heading.lower().startswith("sep=") and len(heading) > 4:  # Excel's first line, before the heading
            usual, heading = heading[4], next(file, "")
        other = max(_DELIMITERS, key=heading.count)
        delimiter = usual if usual in heading else other if other in heading else usual
        reader = csv.reader(chain([heading], file), delimiter=delimiter, strict=True, skipinitialspace=True)
        names = None
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if names is None:
                names = _checked_heading(path, cells)
                continue
            if short:
                cells += [""] * (len(names) - len(cells))
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, row near {cells[0]!r}: expected {len(names)} cells, one per "
                    f"column, found {len(cells)}; correct it"
                )
            yield dict(zip(names, (cell or None for cell in cells), strict=True))


def _checked_heading(path: Path, names: list[str]) -> list[str]:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the column {twice!r} twice: rename one")
    if any(is_image_name(name) for name in names):
        raise UserError(f"{path} begins with {', '.join(names)}: expected a heading, such as path,label")
    return names


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _open_text(path) as file:
        for line in file:
            text = line.strip()
            cells = text.split("\t") if "\t" in text else text.rsplit(None, 1)
            if len(cells) > 1 and "\t" not in text and is_image_name(cells[1]):
                cells = [text]  # a path that contains a blank, without a label
            if text:
                yield dict(zip(("path", "label"), (cell.strip() for cell in cells), strict=False))


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}); correct it") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected an object with the columns of the list")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged or not a parquet file ({reason}): write it again") from None
