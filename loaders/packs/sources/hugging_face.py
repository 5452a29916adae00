"""Tables of Hugging Face's datasets: their schemas, and the class names in their metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json

_INFO_NAME = "dataset_info.json"  # lies beside the Arrow files of `save_to_disk` and of the cache


def class_names_of(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the class names of the columns that a table or its `dataset_info.json` declares as class labels.

    Only .parquet and .arrow files have declared columns; for any other file the result is empty.
    """
    if path.suffix.lower() not in (".parquet", ".arrow"):
        return {}
    features = _features((read_schema(path).metadata or {}).get(b"huggingface"), "info")
    if not features and (path.parent / _INFO_NAME).is_file():
        features = _features((path.parent / _INFO_NAME).read_bytes(), None)
    found = {name: _names(feature) for name, feature in features.items()}
    return {name: names for name, names in found.items() if names}


def _features(text: bytes | None, inside: str | None) -> dict[str, Any]:
    try:
        raw = parse_json(text or b"{}")
        features = (raw[inside] if inside else raw)["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _names(feature: Any) -> tuple[str, ...]:
    """Return the class names of a feature: a class label, or a list of class labels."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return _names(feature["feature"]) if "feature" in feature else ()


def read_schema(path: Path) -> Any:
    """Return the schema of a .parquet or .arrow file.

    Raises:
        UserError: the file cannot be read as a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() != ".arrow":
            return pq.read_schema(path)
        return open_arrow(path).schema
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a table ({reason}): fetch it again") from None


def open_arrow(path: Path) -> Any:
    """Return a reader of a memory-mapped Arrow stream or file; it starts no threads of pyarrow."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        data = source.read_buffer()
    options = pa.ipc.IpcReadOptions(use_threads=False)
    try:
        return pa.ipc.open_stream(data, options=options)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(data, options=options)
