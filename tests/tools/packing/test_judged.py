"""Labels of a pack judged by stored features of a network, in the terminal and on the page."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from engine.evaluate.feature_store import store_features
from loaders import LoaderOptions, build_loader
from loaders.common.errors import UserError
from loaders.views import presets
from tests.loaders.packs.inputs import encoded, pack, write_tree
from tools.packing.inspect import inspect_pack


class Colours(torch.nn.Module):
    """A network whose features are the mean colours."""

    def forward(self, x):
        return 3 + x.mean((2, 3))


def test_labels_that_neighbours_doubt_are_shown(tmp_path: Path) -> None:
    """Red and blue images, one with the wrong label, and green ones without a label."""
    colours, rng = (
        {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 220, 20)},
        np.random.default_rng(0),
    )

    def plain(name: str) -> bytes:
        shade = np.clip(np.array(colours[name]) + rng.integers(-19, 20, (1, 1, 3)), 0, 255)
        return encoded(Image.fromarray(np.broadcast_to(shade, (16, 16, 3)).astype(np.uint8)), "JPEG")

    files = {f"{name}/{i}.jpg": plain(name) for name in ("red", "blue") for i in range(12)}
    write_tree(tmp_path / "in", files | {"red/wrong.jpg": plain("blue")})
    write_tree(tmp_path / "new", {f"{i}.jpg": plain("green" if i < 3 else "red") for i in range(6)})
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"new={tmp_path / 'new'}")
    for name in packed.splits:
        split, options = packed.split(name), LoaderOptions(num_threads=1)
        with build_loader(split, (presets.evaluation(16),), 8, options=options, mode="eval") as loader:
            store_features(Colours(), loader, split, "cpu", tmp_path / "run" / "features", tmp_path)
    console = Console(file=io.StringIO(), width=200)
    inspect_pack(packed, False, 1, console, features=[tmp_path / "none", tmp_path / "run"])
    said = console.file.getvalue()
    assert "1 of 25 labels may be wrong" in said
    assert "train/red/wrong: neighbours say blue" in said
    assert "3 of 6 images without a label are unlike every class" in said
    page = (packed.path / "report.html").read_text()
    assert "labelled red, neighbours say blue: 1" in page
    (far,) = re.findall(
        r'<figure><div class="sheet">((?:(?!</figure>).)*)the least like any class first', page
    )
    assert sorted(re.findall('alt="(.*?)"', far)) == ["new/0", "new/1", "new/2"]
    with pytest.raises(
        UserError, match=r"features: expected some of the pack .*, found none in .*near_copies"
    ):
        inspect_pack(packed, False, 1, console, features=[tmp_path / "none"])
