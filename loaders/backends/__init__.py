"""The backends, and the choice of a backend for a loader.

Each backend is one object in its own file. CONTRIBUTING.md, "Add a backend", lists the files that a new
backend touches. "auto" takes what `usual_backend` of `loaders.options` returns, whatever is listed here.
"""

from __future__ import annotations

from typing import get_args

from loaders.backends.cpu import CpuBackend
from loaders.backends.dali import DaliBackend
from loaders.backends.ffcv import FfcvBackend
from loaders.backends.hybrid import HybridBackend
from loaders.backends.resident import ResidentBackend
from loaders.backends.stream import StreamBackend
from loaders.backends.work import Backend
from loaders.common.checks import check_one_of
from loaders.options import BackendName, usual_backend
from loaders.packs import Split
from loaders.packs.stores.remote_pack import RemotePack

BACKENDS: tuple[Backend, ...] = (
    CpuBackend(),
    StreamBackend(),
    DaliBackend(),
    FfcvBackend(),
    ResidentBackend(),
    HybridBackend(),
)


def choose_backend(name: BackendName, *splits: Split) -> tuple[Backend, str]:
    """Return a backend, and one line that names it and says why it was chosen.

    Args:
        name: `LoaderOptions.backend`; "auto" takes what `usual_backend` returns.
        splits: all splits that the loader reads.

    Raises:
        UserError: there is no such backend.
    """
    check_one_of("backend", name, get_args(BackendName))
    taken, why = name, "requested"
    if name == "auto":
        remote = [split.pack.url for split in splits if isinstance(split.pack, RemotePack)]
        taken, why = usual_backend(remote[0] if remote else None)
    backend = next(backend for backend in BACKENDS if backend.name == taken)
    return backend, f"{taken}: {why}"
