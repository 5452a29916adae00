"""The hybrid backend beyond the contract tests, which the cpu backend passes in its place on a processor."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from loaders import LoaderOptions, build_loader
from loaders.backends import cpu, device
from loaders.backends.cpu import CpuRenderer
from loaders.backends.device import DeviceRenderer
from loaders.backends.hybrid import HybridBackend, HybridRows
from loaders.backends.work import Crew, Request, Work
from loaders.common.errors import BadImageError, LoaderError, UserError
from loaders.views import presets
from loaders.views.geometry import RandomResizedCrop
from loaders.views.policy import Augment, Cutout, RandAugment, RandomErasing, ViewPolicy
from tests.loaders.conftest import write_pack
from tests.loaders.fake_streams import FakeStreams

# Both views show the same small part of an image; only that part is decoded and copied.
CROP = ViewPolicy("small part", 16, RandomResizedCrop((0.03, 0.08)))
VIEWS = (CROP, replace(CROP, resolution=12, shares_draws_of=1))


@pytest.fixture
def large(photos):
    """Six photographs large enough for decoding only a region, in order of size."""
    found = sorted((one for one in photos if one.shape[0] * one.shape[1] >= 17_000), key=lambda one: one.size)
    assert len(found) >= 6
    return found[:6]


def work_of(pack, views=VIEWS, batch_size=4, num_threads=2, **options):
    given = LoaderOptions(seed=2, num_threads=num_threads, **options)
    split = pack.split("train")
    return Work(split, views, given, batch_size, Crew(given), split.labels())


def request(*positions):
    return Request(np.array(positions), np.zeros(len(positions), np.int64), np.ones(len(positions), np.bool_))


def damage(pack, row):
    content = bytearray(pack.shard_path(0).read_bytes())
    offset, size = int(pack.columns.offset[row]), int(pack.columns.size[row])
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    pack.shard_path(0).write_bytes(content)


def test_on_a_processor_it_is_the_cpu_backend(photo_pack):
    work = work_of(photo_pack)
    assert HybridBackend().refusal(work) is None
    assert type(HybridBackend().renderer(work)) is CpuRenderer
    with (
        build_loader(photo_pack.split("train"), VIEWS, 8, options=LoaderOptions(backend="hybrid")) as hybrid,
        build_loader(photo_pack.split("train"), VIEWS, 8, options=LoaderOptions(backend="cpu")) as cpu,
    ):
        assert hybrid.fingerprint == cpu.fingerprint
        for found, expected in zip(hybrid.epoch(0), cpu.epoch(0), strict=True):
            assert all(map(torch.equal, found.views, expected.views))


def test_a_device_that_has_no_kernels_is_refused(photo_pack):
    with pytest.raises(UserError, match="backend hybrid: expected device 'cpu' or 'cuda', found 'meta'"):
        build_loader(
            photo_pack.split("train"), VIEWS, 8, options=LoaderOptions(backend="hybrid", device="meta")
        )


@pytest.mark.parametrize(
    ("operation", "found"),
    [
        (RandomErasing(), "RandomErasing with noise"),
        (Cutout((0.2, 0.5)), "Cutout"),
        (RandAugment((Augment("rotate", 0, 30), Augment("invert"))), "invert of RandAugment"),
    ],
)
def test_an_operation_that_the_device_kernels_were_not_taught_is_refused(operation, found, monkeypatch):
    monkeypatch.setattr(device, "_OPERATIONS", tuple(set(device._OPERATIONS) - {Cutout}))
    monkeypatch.setattr(device, "_AUGMENTS", tuple(set(device._AUGMENTS) - {"invert"}))
    view = replace(presets.weak(16), operations=(operation,))
    work = SimpleNamespace(options=LoaderOptions(device="cuda"), views=(presets.weak(16), view))
    error = device.refuse_device("hybrid", work)
    assert isinstance(error, UserError)
    assert f"backend hybrid: expected operations that the device has, found {found}" in str(error)


@pytest.mark.parametrize("chunk_bytes", [1, pytest.param(cpu.CHUNK_BYTES, marks=pytest.mark.slow)])
def test_views_drawn_on_a_device_are_the_cpu_backends(chunk_bytes, tmp_path, large, monkeypatch):
    """The device's code path, in the interpreter: regions, addresses, a damaged row, pinned memory."""
    pytest.importorskip("triton")
    monkeypatch.setattr(cpu, "CHUNK_BYTES", chunk_bytes)
    pack = write_pack(tmp_path, large, num_classes=1)
    damage(pack, 2)  # row 3, which replaces it, is larger
    work = work_of(pack)
    streams = FakeStreams(eager=True)
    rows = HybridRows(work, streams)
    placed, place = [], rows.place
    monkeypatch.setattr(rows, "place", lambda job: placed.append(job) or place(job))
    device, plain = DeviceRenderer(rows, streams), CpuRenderer(work)
    for positions in ((5, 2, 0, 1), (3, 4, 5, 0)):
        found = device.submit(request(*positions)).result(60.0)
        expected = plain.submit(request(*positions)).result(60.0)
        assert found.index.tolist() == expected.index.tolist()
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.valid, expected.valid)
        for a, b in zip(found.views, expected.views, strict=True):
            assert (a - b).abs().max() < 0.01 / 255
    assert list(device.bad_rows) == [2]
    regions = np.concatenate([part.regions for job in placed for part in job.parts])
    assert (regions[:, :2] > 0).any(0).all()
    # One copy per chunk and one for the parameters; no memory is reused while a copy may still read it.
    parts = 4 if chunk_bytes == 1 else 2
    assert [len(job.parts) for job in placed] == [parts, parts]
    assert streams.log.count("copy on stream 0") == streams.log.count("pin") == 2 * (parts + 1)
    streams.streams[0].run()
    device.submit(request(0, 1, 3, 5)).result(60.0)
    assert streams.log.count("pin") <= 2 * (parts + 1) + parts  # at most once more, for other sizes
    device.close(1.0)
    work.crew.close()


def test_a_batch_that_is_given_up_is_not_decoded(tmp_path, photos, monkeypatch):
    pytest.importorskip("triton")
    work = work_of(write_pack(tmp_path, photos[:6], num_classes=1), num_threads=1)
    streams, begun, go_on = FakeStreams(eager=True), [], threading.Event()
    rows = HybridRows(work, streams)
    decode = rows.decode

    def decode_later(job, *rest):
        begun.append(job.rows.tolist())
        assert go_on.wait(30)
        return decode(job, *rest)

    monkeypatch.setattr(rows, "decode", decode_later)
    device = DeviceRenderer(rows, streams)
    first, second = device.submit(request(0, 1)), device.submit(request(2, 3))
    while not begun:
        time.sleep(0.001)
    second.cancel()
    go_on.set()
    assert first.result(60.0).index.tolist() == [0, 1]
    assert device.submit(request(4, 5)).result(60.0).index.tolist() == [4, 5]
    assert begun == [[0, 1], [4, 5]]
    device.close(1.0)
    work.crew.close()


@pytest.mark.filterwarnings("ignore:.*left behind:RuntimeWarning")
def test_errors_of_decoding_reach_the_consumer(tmp_path, photos, monkeypatch):
    pytest.importorskip("triton")
    pack = write_pack(tmp_path, photos[:6], num_classes=1)
    damage(pack, 2)
    work, release = work_of(pack, bad_images="raise", timeout_s=0.5), threading.Event()
    streams = FakeStreams(eager=True)
    rows = HybridRows(work, streams)
    device = DeviceRenderer(rows, streams)
    with pytest.raises(BadImageError, match="row 2"):
        device.submit(request(5, 2, 0, 1)).result(60.0)
    monkeypatch.setattr(rows, "decode", lambda *_: release.wait(30))
    try:
        with pytest.raises(LoaderError, match=r"took longer than 0\.5 s"):
            device.submit(request(0, 1)).result(60.0)
    finally:
        release.set()
    device.close(1.0)
    work.crew.close()


@pytest.mark.gpu
def test_views_of_the_gpu_are_the_cpu_backends(photo_pack):
    options = {"seed": 3, "num_threads": 2}
    with (
        build_loader(
            photo_pack.split("train"), VIEWS, 8,
            options=LoaderOptions(**options, backend="hybrid", device="cuda"),
        ) as loader,
        build_loader(photo_pack.split("train"), VIEWS, 8, options=LoaderOptions(**options)) as cpu,
    ):  # fmt: skip
        for found, expected in zip(loader.epoch(0), cpu.epoch(0), strict=True):
            assert found.views[0].is_cuda
            assert torch.equal(found.index.cpu(), expected.index)
            for a, b in zip(found.views, expected.views, strict=True):
                assert ((a.cpu() - b).abs().amax(1) > 0.05).float().mean() <= 0.001
