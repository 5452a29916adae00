"""The contact sheet: its comparison with torchvision, and the command line."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from loaders.common.errors import UserError
from loaders.kernels.jpeg.turbojpeg import decode_jpeg
from loaders.views import presets
from loaders.views.draw import draw
from loaders.views.policy import Augment, RandAugment
from tests.loaders.conftest import write_pack
from tools.show_views import compare, describe, find_policy, main
from tools.views.sheet import draw_sheet


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    from sklearn.datasets import load_sample_images

    images = [np.ascontiguousarray(image[y : y + 90, 40:150]) for y in (20, 200) for image in
              load_sample_images().images]  # fmt: skip
    return write_pack(tmp_path_factory.mktemp("show"), images)


# View, and mean difference in units of 1/255; torchvision crops at whole pixels, so centred boxes may be half
# a pixel apart.
VIEWS = {
    "barlow_a": (presets.barlow_a(48), 0.1),
    "barlow_b": (presets.barlow_b(48), 0.3),
    "simclr": (presets.simclr(48), 0.1),
    "weak": (presets.weak(48), 0.5),
    "fixmatch_strong": (presets.fixmatch_strong(48), 1.5),
    "rotate_translate_jitter": (presets.rotate_translate_jitter(48), 0.5),
    "evaluation": (presets.evaluation(48), 0.5),
    "mirrored": (find_policy("mirrored", 48), 0.5),
    "rotation_90": (find_policy("rotation_90", 48), 0.1),
    "tile_4": (find_policy("tile_4", 48), 3.0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_both_sides_show_the_same_view(name, pack):
    policy, most = VIEWS[name]
    found = compare(pack.split("train"), policy, 4, 3, 0, "cpu")
    assert found.ours.shape == found.theirs.shape == (4, 3, 3, 48, 48)
    assert 0 <= found.ours.min() < found.ours.max() <= 1.0001
    assert (found.ours - found.theirs).abs().mean() * 255 < most
    shuffled = found.theirs.roll(1, 0)
    assert (found.ours - shuffled).abs().mean() * 255 > 10 * most


def test_notes_say_what_was_drawn():
    policy = presets.weak(32)
    posterize = RandAugment((Augment("posterize", 5, 5),), 1, 1.0)
    policy = type(policy)("test", 32, policy.geometry, (*policy.operations, posterize))
    side = np.full(20, 40)
    drawn = draw(policy, 0, np.zeros(20, np.int64), np.arange(20), 0, side, side)
    notes = [describe(drawn, i) for i in range(20)]
    assert all(note.startswith("crop 40 x 40") and note.endswith("posterize to 5 bits") for note in notes)
    assert sum("flip" in note for note in notes) == drawn.flip.sum() > 0


def test_small_pictures_are_enlarged_into_square_blocks():
    picture = torch.zeros(3, 2, 2)
    picture[0, 0, 0] = 1.0
    sheet = np.asarray(draw_sheet("title", "subtitle", ["one"], [([picture], ["note"])], 64, 3))
    assert ((sheet == (255, 0, 0)).all(-1)).sum() == 32 * 32


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["show_views.py", *map(str, arguments)])
    return main()


def test_the_command_writes_a_picture(pack, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sheet.png"
    options = ("--view", "weak", "--resolution", 24, "--num-images", 9, "--draws", 1, "--out", out)
    assert run(monkeypatch, pack.path, *options) == 0
    assert "4 images, 1 draws" in capsys.readouterr().err
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 4 * 144


def test_a_policy_of_the_users_own(pack, tmp_path, monkeypatch, capsys):
    source = "from loaders.views.policy import CenterCrop, ViewPolicy\n"
    source += "mine = ViewPolicy('mine', 20, CenterCrop())\n"
    (tmp_path / "own_views.py").write_text(source + "other = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run(monkeypatch, pack.path, "--view", "own_views:mine", "--num-images", 2, "--out", "own.png") == 0
    assert (tmp_path / "own.png").exists()
    for name in ("own_views:other", "own_views:none", "no_views:mine", "swirl"):
        with pytest.raises(UserError, match="--view"):
            run(monkeypatch, pack.path, "--view", name)


def test_mistakes_are_refused(pack, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="num_images: expected more than 0"):
        run(monkeypatch, pack.path, "--num-images", 0)
    with pytest.raises(UserError, match="no split 'none'"):
        run(monkeypatch, pack.path, "--split", "none")
    with pytest.raises(UserError, match="folder"):
        run(monkeypatch, pack.path, "--out", tmp_path / "nowhere" / "sheet.png")


def test_a_pack_of_pixels_is_shown(pack, tmp_path, monkeypatch):
    raw = write_pack(tmp_path, [decode_jpeg(pack.view(row)) for row in range(2)], encoding="raw")
    found = compare(raw.split("train"), presets.barlow_a(48), 2, 1, 0, "cpu")
    assert (found.ours - found.theirs).abs().mean() * 255 < VIEWS["barlow_a"][1]
    options = ("--view", "weak", "--resolution", 24, "--num-images", 2, "--draws", 1)
    assert run(monkeypatch, raw.path, *options, "--out", tmp_path / "raw.png") == 0


def test_a_damaged_image_is_named(pack, tmp_path, monkeypatch):
    made = write_pack(tmp_path, [decode_jpeg(pack.view(row)) for row in range(2)])
    shard, offset, size = (int(getattr(made.columns, name)[1]) for name in ("shard", "offset", "size"))
    with made.shard_path(shard).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(
        UserError, match=r"^image: expected a readable image, found .*0001.* damaged .*verify_pack"
    ):
        run(monkeypatch, made.path, "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
