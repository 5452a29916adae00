"""The backends that the contract suite tests: every promise is tested on each entry here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loaders import BackendName
from loaders.packs import Pack, StoreOptions, open_pack
from loaders.packs.manifest import SHARD_LIST_NAME, FileInfo, write_manifest
from loaders.views import presets
from loaders.views.policy import ViewPolicy

FUSED = (presets.barlow_a(24), presets.barlow_b(32))


@dataclass(frozen=True)
class BackendCase:
    """A backend as the suite sees it.

    Attributes:
        name: the backend's name for `build_loader`.
        place: turns a local pack, given a scratch folder, into the pack that this backend reads.
        work: dotted name of the function called for every image, which tests make fail or hang.
        options: further options of `build_loader`.
        shard_format: format of the packs that the backend reads.
        views: default views of tests, with sides of 24 and 32 pixels.
        always_verifies: whether it compares a row's checksum at the first reading even without --verify.
        in_store: whether it reads copies, of the shards in a cache or of their pixels.
        pairs: whether it can render a paired loader; otherwise it refuses by name.
        places: number of batch buffers that may alternate if no batch is kept and none is made ahead.
        module: Python module without which the backend's tests are skipped.
    """

    name: BackendName
    place: Callable[[Pack, Path], Pack]
    work: str
    options: dict[str, Any] = field(default_factory=dict)
    shard_format: str = "webdataset"
    views: tuple[ViewPolicy, ...] = FUSED
    always_verifies: bool = False
    in_store: bool = False
    pairs: bool = True
    places: int = 2
    module: str = "loaders"


def _as_it_is(pack: Pack, folder: Path) -> Pack:
    return pack


def _in_a_store(pack: Pack, folder: Path) -> Pack:
    return open_pack(f"file://{pack.path}", StoreOptions(cache_dir=folder / "cache", backoff_s=0.01))


CPU_WORK = "loaders.backends.cpu.render_chunk"
BACKENDS = {
    "cpu": BackendCase("cpu", _as_it_is, CPU_WORK),
    "stream": BackendCase("stream", _as_it_is, CPU_WORK, {"window": 2}),
    "stream-store": BackendCase("stream", _in_a_store, CPU_WORK, {"window": 2}, in_store=True),
    "dali": BackendCase(
        "dali",
        _as_it_is,
        CPU_WORK,
        always_verifies=True,
        module="nvidia.dali",
    ),
    "resident": BackendCase("resident", _as_it_is, CPU_WORK, in_store=True),
    "ffcv": BackendCase(
        "ffcv", _as_it_is, CPU_WORK, shard_format="ffcv", pairs=False, places=5, module="ffcv"
    ),
}
WITHOUT_CASE = {"hybrid": "it draws on a GPU; tests/loaders/backends/test_hybrid.py compares its batches"}
"""Backends that the suite does not run over, each with the reason and the test in its place."""


def reseal(pack: Pack) -> Pack:
    """Give changed shards new checksums, as if their images had been damaged when they were packed."""
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
