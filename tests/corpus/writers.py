"""Writers of test inputs in the form that other programs write: trees, archives, lists, tables."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loaders.packs.sources.table_columns import ColumnOptions
from tests.loaders.packs.inputs import jpeg, write_tree

CAT, DOG, OTHER, LAST = (jpeg(seed, 8, 8) for seed in range(4))
LABELLED = {CAT: "cat", DOG: "dog"}
NUMBERED = {CAT: "0", DOG: "1"}
UNLABELLED = {CAT: None, DOG: None}
E_ACUTE = unicodedata.normalize("NFC", "caf\u00e9")


@dataclass(frozen=True)
class Layout:
    """A layout of an image dataset.

    Attributes:
        write: writes the dataset below a folder.
        classes: class of every image, by its bytes; None for no class.
        source: PATH of the dataset below that folder.
        said: words that the packing summary must contain; "" for a summary without a note.
        columns: the user's options for columns.
    """

    write: Callable[[Path], object]
    classes: dict[bytes, str | None]
    source: str = "in"
    said: str = ""
    columns: ColumnOptions = field(default_factory=ColumnOptions)


def tree(**files: bytes | str) -> Callable[[Path], object]:
    """Return a writer of files below `in`, given as `tree(**{name: content})`; text is written in UTF-8."""
    raw = {f"in/{name}": data.encode() if isinstance(data, str) else data for name, data in files.items()}
    return lambda root: write_tree(root, raw)


def beside(name: str, text: str | bytes) -> Callable[[Path], object]:
    """Return a writer of two images, `in/a.jpg` and `in/b.jpg`, and of a list beside their folder."""
    data = text.encode() if isinstance(text, str) else text
    return lambda root: write_tree(root, {"in/a.jpg": CAT, "in/b.jpg": DOG, name: data})


def tarred(**files: bytes | str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        with tarfile.open(root / "in.tar", "w") as tar:
            for name, data in files.items():
                raw = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(name)
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))

    return write


def zipped(files: dict[str, bytes], flag_utf8: bool = True) -> Callable[[Path], object]:
    """Return a writer of a zip; without the flag, names are UTF-8 but not marked as such, as on macOS."""

    def write(root: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        data = buffer.getvalue()
        if not flag_utf8:
            data = data.replace(b"PK\x03\x04\x14\0\0\x08", b"PK\x03\x04\x14\0\0\0")
            data = data.replace(b"PK\x01\x02\x14\x03\x14\0\0\x08", b"PK\x01\x02\x14\x03\x14\0\0\0")
        (root / "in.zip").write_bytes(data)

    return write


def image_table(columns: dict[str, object], features: dict[str, object] | None = None) -> pa.Table:
    """Build a table of two images and further columns, with Hugging Face's metadata."""
    rows = [{"bytes": data, "path": None} for data in (CAT, DOG)]
    table = pa.table({"image": rows, **columns})
    if features is None:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def class_label(*names: str) -> dict[str, object]:
    return {"names": list(names), "_type": "ClassLabel"}


def parquet(path: str, columns: dict[str, object], features: dict[str, object] | None = None, **more):
    """Return a writer of Parquet files of images, with the same content at each path."""

    def write(root: Path) -> None:
        for place in (path, *more.get("also", ())):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(image_table(columns, features), root / place)

    return write


def saved(folder: str) -> Callable[[Path], object]:
    """Return a writer of what `save_to_disk` writes: an Arrow stream, and two files that describe it."""

    def write(root: Path) -> None:
        target = root / folder
        target.mkdir(parents=True)
        table = image_table({"kind": [1, 0]})
        with pa.ipc.new_stream(target / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
        info = {"features": {"kind": class_label("dog", "cat")}}
        (target / "dataset_info.json").write_text(json.dumps(info))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (target / "state.json").write_text(json.dumps(state))

    return write


def both(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [write(root) for write in writers]
