"""Near copies in a pack are found by features and listed with their splits."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.nets.backbones import TinyResNet
from engine.train.distributed import seed_everything
from engine.train.run_folder import save_backbone
from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import Pack
from tools.near_copies import Config, run


def test_the_same_images_in_two_splits_are_pairs(digits_pack: Pack, tmp_path: Path) -> None:
    seed_everything(0)
    save_backbone(tmp_path, TinyResNet(), {"backbone": "tiny_resnet", "resolution": "16"})
    config = Config(
        pack=digits_pack.path, init=tmp_path / "backbone.safetensors", out=tmp_path / "out",
        threshold=0.99999, splits=("train", "unlabeled"), loader=LoaderOptions(num_threads=1),
    )  # fmt: skip
    pairs = run(config)
    with (config.out / "near_copies.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(pairs.first)
    across = [line for line in lines if line["split of first"] != line["split of second"]]
    assert len(across) >= 1300  # `unlabeled` repeats the training images
    same = [line for line in across if Path(line["first"]).name == Path(line["second"]).name]
    assert len(same) >= 1300


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a cosine"):
        Config(pack=tmp_path, init=tmp_path, out=tmp_path, threshold=1.5)
