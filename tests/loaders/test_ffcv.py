"""FFCV: our views inside FFCV's Loader on any .beton, and FFCV's Loader as one of our backends."""

import importlib.util
import sys
import threading

import numpy as np
import pytest
import torch
from numba import types

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.common.errors import LoaderError, MissingBackendError, UserError
from loaders.ffcv import EpochOrder, fused_views, import_ffcv, iterate
from loaders.packs import open_pack
from loaders.views import presets
from tests.loaders.conftest import write_pack
from tests.loaders.settings import gathered

VIEWS = (presets.barlow_a(24), presets.barlow_b(32))
needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed: make ffcv"
)


@pytest.fixture(scope="module")
def beton_pack(tmp_path_factory, photos):
    return write_pack(tmp_path_factory.mktemp("beton"), photos, num_classes=1, shard_format="ffcv")


def build(pack, **options):
    settings = {"views": VIEWS, "batch_size": 8, "seed": 3, "num_threads": 2, "backend": "ffcv"} | options
    return build_loader(pack.split("train"), **gathered(**settings))


def take(pack, epoch=0, start_step=0, **options):
    with build(pack, **options) as loader:
        return list(loader.epoch(epoch, start_step))


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(
            (*a.views, a.index, a.valid, a.labels), (*b.views, b.index, b.valid, b.labels), strict=True
        )
    )


@needs_ffcv
def test_every_byte_is_the_cpu_backends(beton_pack):
    with build(beton_pack) as loader, build(beton_pack, backend="cpu") as cpu:
        for epoch, start_step in ((0, 0), (1, 0), (1, 2), (0, 1), (2, 3)):
            found, expected = list(loader.epoch(epoch, start_step)), list(cpu.epoch(epoch, start_step))
            assert len(found) == len(expected) == 3 - start_step
            assert all(map(same, found, expected))


@needs_ffcv
def test_ranks_and_evaluation_are_the_cpu_backends(beton_pack):
    part = {"rank": 1, "num_ranks": 2}
    assert all(map(same, take(beton_pack, **part), take(beton_pack, backend="cpu", **part)))
    evaluation = {"mode": "eval", "batch_size": 10, "views": (presets.evaluation(16),)}
    found, expected = take(beton_pack, **evaluation), take(beton_pack, backend="cpu", **evaluation)
    assert all(map(same, found, expected))
    assert found[-1].valid.sum() == 4


@needs_ffcv
def test_an_epoch_left_early_disturbs_no_later_one(beton_pack):
    expected = take(beton_pack, 1, backend="cpu")
    with build(beton_pack) as loader:
        left = loader.epoch(0)
        kept = next(left).views[0]
        before = kept.clone()
        assert all(map(same, loader.epoch(1), expected))
        left.close()
        assert torch.equal(kept, before)


def damaged(folder, photos, row):
    pack = write_pack(folder, photos, num_classes=1, shard_format="ffcv")
    path = pack.shard_path(0)
    content = bytearray(path.read_bytes())
    offset, size = int(pack.columns.offset[row]), int(pack.columns.size[row])
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(content)
    return open_pack(pack.path)


@needs_ffcv
def test_a_bad_image_is_replaced_or_raises_in_the_consumer(tmp_path, photos):
    pack = damaged(tmp_path, photos, 7)
    with build(pack) as loader:
        found = list(loader.epoch(0))
        assert list(loader.bad_rows) == [7]
    assert all(map(same, found, take(pack, backend="cpu")))
    with build(pack, bad_images="raise") as loader, pytest.raises(LoaderError, match="row 7 "):
        list(loader.epoch(0))


@needs_ffcv
def test_a_hung_worker_is_an_error_after_the_time_limit(beton_pack, monkeypatch):
    release = threading.Event()
    with build(beton_pack, timeout_s=0.3) as loader:
        monkeypatch.setattr("loaders.backends.cpu.render_chunk", lambda *args: release.wait(30))
        try:
            with pytest.raises(LoaderError, match=r"longer than 0\.3 s"):
                list(loader.epoch(0))
        finally:
            release.set()


@needs_ffcv
def test_what_the_backend_cannot_read_is_refused(photo_pack, beton_pack):
    with pytest.raises(UserError, match="format ffcv, found webdataset"):
        build(photo_pack)
    split = beton_pack.split("train")
    with pytest.raises(UserError, match="one stream"):
        build_paired_loader(split, split, VIEWS, VIEWS, 2, 3, options=LoaderOptions(backend="ffcv"))


def test_a_missing_ffcv_names_the_command_that_installs_it(beton_pack, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(MissingBackendError, match="make ffcv"):
        build(beton_pack)
    with pytest.raises(MissingBackendError, match="make ffcv"):
        EpochOrder()


# ---------------------------------------------------------------- any .beton, no pack


def stock_loader(path, pipeline, **options):
    settings = {"batch_size": 8, "num_workers": 1, "os_cache": True, "seed": 0, "drop_last": True} | options
    return import_ffcv().loader.Loader(str(path), pipelines={"image": pipeline}, **settings)


@needs_ffcv
@pytest.mark.parametrize("os_cache", [True, False])
def test_views_in_ffcvs_own_loader_are_ours(beton_pack, os_cache):
    loader = stock_loader(beton_pack.shard_path(0), fused_views(VIEWS, seed=3), order=EpochOrder(seed=3),
                          os_cache=os_cache)  # fmt: skip
    for epoch in range(2):
        expected = take(beton_pack, epoch, backend="cpu")
        for (views, labels), batch in zip(iterate(loader), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(views, batch.views, strict=True))
            assert torch.equal(labels[:, 0], batch.labels)


@needs_ffcv
@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcv_leaves_the_types_alone_that_other_kernels_are_compiled_for(beton_pack, os_cache):
    shared = (types.uint8[::1], types.uint8[:, ::1], types.uint32[::1], types.uint64[::1])
    next(iter(stock_loader(beton_pack.shard_path(0), fused_views(VIEWS), os_cache=os_cache)))
    assert all(kind.mutable for kind in shared)


@needs_ffcv
def test_our_order_skips_to_a_step_of_an_epoch(beton_pack):
    order = EpochOrder(seed=3)
    loader = stock_loader(beton_pack.shard_path(0), fused_views(VIEWS, seed=3), order=order)
    order.skip, loader.next_epoch = (2, 1), 2
    expected = take(beton_pack, 2, 1, backend="cpu")
    for (views, _), batch in zip(iterate(loader), expected, strict=True):
        assert torch.equal(views[1], batch.views[1])


@needs_ffcv
def test_raw_pixels_are_read_too(tmp_path):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Squares:
        def __len__(self):
            return 16

        def __getitem__(self, i):
            return np.full((20, 30, 3), 10 * i, np.uint8), i

    path = tmp_path / "raw.beton"
    writer = DatasetWriter(
        str(path), {"image": RGBImageField(write_mode="raw"), "label": IntField()}, num_workers=1
    )
    writer.from_indexed_dataset(Squares())
    loader = stock_loader(path, fused_views((presets.reconstruction(8),), dtype="uint8"))
    for views, labels in iterate(loader):
        assert torch.equal(views[0], (10 * labels).to(torch.uint8)[:, :, None, None].expand(8, 3, 8, 8))


@needs_ffcv
def test_bad_images_of_a_beton_are_replaced_within_the_batch_or_raise(tmp_path, photos):
    path = damaged(tmp_path, photos, 5).shard_path(0)
    pipeline = fused_views((presets.evaluation(16),))
    (views,), _ = next(iterate(stock_loader(path, pipeline)))
    assert list(pipeline[-1].bad_rows) == [5]
    assert torch.equal(views[5], views[6])
    loader = stock_loader(path, fused_views((presets.evaluation(16),), bad_images="raise"))
    views, _ = next(iter(loader))
    with pytest.raises(LoaderError, match="sample 5"):
        tuple(views)
    with pytest.raises(LoaderError, match="sample 5"):
        list(iterate(loader))


@needs_ffcv
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_or_hanging_thread_of_ffcv_is_an_error(beton_pack, monkeypatch):
    path = beton_pack.shard_path(0)
    loader = stock_loader(path, fused_views(VIEWS))
    epoch_iterator = type(iter(loader))

    def die(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(epoch_iterator, "run_pipeline", die)
    with pytest.raises(LoaderError, match="died"):
        list(iterate(loader))
    release = threading.Event()
    monkeypatch.setattr(epoch_iterator, "run_pipeline", lambda *args: release.wait(20))
    try:
        with pytest.raises(LoaderError, match=r"longer than 0\.3 s"):
            list(iterate(loader, 0.3))
    finally:
        release.set()
