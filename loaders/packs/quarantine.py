"""Reading the lists of the inputs that a pack refused, and of the images about which decoders warned.

`quarantine.jsonl` has a line for every refused input. `warnings.jsonl` has a line for every packed image that
was repaired or about which a decoder warned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.manifest import QUARANTINE_NAME, WARNINGS_NAME
from loaders.packs.reasons import Reason

_FIELDS = ("split", "key", "name", "reason")


def quarantined(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the entry of each input that a pack refused, with `split`, `key`, `name`, `reason` and `code`.

    `reason` is a text for people. `code` is the value of a `Reason`, "unknown" in older packs.

    Raises:
        UserError: the file is missing or damaged.
    """
    known = {reason.value for reason in Reason}
    for entry in _entries(folder / QUARANTINE_NAME):
        entry.setdefault("code", Reason.UNKNOWN.value)
        if not all(isinstance(entry.get(f), str) for f in _FIELDS) or entry["code"] not in known:
            raise _damaged(folder / QUARANTINE_NAME, f"expected an object with {', '.join(_FIELDS)}")
        yield entry


def warned(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the entry of each image about which decoders warned, with `split`, `key`, `name` and `messages`.

    Older packs have no file of warnings; for them, nothing is yielded.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / WARNINGS_NAME
    if not path.exists():
        return
    for entry in _entries(path):
        messages = entry.get("messages")
        if not isinstance(messages, list) or not all(isinstance(text, str) for text in messages):
            raise _damaged(path, "expected an object with messages")
        if not all(isinstance(entry.get(f), str) for f in ("split", "key", "name")):
            raise _damaged(path, "expected an object with split, key and name")
        yield entry


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = parse_json(line)
                if not isinstance(entry, dict):
                    raise ValueError("expected an object")
                yield entry
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}); restore it or pack again")
