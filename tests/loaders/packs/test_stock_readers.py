"""The shard formats' own libraries read the same labels and the same bytes as our packs."""

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from loaders.common.errors import MissingBackendError
from loaders.ffcv import import_ffcv
from loaders.packs import Pack
from loaders.packs.shards.beton_layout import read_beton
from tests.forked import Forked


def shard_rows(pack: Pack, shard: int) -> list[int]:
    return np.flatnonzero(pack.columns.shard == shard).tolist()


WEBDATASET_SCRIPT = """
import sys, webdataset, hashlib
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
    print(sample["__key__"], sample["cls"].decode(), hashlib.sha256(sample["jpg"]).hexdigest())
"""


def test_webdataset_iterates_tars(digits_pack: Pack) -> None:
    import hashlib

    shards = [str(digits_pack.shard_path(shard)) for shard in range(digits_pack.num_shards)]
    with Forked("-c", WEBDATASET_SCRIPT, *shards, environment={"WDS_SECURE": "1"}) as process:
        run = process.wait()
    assert run.returncode == 0, run.stderr
    labels = digits_pack.labels.dense(len(digits_pack))
    expected = [
        f"{digits_pack.key(row)} {labels[row]} {hashlib.sha256(digits_pack.read(row)).hexdigest()}"
        for row in range(len(digits_pack))
    ]
    assert run.stdout.splitlines() == expected


def test_gnu_tar_and_tarfile_agree_with_the_index(digits_pack: Pack) -> None:
    import tarfile

    with tarfile.open(digits_pack.shard_path(1)) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
    rows = shard_rows(digits_pack, 1)
    assert [member.offset_data for member in members] == digits_pack.columns.offset[rows].tolist()
    assert [member.name for member in members] == [digits_pack.key(row) + ".jpg" for row in rows]
    assert subprocess.run(["tar", "tf", digits_pack.shard_path(1)], capture_output=True).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")
@pytest.mark.filterwarnings("ignore")
def test_dali_reads_tars_through_their_index(digits_pack: Pack) -> None:
    from nvidia.dali import fn, pipeline_def

    shard = digits_pack.num_shards - 1
    path = digits_pack.shard_path(shard)

    @pipeline_def(batch_size=16, num_threads=1, device_id=None)
    def reader():
        files, indices = [str(path)], [str(path.with_suffix(".idx"))]
        return tuple(
            fn.readers.webdataset(paths=files, index_paths=indices, ext=["jpg", "cls"], name="reader")
        )

    pipe = reader()
    rows = shard_rows(digits_pack, shard)
    assert pipe.reader_meta("reader")["epoch_size"] == len(rows)
    jpg, cls = pipe.run()
    labels = digits_pack.labels.dense(len(digits_pack))
    for place, row in enumerate(rows[:16]):
        assert jpg.at(place).tobytes() == digits_pack.read(row)
        assert int(cls.at(place).tobytes()) == labels[row]


def test_dali_index_is_what_its_own_tool_writes(digits_pack: Pack, tmp_path: Path) -> None:
    if importlib.util.find_spec("wds2idx") is None:
        pytest.skip("DALI's wds2idx is not installed")
    from wds2idx import IndexCreator

    path = digits_pack.shard_path(0)
    with IndexCreator(str(path), str(tmp_path / "x.idx"), verbose=False) as creator:
        creator.create_index()
    assert (tmp_path / "x.idx").read_text() == path.with_suffix(".idx").read_text()


def test_beton_reader_agrees_with_the_index(digits_beton_pack: Pack) -> None:
    pack = digits_beton_pack
    labels = pack.labels.dense(len(pack))
    for shard in range(pack.num_shards):
        rows = shard_rows(pack, shard)
        content = read_beton(pack.shard_path(shard))
        np.testing.assert_array_equal(content.samples["image"]["data_ptr"], pack.columns.offset[rows])
        np.testing.assert_array_equal(content.sizes, pack.columns.size[rows])
        np.testing.assert_array_equal(content.samples["label"], labels[rows])


def test_tar_and_beton_hold_the_same_bytes(digits_pack: Pack, digits_beton_pack: Pack) -> None:
    assert len(digits_pack) == len(digits_beton_pack)
    for row in range(0, len(digits_pack), 97):
        assert digits_pack.key(row) == digits_beton_pack.key(row)
        assert digits_pack.read(row) == digits_beton_pack.read(row)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcv_loader_reads_betons(digits_beton_pack: Pack, os_cache: bool) -> None:
    try:
        ffcv = import_ffcv()
    except MissingBackendError as missing:
        pytest.skip(str(missing))
    fields = ffcv.fields
    pack, shard = digits_beton_pack, digits_beton_pack.num_shards - 1
    loader = ffcv.loader.Loader(
        str(pack.shard_path(shard)),
        batch_size=64,
        num_workers=1,
        order=ffcv.loader.OrderOption.SEQUENTIAL,
        drop_last=False,
        os_cache=os_cache,
        pipelines={
            "image": [fields.rgb_image.SimpleRGBImageDecoder()],
            "label": [fields.basics.IntDecoder()],
        },
    )
    batches = [(images.copy(), labels.copy()) for images, labels in loader]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    rows = shard_rows(pack, shard)
    np.testing.assert_array_equal(labels[:, 0], pack.labels.dense(len(pack))[rows])
    for place in range(0, len(rows), 50):
        # FFCV uses libjpeg-turbo's fast inverse DCT.
        ours = simplejpeg.decode_jpeg(pack.read(rows[place]), fastdct=True)
        np.testing.assert_array_equal(images[place], ours)
