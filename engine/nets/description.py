"""The description of a network in its weights file: backbone, evaluation view, classes, origin of weights.

It is a single JSON text in the metadata of the safetensors file: the order of several entries would differ
from process to process, and equal runs must end with equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.views.evaluation import EvaluationView

METADATA_KEY = "sluice"


@dataclass(frozen=True)
class Origin:
    """Third-party weights with which training began; all weights trained from them keep this record.

    Attributes:
        source: what the user gave: `timm:NAME`, `hf:REPO`, a folder or a file.
        licence: licence that the publisher states; "" if none is stated.
    """

    source: str
    licence: str = ""


@dataclass(frozen=True)
class Description:
    """The description of a network on disk.

    Attributes:
        backbone: name, as `build_backbone` takes it.
        view: evaluation view. Older files lack it; their runs used the usual view of their resolution.
        classes: names of the classes, in the order of the logits; None for a backbone, a checkpoint, and old
            files of classifiers.
        num_classes: number of classes; 0 for a backbone and a checkpoint.
        origin: third-party weights with which training began; None if it began with random weights.
    """

    backbone: str
    view: EvaluationView
    classes: tuple[str, ...] | None = None
    num_classes: int = 0
    origin: Origin | None = None


def metadata_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a weights file, given the entries that describe its network."""
    return {METADATA_KEY: json.dumps(dict(content), sort_keys=True)}


def metadata_of_classifier(
    backbone: str, view: EvaluationView, classes: tuple[str, ...], origin: Origin | None = None
) -> dict[str, str]:
    """Return the metadata of a classifier's file."""
    content = {"backbone": backbone, "view": asdict(view), "classes": classes}
    return metadata_of(content | describe_origin(origin))


def describe_origin(origin: Origin | None) -> dict[str, Any]:
    """Return the entry on the origin of weights; empty if training began with random weights."""
    return {} if origin is None else {"origin": asdict(origin)}


def is_described(file: Path) -> bool:
    """Return whether a file is a readable weights file of this project."""
    try:
        with safe_open(file, framework="pt") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def timm_metadata(file: Path) -> str | None:
    """Return the configuration that a file exported for timm holds; None for other files."""
    try:
        with safe_open(file, framework="pt") as opened:
            text: str | None = (opened.metadata() or {}).get("timm")
    except (SafetensorError, OSError):
        return None
    return text


def read_metadata(file: Path) -> dict[str, Any]:
    """Read the description in a weights file of this project; empty for files of other projects.

    Raises:
        UserError: the file does not exist or is not a safetensors file, or the description is damaged.
    """
    if not file.is_file():
        raise UserError(f"weights: expected a file at {file}, found none; finish a run first")
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY, "{}")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"weights: {file} is not a readable safetensors file ({error}); finish a run first"
        ) from error
    try:
        content = parse_json(text)
        if not isinstance(content, dict):
            raise ValueError(f"found {type(content).__name__}")
    except ValueError as error:
        raise UserError(
            f"weights: expected a description of the network in {file}, found one that is not a JSON object "
            f"({error}); give a file that a run wrote"
        ) from None
    return content


def read_description(file: Path) -> Description:
    """Read the description of the network in a weights file.

    Raises:
        UserError: the file does not exist, is damaged, or does not describe a network.
    """
    return describe_content(read_metadata(file), file)


def parse_description(text: str, file: Path) -> Description:
    """Parse the description in or beside a weights file.

    Raises:
        UserError: the text does not describe a network.
    """
    try:
        content = parse_json(text)
    except ValueError:
        content = {}
    return describe_content(content if isinstance(content, dict) else {}, file)


def describe_content(content: Mapping[str, Any], file: Path) -> Description:
    """Build the description of a network from the entries in its file.

    Raises:
        UserError: the entries do not describe a network.
    """
    try:
        stored, classes = content.get("view"), content.get("classes")
        view = EvaluationView.parse(stored) if stored else EvaluationView.usual(int(content["resolution"]))
        names = None if classes is None else tuple(str(name) for name in classes)
        num_classes = int(content.get("num_classes", 0)) if names is None else len(names)
        stated = content.get("origin")
        origin = None if stated is None else Origin(**stated)
        return Description(str(content["backbone"]), view, names, num_classes, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"weights: {file} does not name its backbone and its views ({error!r}); expected a file that a "
            "run wrote"
        ) from None
