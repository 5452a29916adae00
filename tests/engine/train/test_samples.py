"""The first views of a run are saved as the network saw them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.train.samples import load_samples, normalization_of, save_samples
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import UserError
from loaders.views.policy import IMAGENET


def batch(num_views: int, first_row: int = 0) -> Batch:
    views = tuple(torch.randn(6, 3, 8 + i, 8 + i) for i in range(num_views))
    index = torch.arange(first_row, first_row + 6)
    return Batch(views, None, index, torch.ones(6, dtype=torch.bool))


def test_views_and_rows_are_read_back(tmp_path: Path) -> None:
    kept = batch(2, first_row=40)
    save_samples(tmp_path, kept, num_images=4)
    views, index = load_samples(tmp_path)
    assert index.tolist() == [40, 41, 42, 43]
    assert [v.shape[-1] for v in views] == [8, 9]
    assert all(torch.equal(view, whole[:4]) for view, whole in zip(views, kept.views, strict=True))


def test_of_a_pair_the_unlabelled_images_are_kept(tmp_path: Path) -> None:
    save_samples(tmp_path, PairedBatch(batch(1), batch(2, first_row=100)))
    views, index = load_samples(tmp_path)
    assert len(views) == 2
    assert index.tolist() == list(range(100, 106))


def test_a_runs_own_normalization_is_kept_beside_them(tmp_path: Path) -> None:
    save_samples(tmp_path, batch(1), view={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "crop": 1.0})
    assert normalization_of(tmp_path) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    save_samples(tmp_path, batch(1))  # as older versions saved them
    assert normalization_of(tmp_path) == (IMAGENET.mean, IMAGENET.std)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "views.safetensors"
    for read in (load_samples, normalization_of):
        with pytest.raises(UserError, match="train a run"):
            read(tmp_path)
        file.write_bytes(b"not weights")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)
        file.unlink()


def test_a_damaged_entry_of_the_normalization_is_named(tmp_path: Path) -> None:
    save_samples(tmp_path, batch(1), view={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)})
    file = tmp_path / "views.safetensors"
    file.write_bytes(file.read_bytes().replace(b"[0.5,", b"{0.5,"))
    with pytest.raises(UserError, match="cannot be read"):
        normalization_of(tmp_path)


def test_a_file_without_views_is_named(tmp_path: Path) -> None:
    save_file({"view_0": torch.zeros(1, 3, 8, 8)}, tmp_path / "views.safetensors")
    with pytest.raises(UserError, match=r"expected views and their rows in .*, found none; remove it"):
        load_samples(tmp_path)
