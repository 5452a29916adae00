"""What a recipe's configuration refuses before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.train.run_config import RunConfig
from loaders.common.errors import UserError
from loaders.packs import Pack
from recipes import barlow


def config(pack: Path, out: Path, resume: bool = False) -> RunConfig:
    return RunConfig(
        pack=pack, out=out, backbone="tiny_resnet", resolution=16, epochs=1, batch_size=2, resume=resume
    )


def test_a_pack_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pack at .*nowhere: make one with"):
        config(tmp_path / "nowhere", tmp_path / "run").check_places()


def test_a_folder_in_use_is_told_at_once(digits_pack: Pack, tmp_path: Path) -> None:
    config(digits_pack.path, tmp_path / "run").check_places()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run; add --resume to go on with it, or give"):
        config(digits_pack.path, tmp_path).check_places()
    config(digits_pack.path, tmp_path, resume=True).check_places()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"split": "nowhere"},
            "split: expected .*, train, .*, found 'nowhere'; give one by --split",
        ),
        (
            {"init": Path("nowhere")},
            "init: expected a run folder, .* found nothing at nowhere; check",
        ),
    ],
)
def test_what_a_run_begins_with_is_told_at_once(
    options: dict[str, Any], said: str, digits_pack: Pack, tmp_path: Path
) -> None:
    given = {"pack": digits_pack.path, "out": tmp_path / "run", "split": "train", **options}
    with pytest.raises(UserError, match=said):
        barlow.Config(**given).check_places()


def test_a_pack_in_a_store_is_left_for_later(tmp_path: Path) -> None:
    config(Path("s3://bucket/pack"), tmp_path).check_places()
