"""The backends that the contract suite runs over: one entry here and every promise is tested on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders import BackendName
from loaders.packs import Pack, StoreOptions, open_pack
from loaders.packs.manifest import SHARD_LIST_NAME, FileInfo, write_manifest


@dataclass(frozen=True)
class BackendCase:
    """A backend as the suite sees it.

    Attributes:
        name: what `build_loader` is asked for.
        place: turns a local pack into the one that this backend is to read; gets a scratch folder.
        decode: what decodes an image, by its dotted name, for tests that make it fail or hang.
        options: further options of `build_loader`.
    """

    name: BackendName
    place: Callable[[Pack, Path], Pack]
    decode: str
    options: dict[str, Any]


def _as_it_is(pack: Pack, folder: Path) -> Pack:
    return pack


def _in_a_store(pack: Pack, folder: Path) -> Pack:
    return open_pack(f"file://{pack.path}", StoreOptions(cache_dir=folder / "cache", backoff_s=0.01))


CPU_DECODE = "loaders.cpu.read_pixels_into"
BACKENDS = {
    "cpu": BackendCase("cpu", _as_it_is, CPU_DECODE, {}),
    "stream": BackendCase("stream", _as_it_is, CPU_DECODE, {"window": 2}),
    "stream-store": BackendCase("stream", _in_a_store, CPU_DECODE, {"window": 2}),
}


def reseal(pack: Pack) -> Pack:
    """Give changed shards new checksums, as if their bad images had been bad when they were packed."""
    lines = [json.loads(line) for line in (pack.path / SHARD_LIST_NAME).read_text("utf-8").splitlines()]
    for line in lines:
        data = (pack.path / "shards" / line["files"][0]["path"]).read_bytes()
        line["files"][0] |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (pack.path / SHARD_LIST_NAME).write_bytes(content)
    listed = FileInfo(SHARD_LIST_NAME, len(content), hashlib.sha256(content).hexdigest())
    files = tuple(listed if file.path == SHARD_LIST_NAME else file for file in pack.manifest.files)
    write_manifest(pack.path, replace(pack.manifest, files=files))
    return open_pack(pack.path)
