"""Writing tensors to a safetensors file that is on the disk when the call returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from loaders.common.files import sync_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors and wait until they are on the disk; the caller gives the file its final name.

    Args:
        path: file to write.
        tensors: name and tensor, of any memory layout; they are written contiguous, since safetensors keeps
            no strides.
        metadata: texts to store in the header of the file.
    """
    path.touch()
    mode = path.stat().st_mode  # by the user's umask; safetensors makes files that nobody else can read
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, path, metadata=metadata)
    path.chmod(mode)
    sync_file(path)
