"""The resident backend beyond the contract tests of all backends."""

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.backends import resident, spread
from loaders.backends.decoding import Decoder
from loaders.backends.device import DeviceRenderer
from loaders.backends.resident import ResidentRenderer
from loaders.backends.work import Crew, Request, Work
from loaders.common.errors import LoaderError, UserError
from loaders.views import presets
from tests.loaders.conftest import write_pack
from tests.loaders.fake_streams import FakeStreams

VIEWS = (presets.barlow_a(24), presets.fixmatch_strong(32), *presets.tiles(8, 10)[:2])


def build(pack, backend="resident", views=VIEWS, **options):
    given = LoaderOptions(seed=3, num_threads=2, backend=backend, **options)
    return build_loader(pack.split("train"), views, 8, options=given)


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(
            (*a.views, a.index, a.valid, a.labels), (*b.views, b.index, b.valid, b.labels), strict=True
        )
    )


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_batches_are_the_cpu_backends_and_nothing_is_decoded_again(tmp_path, photos, monkeypatch, encoding):
    pack = write_pack(tmp_path, photos, encoding=encoding)
    with build(pack, "cpu") as cpu:
        expected = [batch for epoch in range(2) for batch in cpu.epoch(epoch)]
        fingerprint = cpu.fingerprint
    with build(pack) as loader:
        monkeypatch.setattr(Decoder, "decode", None)
        found = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
        assert loader.fingerprint == fingerprint
    assert all(map(same, found, expected))


def test_rows_that_come_twice_are_decoded_once(photo_pack):
    split, options = photo_pack.split("train").repeat(2), LoaderOptions(seed=3, num_threads=2)
    batches = []
    for backend in ("cpu", "resident"):
        with build_loader(split, VIEWS, 8, options=replace(options, backend=backend)) as loader:
            batches.append(list(loader.epoch(0)))
    assert all(map(same, *batches))


@pytest.mark.filterwarnings("ignore:.*left behind:RuntimeWarning")
def test_decoding_that_hangs_is_one_line(photo_pack, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(resident.ResidentPixels, "_load", lambda *_: release.wait(30))
    try:
        with pytest.raises(LoaderError, match=r"^backend resident: .* took longer than 0\.2 s: the storage"):
            build(photo_pack, timeout_s=0.2)
    finally:
        release.set()


def test_loaders_share_the_pixels_and_free_them_with_the_last(photo_pack):
    one, other = build(photo_pack), build(photo_pack, views=(presets.evaluation(16),))
    held = weakref.ref(one.renderer.pixels)
    assert other.renderer.pixels is held()
    one.close()
    del one
    gc.collect()
    assert held() is not None
    next(other.epoch(0))
    other.close()
    del other
    gc.collect()
    assert held() is None


def test_a_labelled_stream_lies_in_the_pixels_of_its_split(photo_pack):
    split = photo_pack.split("train")
    options = LoaderOptions(seed=1, num_threads=1, backend="resident")
    with (
        build(photo_pack) as whole,
        build_paired_loader(split, split, VIEWS[:1], VIEWS[:1], 2, 3, options=options) as pairs,
    ):
        assert pairs.labeled.pixels is pairs.unlabeled.pixels is whole.renderer.pixels


def test_what_does_not_fit_is_one_line_with_the_sizes(photo_pack, monkeypatch):
    monkeypatch.setattr(spread, "MEMORY_FRACTION", 1e-7)
    line = (
        r"at most 0\.\d+ GB, 80% of the memory of cpu on all ranks of this host, found 0\.00\d GB in the 24 "
    )
    with pytest.raises(UserError, match=line):
        build(photo_pack)


def test_a_device_that_has_no_kernels_is_refused(photo_pack):
    with pytest.raises(UserError, match="expected device 'cpu' or 'cuda', found 'meta'"):
        build(photo_pack, device="meta")


@pytest.mark.parametrize("shape", [(1, 1), pytest.param((2, 3), marks=pytest.mark.slow)])
def test_views_on_a_device_of_damaged_rows_keep_the_rule(shape, tmp_path, photos):
    """The device's code path, in the interpreter: addresses, replacement, labels, order of the streams."""
    pytest.importorskip("triton")
    pack = write_pack(tmp_path, photos[:6], num_classes=1)
    bad = 2
    content = bytearray(pack.shard_path(0).read_bytes())
    offset, size = int(pack.columns.offset[bad]), int(pack.columns.size[bad])
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    pack.shard_path(0).write_bytes(content)
    views = (presets.weak(16, normalize=None), presets.crop_flip(12, normalize=None))
    options = LoaderOptions(seed=shape[0], num_threads=1)
    split = pack.split("train")
    work = Work(split, views, options, 6, Crew(options), split.labels())
    rows, streams = ResidentRenderer(work), FakeStreams(eager=True)
    device = DeviceRenderer(rows, streams)
    request = Request(np.array([5, 2, 0, 1]), np.zeros(4, np.int64), np.ones(4, np.bool_))
    found = device.submit(request).result(60.0)
    expected = rows.submit(request).result(60.0)
    assert found.index.tolist() == expected.index.tolist() == [5, 3, 0, 1]
    assert list(device.bad_rows) == [bad]
    assert torch.equal(found.labels, expected.labels)
    for a, b in zip(found.views, expected.views, strict=True):
        assert (a - b).abs().max() < 0.01 / 255
    assert [kind for kind, _ in streams.consumer.queue] == ["wait"]  # for the views
    assert {view.data_ptr() for view in found.views} <= {place for place, _ in streams.recorded}
    assert len(device._lent) == 1  # kept for the kernels until their event has passed
    assert streams.log.count("copy on stream 0") == 1  # one copy for the parameters of all views
    assert device.num_launches == 4
    device.close(1.0)
    work.crew.close()


@pytest.mark.gpu
@pytest.mark.parametrize("view", VIEWS[:3], ids=lambda view: view.name)
def test_views_of_the_gpu_are_the_cpu_backends(photo_pack, view):
    with build(photo_pack, views=(view,), device="cuda") as loader, build(photo_pack, "cpu", (view,)) as cpu:
        for found, expected in zip(loader.epoch(0), cpu.epoch(0), strict=True):
            assert found.views[0].is_cuda
            assert torch.equal(found.index.cpu(), expected.index)
            apart = (found.views[0].cpu() - expected.views[0]).abs().amax(1) > 0.05
            assert apart.float().mean() < 0.001
