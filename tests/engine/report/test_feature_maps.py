"""Drawings of feature maps show the same channels for networks of one kind, and zero as dark."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.nets.backbones import build_backbone
from engine.report.feature_maps import look, maps_section, montage, some_channels, sparseness_table
from engine.report.page import Gallery
from engine.train.run_folder import save_backbone
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack

DESCRIBED = {"backbone": "tiny_resnet", "resolution": "16"}


def make_run(run: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    run.mkdir()
    save_backbone(run, build_backbone("tiny_resnet", 16), DESCRIBED)
    return run


def test_channels_are_drawn_once_for_all_networks() -> None:
    assert np.array_equal(some_channels(64, 16, 0), some_channels(64, 16, 0))
    assert not np.array_equal(some_channels(64, 16, 0), some_channels(64, 16, 1))
    assert some_channels(8, 16, 0).tolist() == list(range(8))
    assert len(set(some_channels(64, 16, 3).tolist())) == 16


def test_each_map_is_shown_by_its_own_largest_value() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[0, 0, 0], maps[1, 0, 1] = 5.0, -0.1
    shown = montage(maps, np.array([0, 1]))
    assert shown.shape == (3, 20, 41), "each enlarged to 20 pixels, with a gap of one"
    assert shown.dtype == torch.uint8
    first, second = shown[:, ::10, :20:10], shown[:, ::10, 21::10]
    assert torch.equal(first[:, 0, 0], second[:, 0, 1]), "the largest of each"
    assert torch.equal(first[:, 1, 1], second[:, 1, 1]), "zero"
    assert first[:, 1, 1].sum() < first[:, 0, 0].sum()
    assert (shown[:, :, 20] == 255).all(), "the gap"
    assert not torch.isnan(montage(maps, np.array([2])).float()).any()


def test_images_come_in_the_order_asked_for(digits_pack: Pack, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    there, back = (look("net", run, digits_pack, rows) for rows in ([30, 4], [4, 30]))
    assert torch.equal(there.images, back.images.flip(0))
    torch.testing.assert_close(there.stages[2].maps, back.stages[2].maps.flip(0))
    at_32 = look("net", run, digits_pack, [4], resolution=32)
    assert at_32.stages[0].maps.shape == (1, 32, 16, 16)
    with pytest.raises(UserError, match="ffcv"):  # which reads no pack of this format
        look("net", run, digits_pack, [4], loader=LoaderOptions(backend="ffcv"))


def test_a_page_has_a_column_per_image_and_a_row_per_stage(digits_pack: Pack, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    section = maps_section(run, digits_pack, [3, 9, 3])
    gallery = section.blocks[0]
    assert isinstance(gallery, Gallery)
    assert gallery.names == ("image", "stages.0", "stages.1", "stages.2", "stages.3")
    assert len(gallery.columns) == 2, "an image that comes twice is shown once"
    table = sparseness_table([look(n, run, digits_pack, [3]) for n in ("one", "two")])
    assert len(table.rows) == 8
    assert table.rows[0][1:3] == ("one", "32 x 8")
