"""Weights files are complete for any memory layout of tensors, and have the permissions of the umask."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.nets.weights import write_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, then one that replaces it
            write_tensors(tmp_path / "weights", {"a": torch.arange(4)}, {"name": "value"})
            assert (tmp_path / "weights").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_any_layout_comes_back(tmp_path: Path) -> None:
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    write_tensors(tmp_path / "weights", {"image": image, "turned": torch.arange(6).reshape(2, 3).T})
    found = load_file(tmp_path / "weights")
    assert torch.equal(found["image"], image)
    assert torch.equal(found["turned"], torch.tensor([[0, 3], [1, 4], [2, 5]]))
