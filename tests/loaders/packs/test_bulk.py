"""Images copied in batches give exactly the pack that they give one by one."""

import io
from pathlib import Path

import pytest
from PIL import Image

from loaders.packs import bulk, packer
from loaders.packs.image import Action
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, encoded, folder_hashes, jpeg, pack, pixels, write_tree
from tools.draw_images import NUM_DAMAGES, damage


def motley_tree() -> dict[str, bytes]:
    """Return images that are copied, re-encoded or refused, with names of every length."""
    image, exif, upright = Image.fromarray(pixels(7, 40, 60)), Image.Exif(), Image.Exif()
    exif[0x0112], upright[0x0112] = 6, 1
    files = class_tree(3, 30)
    files |= {f"c1/damaged{way}.jpg": damage(jpeg(50 + way, 96, 96), way) for way in range(NUM_DAMAGES)}
    files |= {
        "root.jpg": jpeg(1),
        "c0/ü b.jpg": jpeg(2),
        f"c0/{'n' * 96}.jpg": jpeg(3),
        f"c2/{'long' * 60}.jpg": jpeg(4),
        "c0/rotated.jpg": encoded(image, "JPEG", exif=exif),
        "c0/upright.jpg": encoded(image, "JPEG", exif=upright),
        "c1/gray.jpg": encoded(image.convert("L"), "JPEG"),
        "c1/cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "c1/progressive.jpg": encoded(image, "JPEG", progressive=True),
        "c2/a.png": encoded(image, "PNG"),
        "c2/empty.jpg": b"",
        "c2/large.jpg": jpeg(5, 500, 400),
        "c2/same.jpg": jpeg(6),
        "c2/same.png": encoded(image, "PNG"),
    }
    return files


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("policy", [{}, {"max_side": 64, "max_pixels": 150_000}])
def test_same_bytes_in_bulk(
    tmp_path: Path, shard_format: str, policy: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tree(tmp_path / "in", motley_tree())
    (source / "loop").symlink_to(source)
    for name, small_bytes in (("alone", 1 << 60), ("bulk", 0)):
        monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", small_bytes)
        options = {"shard_size_mb": 0.1, "shard_format": shard_format, "workers": 2, **policy}
        made = pack(tmp_path / name, f"train={source}", **options)
        repaired = int((made.columns.action & int(Action.REPAIRED) != 0).sum())
        assert made.manifest.num_quarantined + repaired >= NUM_DAMAGES + 2
    assert folder_hashes(tmp_path / "alone") == folder_hashes(tmp_path / "bulk")
    assert verify_pack(tmp_path / "bulk") == []


def test_other_sources_in_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tree(tmp_path / "in", class_tree(2, 20))
    first = pack(tmp_path / "first", f"train={source}")
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
    again = pack(tmp_path / "again", f"train=pack:{tmp_path / 'first'}#train")
    assert [again.read(row) for row in range(40)] == [first.read(row) for row in range(40)]


def test_a_file_that_changes_is_an_error_in_bulk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loaders.common.errors import UserError

    source = write_tree(tmp_path / "in", class_tree(2, 20))
    monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0)
    real = packer.make_plan

    def change(*args):
        plan = real(*args)
        (source / "c0/003.jpg").write_bytes(io.BytesIO(jpeg(3) + b"more").getvalue())
        return plan

    monkeypatch.setattr(packer, "make_plan", change)
    with pytest.raises(UserError, match="the source changed while packing"):
        pack(tmp_path / "p", f"train={source}")


def test_a_batch_of_nothing_but_refused_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"c0/{i}.jpg": b"no image" for i in range(9)} | {f"c1/{i}.jpg": jpeg(i) for i in range(3)}
    source = write_tree(tmp_path / "in", files)
    monkeypatch.setattr(bulk, "_BATCH_IMAGES", 4)
    for name, small_bytes in (("alone", 1 << 60), ("bulk", 0)):
        monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", small_bytes)
        pack(tmp_path / name, f"train={source}")
    assert folder_hashes(tmp_path / "alone") == folder_hashes(tmp_path / "bulk")
