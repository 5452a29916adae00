"""What turns packed bytes into batches of views.

Public names are imported on first use, because packing must not import torch in every worker process.

Importing this package before torch makes OpenMP's threads sleep instead of spin while they wait for each
other. Loader threads share the cores with torch's threads, so a spinning thread may hold the core that the
awaited thread needs: a training step on a busy 2-core machine took several times as long. An
OMP_WAIT_POLICY that is already set is kept.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from loaders.common.command_line import end_script_at_ctrl_c

end_script_at_ctrl_c()  # before the imports of a script, which take time

from loaders.common.cache_folder import share_cache  # noqa: E402

if TYPE_CHECKING:
    from loaders.build import build_loader, build_paired_loader
    from loaders.options import BackendName, LoaderOptions
    from loaders.packs import open_pack

__all__ = ["BackendName", "LoaderOptions", "build_loader", "build_paired_loader", "open_pack"]

_HOMES = {
    "BackendName": "loaders.options",
    "LoaderOptions": "loaders.options",
    "build_loader": "loaders.build",
    "build_paired_loader": "loaders.build",
    "open_pack": "loaders.packs",
}

share_cache()  # before any library chooses its cache folder
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loaders' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, which are imported only on first use."""
    return sorted({*globals(), *__all__})
