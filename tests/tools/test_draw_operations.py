"""Every geometry and operation has a picture in docs/views.md, and the tool draws the page's pictures."""

import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from loaders.views.geometry import Geometry
from loaders.views.policy import AugmentName, Operation
from tools import draw_operations

PAGE = Path(__file__).parents[2] / "docs" / "views.md"


def test_every_operation_is_on_the_page() -> None:
    expected = {kind.__name__ for kind in (*get_args(Geometry), *get_args(Operation))}
    expected |= {f"Augment-{name}" for name in get_args(AugmentName)}
    assert set(draw_operations.SHOWN) == expected
    shown = re.findall(r"\(pictures/views/(.+?)\.png\)", PAGE.read_text())
    assert sorted(shown) == sorted(expected)
    pictures = list(draw_operations.FOLDER.glob("*.png"))
    assert {path.stem for path in pictures} == expected
    assert sum(path.stat().st_size for path in pictures) < 400_000


def test_the_tool_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(draw_operations, "SHOWN", {n: draw_operations.SHOWN[n] for n in ("Cutout", "Tile")})
    arguments = ["--out", str(tmp_path / "out"), "--tile", "16", "--draws", "3"]
    monkeypatch.setattr(sys, "argv", ["draw_operations.py", *arguments])
    draw_operations.main()
    with Image.open(tmp_path / "out" / "Cutout.png") as picture:
        assert picture.size == (56, 16)
    assert "views: 2 pictures" in capsys.readouterr().out
