"""Feature maps of several networks side by side, for images by name, from a pack or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders.common.errors import UserError
from loaders.packs import Pack
from tests.engine.report.test_feature_maps import make_run
from tests.in_process import run_script
from tools.feature_maps import Config, chosen_rows


def test_networks_are_drawn_side_by_side(digits_folder: Path, digits_pack: Pack, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed) for seed, name in enumerate(("first", "second"))]
    out = tmp_path / "new" / "maps.png"
    chosen = ("--resolution", 24, "--num-maps", 4)
    done = run_script(
        "tools/feature_maps.py", "--starts", *runs, "--images", digits_folder / "train", "--out", out, *chosen
    )
    assert done.returncode == 0, done.stderr
    assert "feature_maps: 2 networks, 1 images" in done.stdout
    for text in ("first", "second", "stages.3", "32 x 12"):
        assert text in done.stdout
    with Image.open(out) as light, Image.open(out.with_stem("maps-dark")) as dark:
        assert light.size == dark.size
        assert light.tobytes() != dark.tobytes()


def test_images_are_chosen_by_name(digits_pack: Pack, tmp_path: Path) -> None:
    def config(**changes: object) -> Config:
        given = {"starts": (tmp_path,), "images": "", "out": tmp_path / "a.png"}
        return Config(**given | changes)

    rows = digits_pack.split("test").rows
    key = digits_pack.key(450 + 1347)
    assert chosen_rows(config(keys=(key, key)), digits_pack) == [450 + 1347]
    assert chosen_rows(config(split="test", num_images=3), digits_pack) == rows(np.arange(3)).tolist()
    with pytest.raises(UserError, match=r"no image called 'x.jpg'; give one that it has, such as .*jpg"):
        chosen_rows(config(keys=("x.jpg",)), digits_pack)


@pytest.mark.parametrize("change", [{"starts": ()}, {"out": Path("a.jpg")}, {"num_maps": 0}])
def test_mistakes_are_named(change: dict[str, object], tmp_path: Path) -> None:
    given = {"starts": (tmp_path,), "images": "x", "out": tmp_path / "a.png"}
    with pytest.raises(UserError, match=r"expected"):
        Config(**given | change)
