"""A pack small enough for many runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


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
