"""One line of a listing: a form that takes a tenth of JSON's time, since every image has a line.

Tabs separate the fields: size, position, name, key, label, problem; an empty field is None. The reason of a
problem stands before its text, with a space between. The size comes first, so that cutting into shards need
not parse the rest.
"""

from __future__ import annotations

import re

from loaders.packs.reasons import Reason
from loaders.packs.sources.item import SourceItem, likely_size

_SPECIAL = re.compile(r"[\\\t\n]")
_ESCAPED = re.compile(r"\\(.)")
_TO_ESCAPE = {"\\": "\\\\", "\t": "\\t", "\n": "\\n"}
_FROM_ESCAPE = {"\\": "\\", "t": "\t", "n": "\n", "e": ""}


def to_line(item: SourceItem) -> bytes:
    """Return the line of an item, with its line feed."""
    name, key, label, size, position, problem, reason = item
    if problem is not None:
        problem = f"{reason.value} {problem}"
    text = f"{size}\t{position}\t{name}\t{key}\t{label or ''}\t{problem or ''}\n"
    if label == "" or text.count("\t") != 5 or text.count("\n") != 1 or "\\" in text:
        text = "\t".join((str(size), str(position), *map(_escape, (name, key, label, problem)))) + "\n"
    return text.encode("utf-8", "surrogateescape")


def _escape(text: str | None) -> str:
    if text is None:
        return ""
    return _SPECIAL.sub(lambda found: _TO_ESCAPE[found[0]], text) if text else "\\e"


def from_line(line: bytes) -> SourceItem:
    """Return the item of a line."""
    text = line.decode("utf-8", "surrogateescape")
    size, position, *fields = text[:-1].split("\t")
    name, key, label, problem = fields
    if "\\" in text:
        name, key, label, problem = map(_unescape, fields)
        item = SourceItem(name, key, label if fields[2] else None, int(size), int(position))
    else:
        item = SourceItem(name, key, label or None, int(size), int(position))
    if not problem:
        return item
    reason, _, words = problem.partition(" ")
    return item._replace(problem=words, reason=Reason(reason))


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: _FROM_ESCAPE[found[1]], text)


def line_size(line: bytes) -> int:
    """Return the size of the item of a line, in bytes, see `likely_size`."""
    return likely_size(int(line[: line.index(b"\t")]))
