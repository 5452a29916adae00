"""Every unusual file keeps its pixels in both pack formats, in both encodings and in every reader."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import simplejpeg
from rich.console import Console

from loaders import LoaderOptions, build_loader
from loaders.packs import Pack
from loaders.packs.audit import compare_with_source, decode_all
from loaders.packs.image import Action
from loaders.packs.quarantine import quarantined, warned
from loaders.packs.reasons import Reason
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from loaders.views.geometry import CenterCrop
from loaders.views.policy import ViewPolicy
from tests.corpus.damage import DAMAGED
from tests.corpus.odd import RIGHT, Odd, corpus
from tests.loaders.packs.inputs import pack, write_tree
from tools.packing.inspect import inspect_pack

FORMS = [(form, encoding) for form in ("webdataset", "ffcv") for encoding in ("jpeg", "raw")]
SIDE = RIGHT.shape[0]  # side length of the centred square that readers return
BESIDE = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "c0/Thumbs.db": b"\xd0\xcf",
    "c1/list.csv": b"a,b\n",
    "c1/._1.jpg": b"\0\5",
}


class Packed(NamedTuple):
    """A pack of the corpus."""

    pack: Pack
    source: str
    files: dict[str, Odd]

    def row_pixels(self, row: int, **options: bool) -> np.ndarray:
        """Decode the stored image of a row: uint8 [H, W, 3]."""
        columns, data = self.pack.columns, self.pack.read(row)
        if columns.action[row] & Action.DECODED:
            return np.frombuffer(data, np.uint8).reshape(columns.height[row], columns.width[row], 3)
        return simplejpeg.decode_jpeg(data, **options)

    def squares(self) -> dict[int, np.ndarray]:
        """Return the centred square of every row whose image has the usual size."""
        columns = self.pack.columns
        usual = (columns.height == RIGHT.shape[0]) & (columns.width == RIGHT.shape[1])
        left = (RIGHT.shape[1] - SIDE) // 2
        return {row: self.row_pixels(row)[:, left : left + SIDE] for row in np.flatnonzero(usual).tolist()}


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    form, encoding = request.param
    folder = tmp_path_factory.mktemp("odd")
    files = {f"c{number % 3}/{number:03d}.jpg": odd for number, odd in enumerate(corpus().values())}
    write_tree(folder / "in", {name: odd.data for name, odd in files.items()} | BESIDE)
    made = pack(folder / "p", f"train={folder / 'in'}", shard_format=form, encoding=encoding)
    keys = {f"train/{name.removesuffix('.jpg')}": odd for name, odd in files.items()}
    return Packed(made, f"train={folder / 'in'}", keys)


def test_the_corpus_is_large_and_packs_are_mixed(packed: Packed) -> None:
    assert len(packed.files) > 250
    assert packed.pack.manifest.splits[0].num_skipped == len(BESIDE)
    assert len(packed.pack) + packed.pack.manifest.num_quarantined == len(packed.files)
    assert packed.pack.classes == ("c0", "c1", "c2")


def test_each_file_has_its_pixels_or_its_reason(packed: Packed) -> None:
    wrong = []
    names = dict(zip(packed.files, corpus(), strict=True))
    codes = {entry["key"]: Reason(entry["code"]) for entry in quarantined(packed.pack.path)}
    rows = {packed.pack.key(row): row for row in range(len(packed.pack))}
    assert rows.keys() | codes.keys() == packed.files.keys()
    for key, odd in packed.files.items():
        if key in codes:
            if codes[key] not in odd.reasons:
                wrong.append(f"{names[key]}: refused as {codes[key].value}")
        elif odd.right is None:
            wrong.append(f"{names[key]}: packed")
        else:
            wrong += [f"{names[key]}: {text}" for text in differences(packed, rows[key], odd)]
    assert not wrong


def differences(packed: Packed, row: int, odd: Odd) -> Iterator[str]:
    """Describe how a row differs from the correct pixels, beyond the loss of its format and encoding."""
    assert odd.right is not None
    right = np.broadcast_to(odd.right.reshape(*odd.right.shape[:2], -1), (*odd.right.shape[:2], 3))
    action, got = packed.pack.columns.action[row], packed.row_pixels(row)
    if action & Action.REENCODED and odd.mean == 0:
        # Compare with the same encoding of the correct pixels.
        right = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(right.astype(np.uint8), 95, "rgb", "444"))
        most, mean = (0, 0.0) if odd.most == 0 else (255, 1.0)
    else:
        most, mean = (255, odd.mean + 0.5) if odd.mean else (odd.most, 255.0)
    if got.shape != right.shape:
        yield f"{got.shape} for {right.shape}"
        return
    error = np.abs(got.astype(np.int64) - right)
    if error.max() > most or error.mean() > mean:
        yield f"differs by {error.max()}, {error.mean():.2f} on average"


def test_checks_and_page_read_what_is_packed(packed: Packed) -> None:
    folder = packed.pack.path
    assert verify_pack(folder) == []
    assert decode_all(packed.pack, 1) == []
    assert compare_with_source(packed.pack, parse_splits([packed.source])[0]) == []
    inspect_pack(packed.pack, True, 1, Console(file=io.StringIO()))
    assert "Repairs and warnings" in (folder / "report.html").read_text()
    complained = {entry["key"] for entry in warned(folder)}
    repaired = {packed.pack.key(row) for row in np.flatnonzero(packed.pack.columns.action & Action.REPAIRED)}
    assert len(repaired) >= len(DAMAGED) - 1
    assert repaired <= complained


def views_of(packed: Packed, backend: str) -> dict[int, np.ndarray]:
    """Return a loader's view of every row: uint8 [SIDE, SIDE, 3]."""
    square, found = ViewPolicy("square", SIDE, CenterCrop(1.0)), {}
    options = LoaderOptions(num_threads=1, backend=backend)
    with build_loader(packed.pack.split("train"), (square,), 16, options=options, mode="eval") as loader:
        for batch in loader.epoch(0):
            images = np.rint(255 * batch.views[0].numpy().transpose(0, 2, 3, 1)).astype(np.uint8)
            kept = batch.valid.numpy()
            found |= dict(zip(batch.index.numpy()[kept].tolist(), images[kept], strict=True))
        assert loader.bad_rows == {}
    return found


def agree(packed: Packed, found: dict[int, np.ndarray], most: int, mean: float) -> None:
    squares = packed.squares()
    assert len(squares) > 150
    for row, square in squares.items():
        error = np.abs(found[row].astype(np.int64) - square)
        assert error.max() <= most, packed.pack.key(row)
        assert error.mean() <= mean, packed.pack.key(row)


def test_the_loader_gives_these_pixels(packed: Packed) -> None:
    found = views_of(packed, "cpu")
    assert sorted(found) == list(range(len(packed.pack)))
    agree(packed, found, 1, 1.0)


@pytest.mark.slow
def test_ffcv_behind_the_contract_gives_these_pixels(packed: Packed) -> None:
    if packed.pack.manifest.shard_format != "ffcv":
        pytest.skip("reads betons")
    pytest.importorskip("ffcv")
    agree(packed, views_of(packed, "ffcv"), 1, 1.0)


STOCK = {
    "webdataset": """
import sys, numpy as np, webdataset
found = {s["__key__"]: s["jpg" if "jpg" in s else "ppm"]
         for s in webdataset.WebDataset(sys.argv[2:], shardshuffle=False, empty_check=False).decode("rgb8")}
np.savez(sys.argv[1], *found.values(), keys=np.array(list(found)))
""",
    "ffcv": """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
images = []
for path in sys.argv[2:]:
    loader = Loader(path, batch_size=16, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
                    pipelines={"image": [CenterCropRGBImageDecoder((48, 48), ratio=1)], "label": None})
    images += [image.copy() for batch in loader for image in batch[0]]
np.savez(sys.argv[1], *images)
""",
    "dali": """
import sys, numpy as np
from nvidia.dali import fn, pipeline_def
@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def reader():
    files = [path for path in sys.argv[2:]]
    data = fn.readers.webdataset(paths=files, index_paths=[path[:-3] + "idx" for path in files],
                                 ext=["jpg;ppm"], name="reader")
    return fn.decoders.image(data, device="cpu")
pipe = reader()
images = [np.asarray(pipe.run()[0].at(0)) for _ in range(pipe.reader_meta("reader")["epoch_size"])]
np.savez(sys.argv[1], *images)
""",
}


# Readers other than DALI take many seconds to compile or to start.
@pytest.mark.parametrize(
    "reader", [pytest.param(name, marks=[] if name == "dali" else pytest.mark.slow) for name in STOCK]
)
def test_stock_readers_give_these_pixels(packed: Packed, reader: str, tmp_path: Path) -> None:
    form = "ffcv" if reader == "ffcv" else "webdataset"
    if packed.pack.manifest.shard_format != form:
        pytest.skip(f"reads {form} shards")
    if importlib.util.find_spec("nvidia.dali" if reader == "dali" else reader) is None:
        pytest.skip(f"{reader} is not installed")
    shards = [str(packed.pack.shard_path(shard)) for shard in range(packed.pack.num_shards)]
    out = tmp_path / "found.npz"
    run = subprocess.run([sys.executable, "-c", STOCK[reader], out, *shards], capture_output=True, text=True)
    if "ImportError" in run.stderr:
        pytest.skip(f"{reader} cannot be imported: {run.stderr.splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    with np.load(out) as read:
        images = [read[f"arr_{number}"] for number in range(len(read.files) - ("keys" in read.files))]
        if "keys" in read.files:
            assert read["keys"].tolist() == [packed.pack.key(row) for row in range(len(packed.pack))]
    assert len(images) == len(packed.pack)
    found = {}
    for row in packed.squares():
        left = (images[row].shape[1] - SIDE) // 2
        found[row] = images[row][:, left : left + SIDE]
    # FFCV uses libjpeg-turbo's fast inverse DCT, and DALI upsamples the chroma in its own way.
    agree(packed, found, 255, 2.0)
