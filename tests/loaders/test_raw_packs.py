"""Packs of decoded pixels, read by the cpu backend and by the formats' own libraries, in both formats."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import LoaderOptions, build_loader
from loaders.kernels.encodings import ENCODING_RAW
from loaders.packs.shards.beton_layout import read_beton
from loaders.packs.verify import verify_pack
from loaders.views import presets
from tests.forked import run_forked
from tests.loaders.packs.inputs import encoded, pack, pixels, write_tree

FORMATS = ["webdataset", "ffcv"]


def source(tmp_path: Path) -> str:
    pngs = {f"c{i % 2}/{i}.png": encoded(Image.fromarray(pixels(i, 40 + i, 48)), "PNG") for i in range(8)}
    return f"train={write_tree(tmp_path / 'in', pngs)}"


@pytest.mark.parametrize("shard_format", FORMATS)
def test_rows_are_pixels(tmp_path: Path, shard_format: str) -> None:
    packed = pack(tmp_path / "p", source(tmp_path), shard_format=shard_format, encoding="raw")
    rows = packed.columns
    assert set(rows.encoding.tolist()) == {ENCODING_RAW}
    for row in range(len(packed)):
        number = int(packed.key(row).rpartition("/")[2])
        shape = (int(rows.height[row]), int(rows.width[row]), 3)
        np.testing.assert_array_equal(packed.view(row).reshape(shape), pixels(number, 40 + number, 48))
    assert verify_pack(tmp_path / "p") == []
    again = pack(tmp_path / "q", f"train={'wds:' * (shard_format == 'webdataset')}{packed.shard_path(0)}",
                 encoding="raw")  # fmt: skip
    assert [again.read(r) for r in range(8)] == [packed.read(r) for r in range(8)]


def test_views_equal_those_of_lossless_files(tmp_path: Path) -> None:
    """A raw pack and a pack at JPEG quality 100 give nearly the same views: same rows, same draws."""
    batches = []
    for name, options in (("raw", {"encoding": "raw"}), ("jpeg", {"quality": 100})):
        packed = pack(tmp_path / name, source(tmp_path), **options)
        loader = build_loader(
            packed.split("train"), (presets.weak(32),), 8, options=LoaderOptions(num_threads=2, dtype="uint8")
        )
        batches.append(next(iter(loader.epoch(0))))
        loader.close()
    raw, jpeg = batches
    assert torch.equal(raw.index, jpeg.index)
    assert torch.equal(raw.labels, jpeg.labels)
    assert (raw.views[0].float() - jpeg.views[0].float()).abs().mean() < 2


def test_stock_readers_open_the_pixels(tmp_path: Path) -> None:
    packed = pack(tmp_path / "p", source(tmp_path), encoding="raw")
    with tarfile.open(packed.shard_path(0)) as tar:
        pictures = [np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read())))
                    for m in tar if m.name.endswith(".ppm")]  # fmt: skip
    assert [p.tobytes() for p in pictures] == [packed.read(row) for row in range(8)]
    beton = pack(tmp_path / "b", source(tmp_path), shard_format="ffcv", encoding="raw", max_side=40)
    assert set(read_beton(beton.shard_path(0)).samples["image"]["mode"].tolist()) == {1}


FFCV_SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
loader = Loader(sys.argv[1], batch_size=8, num_workers=1, order=OrderOption.SEQUENTIAL,
                pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]})
np.save(sys.argv[2], next(iter(loader))[0])
"""


@pytest.mark.slow
def test_ffcv_reads_raw_betons(tmp_path: Path) -> None:
    pytest.importorskip("ffcv", exc_type=ImportError)
    pngs = {f"{i}.png": encoded(Image.fromarray(pixels(i)), "PNG") for i in range(8)}
    packed = pack(
        tmp_path / "p", f"train={write_tree(tmp_path / 'i', pngs)}", shard_format="ffcv", encoding="raw"
    )
    run = run_forked("-c", FFCV_SCRIPT, packed.shard_path(0), tmp_path / "x.npy")
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.stack([pixels(i) for i in range(8)]))
