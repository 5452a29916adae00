"""JPEGs that decode with a warning are repaired; those that lack pixels are refused; all readers agree."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from rich.console import Console

from loaders import LoaderOptions, build_loader
from loaders.common.errors import UserError
from loaders.packs import packer
from loaders.packs.audit import decode_all
from loaders.packs.image import Action, ImagePolicy, prepare_image
from loaders.packs.reasons import BadImage, Reason
from loaders.packs.verify import verify_pack
from loaders.views.geometry import CenterCrop
from loaders.views.policy import ViewPolicy
from tests.corpus.damage import (
    CMYK,
    DAMAGED,
    LACKING,
    PLAIN,
    PROGRESSIVE,
    SMOOTH,
    TALL,
    segment,
    without_jfif,
)
from tests.loaders.packs.inputs import encoded, pack, pixels, write_tree
from tools.packing.inspect import inspect_pack
from tools.packing.warned import read_warnings

COPY, REFUSE = ImagePolicy(), ImagePolicy(damaged="quarantine")


def reference(data: bytes) -> np.ndarray:
    """Decode the file with Pillow; if Pillow fails, decode the undamaged file instead."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int64)
    except OSError:
        good = {DAMAGED["the last of many rows"]: TALL, CMYK[:-2]: CMYK, PROGRESSIVE[:-2]: PROGRESSIVE}
        return np.asarray(Image.open(io.BytesIO(good.get(data, PLAIN))).convert("RGB"), np.int64)


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_other_readers_accept_is_kept(kind: str) -> None:
    data = DAMAGED[kind]
    image = prepare_image(data, COPY)
    assert image.action & Action.REPAIRED
    assert image.messages
    got = simplejpeg.decode_jpeg(image.data).astype(np.int64)
    assert np.abs(got - reference(data)).mean() < 2
    with pytest.raises(BadImage) as caught:
        prepare_image(data, REFUSE)
    assert caught.value.reason in (Reason.DAMAGED, Reason.TRUNCATED)
    for policy in (ImagePolicy(max_side=16, quality=80), ImagePolicy(encoding="raw")):
        assert prepare_image(data, policy).action & Action.REPAIRED or "few bytes" in kind


@pytest.mark.parametrize("kind", LACKING)
@pytest.mark.parametrize("policy", [COPY, REFUSE, ImagePolicy(max_side=16)], ids=["copy", "refuse", "shrink"])
def test_what_lacks_pixels_is_refused(kind: str, policy: ImagePolicy) -> None:
    with pytest.raises(BadImage, match="truncated") as caught:
        prepare_image(LACKING[kind], policy)
    assert caught.value.reason == Reason.TRUNCATED


def test_a_profile_in_several_parts_is_copied() -> None:
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 2]) + bytes(40)) for i in (2, 1)]
    data = without_jfif(*parts)
    assert prepare_image(data, COPY).data == data


def test_no_image_takes_the_tables_of_another() -> None:
    """A JPEG without Huffman tables gets the standard ones, as in motion JPEG, whatever came before it."""
    own = encoded(SMOOTH, "JPEG", quality=30, optimize=True)
    without, at = PLAIN, 0
    while (at := without.find(b"\xff\xc4")) >= 0:
        without = without[:at] + without[at + 2 + int.from_bytes(without[at + 2 : at + 4], "big") :]
    for data in (own, without, own, without[:20] + without[20:]):
        image = prepare_image(data, COPY)
        assert np.abs(simplejpeg.decode_jpeg(image.data) - reference(data)).mean() < 2
        assert (image.data == data) == (data == own)


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("in_bulk", [False, True], ids=["alone", "bulk"])
def test_every_reader_reads_what_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_format: str, in_bulk: bool
) -> None:
    """Loader, verification, page and search for copies all accept a packed file."""
    if in_bulk:
        monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
    files = {
        f"c/{kind}.jpg": data for kind, data in DAMAGED.items() if data != DAMAGED["the last of many rows"]
    }
    files |= {f"c/good{i}.jpg": encoded(Image.fromarray(pixels(i, 40, 40)), "JPEG") for i in range(3)}
    source = write_tree(tmp_path / "in", files)
    packed = pack(tmp_path / "p", f"train={source}", shard_format=shard_format)
    assert len(packed) == len(files)
    assert packed.manifest.num_quarantined == 0
    assert verify_pack(tmp_path / "p") == []
    assert decode_all(packed, 1) == []
    console = Console(record=True, width=200, file=io.StringIO())
    inspect_pack(packed, True, 1, console)
    assert f"{len(files) - 3} images with decoder warnings" in console.export_text()
    page = (tmp_path / "p" / "report.html").read_text()
    assert f"repaired: {len(files) - 3}" in page
    assert "few%20bytes%20before" in page
    square = ViewPolicy("square", 8, CenterCrop(1.0))
    with build_loader(
        packed.split("train"), (square,), 4, options=LoaderOptions(seed=0, num_threads=1), mode="eval"
    ) as loader:
        assert sum(int(batch.valid.sum()) for batch in loader.epoch(0)) == len(files)
        assert loader.bad_rows == {}


def test_repairs_are_counted_listed_and_carried_on(tmp_path: Path) -> None:
    files = {"c/good.jpg": PLAIN, "c/end.jpg": PLAIN[:-2], "d/cut.jpg": PLAIN[:-300], "d/good.jpg": TALL}
    source = write_tree(tmp_path / "in", files)
    packed = pack(tmp_path / "p", f"train={source}")
    assert packed.manifest.actions == {"copied": 2, "reencoded+repaired": 1}
    (line,) = (tmp_path / "p" / "warnings.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["key"], entry["name"]) == ("train/c/end", "c/end.jpg")
    assert entry["messages"] == ["Premature end of JPEG file"]
    found = read_warnings(packed)
    assert [packed.key(int(row)) for row in found.repaired] == ["train/c/end"]
    again = pack(tmp_path / "q", f"train=pack:{tmp_path / 'p'}", shard_format="ffcv")
    assert again.manifest.actions == packed.manifest.actions
    assert read_warnings(again).messages == found.messages
    codes = [
        json.loads(line)["code"] for line in (tmp_path / "q" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert codes == ["truncated"]
    strict = pack(tmp_path / "s", f"train={source}", damaged="quarantine")
    assert (len(strict), strict.manifest.num_quarantined) == (2, 2)


def test_a_wrong_choice_is_refused() -> None:
    with pytest.raises(UserError, match="--damaged 'mend': expected repair or quarantine"):
        ImagePolicy(damaged="mend")  # type: ignore[arg-type]
