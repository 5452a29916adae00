"""Fixtures for the tests of several recipes: a pack small enough for many runs, and a trained classifier."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.packs import Pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from tests.floors.data import Data
from tests.forked import ROOT, launch_forked
from tests.once import made_once


@pytest.fixture(scope="session")
def few_digits(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack of 64 digits of 8 classes, as the splits `unlabeled` and `train`."""
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
def trained(data: Data) -> Path:
    """Run folder, not to be changed, of a classifier and its average, trained on ten digits per class."""
    return data.trained(0)


@pytest.fixture(scope="session")
def by_two(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of every self-supervised recipe on two processes, see `two_processes`."""
    program = ROOT / "tests/recipes/two_processes.py"
    return made_once(
        tmp_path_factory, "two", lambda out: launch_forked(2, program, "without labels", few_digits, out)
    )


@pytest.fixture(scope="session")
def labelled_by_two(little_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of every recipe with labels on two processes, see `two_processes`."""
    program = ROOT / "tests/recipes/two_processes.py"
    return made_once(
        tmp_path_factory,
        "labelled-two",
        lambda out: launch_forked(2, program, "with labels", little_pack.path, out),
    )
