"""The quarantine of a pack, `quarantine.jsonl`: every input that was refused, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loaders.errors import UserError
from loaders.json_text import parse_json
from loaders.packs.manifest import QUARANTINE_NAME

_FIELDS = ("split", "key", "name", "reason")


def quarantined(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the inputs that a pack refused: `split`, `key`, `name` and `reason` of each.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / QUARANTINE_NAME
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = parse_json(line)
                if not isinstance(entry, dict) or not all(isinstance(entry.get(f), str) for f in _FIELDS):
                    raise ValueError(f"expected an object with {', '.join(_FIELDS)}")
                yield entry
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or pack again") from None
