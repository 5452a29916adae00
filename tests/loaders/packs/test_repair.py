"""JPEGs that decode with a warning are repaired; what lacks pixels is refused; all readers agree."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from rich.console import Console

from loaders import LoaderOptions, build_loader
from loaders.errors import UserError
from loaders.packs import packer
from loaders.packs.audit import decode_all
from loaders.packs.image import Action, ImagePolicy, prepare_image
from loaders.packs.reasons import BadImage, Reason
from loaders.packs.verify import verify_pack
from loaders.views.policy import CenterCrop, ViewPolicy
from tests.loaders.packs.inputs import encoded, pack, pixels, write_tree
from tools.packing.inspect import inspect_pack
from tools.packing.warned import read_warnings

COPY, REFUSE = ImagePolicy(), ImagePolicy(damaged="quarantine")
SMOOTH = Image.fromarray(pixels(3, 64, 64))
PLAIN = encoded(SMOOTH, "JPEG", quality=90, subsampling=0)
RESTARTS = encoded(SMOOTH, "JPEG", quality=90, restart_marker_blocks=2)
PROGRESSIVE = encoded(SMOOTH, "JPEG", quality=90, progressive=True)
CMYK = encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95)
TALL = encoded(Image.fromarray(pixels(5, 2400, 32)), "JPEG", quality=90)


def without_jfif(*segments: bytes) -> bytes:
    """`PLAIN` with other segments in the place of its JFIF one."""
    return PLAIN[:2] + b"".join(segments) + PLAIN[20:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


RESTART = RESTARTS.index(b"\xff\xd3")
DAMAGED = {
    "no mark at the end": PLAIN[:-2],
    "half a mark at the end": PLAIN[:-1],
    "bytes before a marker": PLAIN[:-2] + bytes(40) + PLAIN[-2:],
    "few bytes before a marker": PLAIN[:-2] + b"abc" + PLAIN[-2:],
    "junk in the header": PLAIN[:20] + b"\0\0\0" + PLAIN[20:],
    "junk before the first marker": PLAIN[:2] + b"\0\x11\x22" + PLAIN[2:],
    "junk before the image": b"\r\n" + PLAIN,
    "a profile without its second part": without_jfif(segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(40))),
    "a profile with a wrong number": without_jfif(segment(0xE2, b"ICC_PROFILE\0\0\1" + bytes(40))),
    "an unknown Adobe transform": without_jfif(segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")),
    "an unknown JFIF version": PLAIN.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "a restart marker of another number": RESTARTS[:RESTART] + b"\xff\xd5" + RESTARTS[RESTART + 2 :],
    "progressive, no mark at the end": PROGRESSIVE[:-2],
    "CMYK, no mark at the end": CMYK[:-2],
    "the last of many rows": TALL[:-8],
}


def reference(data: bytes) -> np.ndarray:
    """What Pillow makes of the file, or of the file without what is wrong with it."""
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


LACKING = {
    "cut": PLAIN[:-300],
    "cut, with a mark at the end": PLAIN[:-300] + b"\xff\xd9",
    "cut within its last unit": PLAIN[:-12],
    "cut behind the first byte of a pair": PLAIN[: PLAIN.index(b"\xff\0", PLAIN.index(b"\xff\xda")) + 1],
    "restart intervals, cut": RESTARTS[:RESTART],
    "restart intervals, cut, with a mark at the end": RESTARTS[: RESTART + 2] + b"\xff\xd9",
    "progressive, cut within a scan": PROGRESSIVE[:-100] + b"\xff\xd9",
    "progressive, without its last scan": PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff",
    "a header alone": PLAIN[: PLAIN.index(b"\xff\xda")],
    "three hundredths of many rows": TALL[: -len(TALL) // 25],
}


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
    """A JPEG without tables of codes has the standard ones, as in motion JPEG, whatever came before it."""
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
    """Loader, verification, page and search for copies judge a packed file alike."""
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
    assert f"{len(files) - 3} images that decoders warned of" in console.export_text()
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
