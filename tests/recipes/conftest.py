"""What the tests of several recipes read: a pack small enough for many runs, and a trained classifier."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.packs import Pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from recipes import supervised
from tests.recipes.labelled import FEW


@pytest.fixture(scope="session")
def few_digits(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 digits of 8 classes as the splits `unlabeled` and `train`."""
    folder = tmp_path_factory.mktemp("few-digits")
    for digit in "01234567":
        target = folder / "images" / digit
        target.mkdir(parents=True)
        for source in sorted((digits_folder / "train" / digit).glob("*.jpg"))[:8]:
            (target / source.name).write_bytes(source.read_bytes())
    images = folder / "images"
    splits = parse_splits([f"unlabeled={images}", f"train={images}"])
    pack_dataset(PackOptions(splits, folder / "pack", workers=1))
    return folder / "pack"


@pytest.fixture(scope="session")
def trained(digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a classifier and its average, trained on ten digits of each class; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "run"
    few = FEW | {"labels_per_class": 10, "epochs": 10}
    supervised.run(supervised.Config(pack=digits_pack.path, out=out, min_crop=0.6, ema_decay=0.5, **few))
    return out
