"""A resumed command must find the data that it began with: pack, order, and the pack of finished phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from loaders import LoaderOptions
from loaders.common.errors import UserError
from loaders.packs import open_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from recipes import pseudo_label, supervised
from tests.recipes.labelled import FEW


@pytest.fixture
def other_digits(few_digits: Path, tmp_path: Path) -> Path:
    """A pack with the same numbers of images and classes, in which one image differs."""
    source = few_digits.parent / "images"
    folder = tmp_path / "images"
    for path in source.rglob("*.jpg"):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    first, second = sorted(folder.rglob("*.jpg"))[:2]
    first.write_bytes(second.read_bytes() + b"\0")  # a different file, so that it is not left out as a copy
    splits = parse_splits([f"unlabeled={folder}", f"train={folder}"])
    pack_dataset(PackOptions(splits, tmp_path / "pack", workers=1))
    return tmp_path / "pack"


def test_a_run_does_not_go_on_with_another_pack_or_order(
    few_digits: Path, other_digits: Path, tmp_path: Path
) -> None:
    few = FEW | {"max_steps": 1, "batch_size": 16, "test_split": ""}
    config = supervised.Config(pack=few_digits, out=tmp_path / "run", **few)
    supervised.run(config)
    again = replace(config, resume=True, max_steps=2)
    with pytest.raises(UserError, match=r"expected pack of 128 images .*, found of 128 images"):
        supervised.run(replace(again, pack=other_digits))
    with pytest.raises(UserError, match="expected order full shuffle, found windows of 16 shards"):
        supervised.run(replace(again, loader=LoaderOptions(backend="stream")))
    supervised.run(again)


def test_a_command_of_phases_does_not_go_on_with_another_pack(
    few_digits: Path, other_digits: Path, tmp_path: Path
) -> None:
    few = FEW | {"batch_size": 16, "test_split": "", "epochs": 1}
    options = {"mode": "local", "cycles": 1, "first_epochs": 1, "unlabeled_splits": ("unlabeled",)}
    config = pseudo_label.Config(pack=few_digits, out=tmp_path / "run", **few, **options)
    pseudo_label.run_cycles(config, open_pack(few_digits))
    again = replace(config, resume=True)
    with pytest.raises(UserError, match="pack identity"):
        pseudo_label.run_cycles(again, open_pack(other_digits))
    pseudo_label.run_cycles(again, open_pack(few_digits))
