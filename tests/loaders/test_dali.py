"""The DALI backend beyond the contract of all backends, and its views compared with the cpu backend's."""

import dataclasses
import sys
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.backends.cpu import CpuRenderer
from loaders.backends.dali import DaliDecoder, DaliRenderer
from loaders.backends.device import DeviceRenderer
from loaders.backends.work import MAX_VIEWS, Crew, Request, Work
from loaders.common.errors import LoaderError, MissingBackendError, UserError
from loaders.packs import open_pack
from loaders.views import presets
from loaders.views.dali import build_decoder, build_pipeline, feed_batch, refusal
from loaders.views.draw import AUGMENT_CODES, draw
from loaders.views.policy import (
    Augment,
    ColorJitter,
    Cutout,
    GaussianBlur,
    Grayscale,
    RandAugment,
    RandomAffine,
    RandomErasing,
    Solarize,
)
from tests.loaders.conftest import write_pack
from tests.loaders.fake_streams import FakeStreams
from tests.loaders.settings import gathered

VIEWS = (presets.barlow_a(24), presets.barlow_b(32))


def build(pack, **options):
    settings = {"views": VIEWS, "batch_size": 8, "seed": 3, "num_threads": 2, "backend": "dali"} | options
    return build_loader(pack.split("train"), **gathered(**settings))


def take(pack, epoch=0, start_step=0, **options):
    with build(pack, **options) as loader:
        return list(loader.epoch(epoch, start_step))


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip((*a.views, a.index, a.valid), (*b.views, b.index, b.valid), strict=True)
    )


def without_equalize(view):
    flip, augment, cutout = view.operations
    kept = tuple(a for a in augment.augments if a.name != "equalize")
    return dataclasses.replace(view, operations=(flip, dataclasses.replace(augment, augments=kept), cutout))


CROP = presets.crop_flip(40)


def only(*operations):
    return dataclasses.replace(CROP, operations=operations)


def augment(name, low=0.0, high=0.0, signed=False):
    operation = RandAugment((Augment(name, low, high, signed),), num_ops=1, p=1.0)
    return dataclasses.replace(presets.weak(40), operations=(operation,))


# View, largest mean difference in units of 1/255, and share of values that may differ by more than 8/255.
PARITY = {
    "crop and flip": (CROP, 0.6, 0.01),
    "weak": (presets.weak(40), 0.6, 0.01),
    "evaluation": (presets.evaluation(40), 0.6, 0.01),
    "barlow a": (presets.barlow_a(40), 0.8, 0.01),
    "barlow b": (presets.barlow_b(40), 0.9, 0.02),
    "simclr": (presets.simclr(40), 0.9, 0.02),
    "brightness": (only(ColorJitter(brightness=0.8)), 0.7, 0.01),
    "contrast": (only(ColorJitter(contrast=0.8)), 0.7, 0.01),
    "saturation": (only(ColorJitter(saturation=0.8)), 0.7, 0.01),
    "hue": (only(ColorJitter(hue=0.5)), 0.7, 0.01),
    "grayscale": (only(Grayscale(1.0)), 0.7, 0.01),
    "blur": (only(GaussianBlur(1.0)), 0.6, 0.01),
    "solarize": (only(Solarize(1.0)), 0.8, 0.02),
    "affine": (only(RandomAffine(20.0, 0.1)), 0.8, 0.02),
    "cutout": (only(Cutout((0.2, 0.5))), 0.6, 0.01),
    "fixmatch without equalize": (without_equalize(presets.fixmatch_strong(40)), 1.5, 0.04),
    "autocontrast": (augment("autocontrast"), 3.0, 0.1),
    "sharpness": (augment("sharpness", 0.05, 0.95), 0.8, 0.01),
    "posterize": (augment("posterize", 4, 8), 0.6, 0.02),
    "invert": (augment("invert"), 0.6, 0.01),
    "rotate": (augment("rotate", 0, 30, True), 0.8, 0.02),
    "shear": (augment("shear_x", 0, 0.3, True), 0.8, 0.02),
    "translate": (augment("translate_y", 0, 0.3, True), 0.6, 0.02),
}


def by_operators(view, pack, rows):
    """Render a view of some rows of a pack by DALI's own operators."""
    columns = pack.columns
    sides = columns.height[rows].astype(np.int64), columns.width[rows].astype(np.int64)
    drawn = draw(view, 3, np.zeros(len(rows), np.int64), rows, MAX_VIEWS, *sides)
    pipeline, feeds = build_pipeline(
        (view,), len(rows), 2, device_id=None, dtype="float32", channels_last=False
    )
    pipeline.build()
    images = [pack.view(row) for row in rows.tolist()]
    feed_batch(pipeline, feeds, images, [drawn])
    return torch.from_numpy(np.array(pipeline.run()[0].as_tensor()))


@pytest.mark.parametrize("name", PARITY)
def test_a_pipeline_of_dalis_operators_draws_the_cpu_backends_views(name, photo_pack):
    view, mean, share = PARITY[name]
    view = dataclasses.replace(view, normalize=None)
    (expected,) = take(photo_pack, backend="cpu", views=(view,), batch_size=24)
    difference = (by_operators(view, photo_pack, expected.index.numpy()) - expected.views[0]).abs() * 255
    assert difference.mean() < mean
    assert (difference > 8).float().mean() < share


def test_a_pipeline_takes_pixels_and_gives_bytes(photo_pack, photos):
    view = dataclasses.replace(CROP, normalize=None)
    pipeline, feeds = build_pipeline(
        (view,), 4, 1, device_id=None, dtype="uint8", channels_last=True, decoded=True
    )
    pipeline.build()
    rows, sides = np.arange(4), np.array([photo.shape[:2] for photo in photos[:4]]).T
    drawn = draw(view, 3, 0 * rows, rows, MAX_VIEWS, *sides)
    feed_batch(pipeline, feeds, photos[:4], [drawn])
    found = np.array(pipeline.run()[0].as_tensor())
    assert found.shape == (4, 40, 40, 3)
    assert found.dtype == np.uint8


EVERY = (
    presets.barlow_a(24), presets.barlow_b(32), presets.fixmatch_strong(32),
    presets.fixmatch_strong_gentle(24), presets.simclr(24),
    presets.rotate_translate_jitter(24), *presets.rotations(16), *presets.tiles(8, 10),
    presets.evaluation(24), presets.mirrored(24), presets.weak(32), presets.crop_flip(24),
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"num_threads": 1}, {"dtype": "bfloat16", "channels_last": True}, {"verify": True, "num_ranks": 2}],
    ids=str,
)
def test_every_view_is_the_cpu_backends_to_the_byte(photo_pack, options):
    """This holds if the decoders agree, as on these JPEGs, which both decode with libjpeg-turbo."""
    found = take(photo_pack, epoch=1, views=EVERY, **options)
    expected = take(photo_pack, epoch=1, views=EVERY, backend="cpu", **options)
    assert all(map(same, found, expected))


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
def test_packs_of_pixels_need_no_decoder(tmp_path, photos, shard_format):
    pack = write_pack(tmp_path, photos, shard_format=shard_format, encoding="raw")
    expected = take(pack, views=(CROP,), backend="cpu")
    for found, reference in zip(take(pack, views=(CROP,)), expected, strict=True):
        assert torch.equal(found.index, reference.index)
        assert torch.equal(found.views[0], reference.views[0])


def test_an_epoch_left_early_disturbs_no_later_one(photo_pack):
    expected = take(photo_pack, epoch=1)
    with build(photo_pack, prefetch=1) as loader:
        next(loader.epoch(0))
        left = loader.epoch(0)
        next(left)
        found = list(loader.epoch(1))
        del left
    assert all(map(same, expected, found))


def damage(pack, row):
    path = pack.shard_path(0)
    content = bytearray(path.read_bytes())
    offset, size = int(pack.columns.offset[row]), int(pack.columns.size[row])
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(content)
    return open_pack(pack.path)


@pytest.mark.parametrize("bad_row", [0, 23])
def test_a_bad_image_is_replaced_as_the_cpu_backend_does(tmp_path, photos, bad_row):
    pack = damage(write_pack(tmp_path, photos, num_classes=1), bad_row)
    with build(pack) as loader:
        batches = list(loader.epoch(1))
        assert list(loader.bad_rows) == [bad_row]
        assert pack.key(bad_row) in loader.bad_rows[bad_row]
    expected = take(pack, epoch=1, backend="cpu")
    assert [b.index.tolist() for b in batches] == [b.index.tolist() for b in expected]
    assert all(map(same, batches, expected))
    with build(pack, bad_images="raise") as loader, pytest.raises(LoaderError, match=f"row {bad_row} "):
        list(loader.epoch(1))


def test_evaluation_marks_a_bad_image_invalid_in_its_place(tmp_path, photos):
    pack = damage(write_pack(tmp_path, photos, num_classes=1), 5)
    batches = take(pack, mode="eval", views=(presets.evaluation(16),))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(24))
    assert torch.cat([b.valid for b in batches]).tolist() == [row != 5 for row in range(24)]


@pytest.mark.parametrize("verify", [False, True])
def test_an_image_that_dali_refuses_is_decoded_by_us(photo_pack, monkeypatch, verify):
    """A refusal makes DALI's pipeline invalid; it is rebuilt without the image, which is not tried again."""
    expected = take(photo_pack)
    refused = photo_pack.view(int(expected[1].index[3])).tobytes()
    run, asked = DaliDecoder._run, []

    def refuse(decoder, data):
        if refused in [one.tobytes() for one in data]:
            asked.append(len(data))
            decoder._pipeline = None
            raise RuntimeError("no such colours")
        return run(decoder, data)

    monkeypatch.setattr(DaliDecoder, "_run", refuse)
    with build(photo_pack, verify=verify) as loader:
        found = [batch for epoch in (0, 0) for batch in loader.epoch(epoch)]
        assert not loader.bad_rows
    assert asked == [8, 1]
    assert all(map(same, found, expected * 2))


def test_an_image_that_nobody_can_decode_is_replaced(photo_pack, monkeypatch):
    """Bytes that pass the first check but are no image: DALI refuses them, and then our decoder does."""
    expected = take(photo_pack)
    bad = int(expected[1].index[3])
    garbage = np.frombuffer(b"\xff\xd8 no image", np.uint8)
    readable, located = type(photo_pack).view, DaliRenderer.locate

    def locate(renderer, job, first, last):
        rows = located(renderer, job, first, last)
        for place in np.flatnonzero(job.rows[first:last] == bad):
            rows.addresses[place], rows.sizes[place] = garbage.ctypes.data, len(garbage)
        return rows

    with build(photo_pack) as loader:
        monkeypatch.setattr(type(photo_pack), "view", lambda p, r: garbage if r == bad else readable(p, r))
        monkeypatch.setattr(DaliRenderer, "locate", locate)
        loader.renderer._is_good[:] = True
        found = list(loader.epoch(0))
        assert list(loader.bad_rows) == [bad]
    assert same(found[0], expected[0])
    assert same(found[2], expected[2])
    assert found[1].index[3] == (bad + 1) % 24


def test_a_device_reads_dalis_memory_where_it_lies(photo_pack, monkeypatch):
    """The code path of a GPU, in the interpreter: DALI's interleaved pixels, and a row that we decode."""
    pytest.importorskip("triton")
    view = presets.weak(16, normalize=None)
    options = LoaderOptions(seed=1, num_threads=1)
    split = photo_pack.split("train")
    work = Work(split, (view,), options, 4, Crew(options), split.labels())
    rows = DaliRenderer(work)
    rows._dali._refused.add(7)
    device = DeviceRenderer(rows, FakeStreams(eager=True))
    request = Request(np.array([3, 7, 0]), np.zeros(3, np.int64), np.ones(3, np.bool_))
    found = device.submit(request).result(60.0)
    expected = CpuRenderer(work).submit(request).result(60.0)
    assert torch.equal(found.index, expected.index)
    assert (found.views[0] - expected.views[0]).abs().max() < 0.01 / 255
    ((_, (place,)),) = device._lent._kept
    decoded, copies = place.keep
    assert place.interleaved
    assert decoded.places.tolist() == [0, 2]
    assert len(copies) == 1
    device.close(1.0)
    rows.close(1.0)
    work.crew.close()


def test_rows_that_we_decode_go_to_the_device_in_one_copy_from_pinned_memory(tmp_path, photos):
    """No memory is reused while a copy may still read it; a replaced row is copied like the others."""
    pytest.importorskip("triton")
    pack = damage(write_pack(tmp_path, photos, num_classes=1), 5)
    options = LoaderOptions(seed=1, num_threads=1)
    split = pack.split("train")
    work = Work(split, (presets.weak(16, normalize=None),), options, 4, Crew(options), split.labels())
    streams = FakeStreams(eager=True)
    rows, plain = DaliRenderer(work, streams), CpuRenderer(work)
    rows._dali._refused |= {2, 7, 9}
    device = DeviceRenderer(rows, streams)
    for positions, pinned in (((3, 7, 5, 2), 2), ((9, 2, 0, 1), 4), ((0, 1, 3, 4), 5)):
        request = Request(np.array(positions), np.zeros(4, np.int64), np.ones(4, np.bool_))
        found, expected = (one.submit(request).result(60.0) for one in (device, plain))
        assert torch.equal(found.index, expected.index)
        assert (found.views[0] - expected.views[0]).abs().max() < 0.01 / 255
        # One block for the rows and one for the parameters; no block of rows if DALI has decoded all of them.
        assert streams.log.count("pin") == streams.log.count("copy on stream 0") == pinned
    assert list(device.bad_rows) == [5]
    held = [place.keep[1] for _, (place,) in device._lent._kept]
    assert [len({copy.untyped_storage().data_ptr() for copy in copies}) for copies in held] == [1, 1, 0]
    streams.streams[0].run()
    device.submit(Request(np.array([7, 2]), np.zeros(2, np.int64), np.ones(2, np.bool_))).result(60.0)
    assert streams.log.count("pin") == 5
    assert len(device._lent) == 1
    device.close(1.0)
    rows.close(1.0)
    work.crew.close()


def test_an_error_between_feeding_and_running_drops_the_pipeline(photo_pack, monkeypatch):
    """Otherwise the data already fed would come out in place of the next batch."""
    expected = take(photo_pack)
    decoder = DaliDecoder(8, 1, None)
    first, other = ([photo_pack.view(row) for row in rows] for rows in ([0, 1], [2, 3]))
    decoder.decode(np.arange(2), first)
    monkeypatch.setattr(decoder._pipeline, "run", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.decode(np.arange(2), first)
    _, outputs = decoder.decode(np.array([2, 3]), other)
    height = photo_pack.columns.height[2:4].tolist()
    assert [one.shape()[0] for one in outputs] == height
    assert expected


def test_a_dali_that_stops_at_no_image_is_an_error(photo_pack, monkeypatch):
    decoder = DaliDecoder(8, 1, None)
    run = decoder._run

    def fail(data):
        if len(data) > 1:
            raise RuntimeError("out of memory")
        return run(data)

    monkeypatch.setattr(decoder, "_run", fail)
    with pytest.raises(LoaderError, match="DALI stopped: out of memory"):
        decoder.decode(np.arange(2), [photo_pack.view(0), photo_pack.view(1)])


HUNG = (
    r"^a batch \(rows \d+ to \d+\) took longer than 0\.2 s: DALI or the storage hangs; "
    r"use backend='cpu'; raise timeout_s if it is only slow$"
)


@pytest.mark.filterwarnings(
    "ignore:.*left behind:RuntimeWarning"
)  # tests/loaders/backends/test_threads.py tests this warning
def test_a_hung_dali_is_an_error_after_the_time_limit(photo_pack, monkeypatch):
    """This holds for both waiting threads: that of the cpu backend's kernels and that of a device."""
    release = threading.Event()
    monkeypatch.setattr(DaliDecoder, "_run", lambda *_: release.wait(30))
    try:
        with build(photo_pack, timeout_s=0.2) as loader:
            with pytest.raises(LoaderError, match=HUNG):
                list(loader.epoch(0))
            rows = loader.renderer
            job = rows.job(Request(np.arange(4), np.zeros(4, np.int64), np.ones(4, bool)))
            with pytest.raises(LoaderError, match=HUNG):
                rows.place(job)
    finally:
        release.set()


def test_paired_streams_and_new_labels(photo_pack):
    split = photo_pack.split("train")
    options = {"labeled_views": (presets.weak(16),), "unlabeled_views": (presets.weak(16),), "num_threads": 1}

    def steps(backend):
        with build_paired_loader(
            split, split, batch_size=2, mu=3, **gathered(seed=1, backend=backend, **options)
        ) as loader:
            return list(loader.epoch(0))

    for found, expected in zip(steps("dali"), steps("cpu"), strict=True):
        assert torch.equal(found.labeled.index, expected.labeled.index)
        assert torch.equal(found.labeled.labels, expected.labeled.labels)
        assert torch.equal(found.unlabeled.views[0], expected.unlabeled.views[0])


def test_what_dalis_operators_cannot_express_is_refused_by_name():
    with pytest.raises(
        UserError, match="'fixmatch_strong': expected operations that DALI has, found equalize"
    ):
        build_pipeline(
            (presets.fixmatch_strong(16),), 1, 1, device_id=None, dtype="float32", channels_last=False
        )
    assert refusal(without_equalize(presets.fixmatch_strong(16))) is None
    assert refusal(only(RandomErasing())) == "RandomErasing"


def test_an_operation_of_randaugment_that_dali_was_not_taught_is_refused(monkeypatch):
    monkeypatch.setitem(AUGMENT_CODES, "invert", 999)
    assert refusal(only(RandAugment((Augment("rotate", 0, 30), Augment("invert"))))) == "invert"
    assert refusal(only(RandAugment((Augment("rotate", 0, 30), Augment("identity"))))) is None


def test_the_decoder_of_a_gpu_is_described_without_one():
    """It upsamples colours like libjpeg-turbo, uses the hardware decoder, and preallocates its memory."""
    pipeline = build_decoder(8, 2, 0)
    pipeline._device_id = None  # with a device, DALI would need a driver
    text = pipeline.serialize()
    for argument in (b"jpeg_fancy_upsampling", b"hw_decoder_load", b"preallocate_width_hint", b"mixed"):
        assert argument in text
    assert {output.device for output in pipeline._graph_outputs} == {"gpu"}
    assert len(pipeline._ops) <= 20


def test_a_missing_dali_names_the_command_that_installs_it(photo_pack, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingBackendError, match="pip install nvidia-dali-cuda130"):
        build(photo_pack)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error(photo_pack):
    with pytest.raises(UserError, match="device: expected one that this machine has, found cuda"):
        build(photo_pack, device="cuda")


def test_the_gpu_graph_is_built_and_serialised_without_a_gpu():
    views = (*VIEWS, presets.weak(32), without_equalize(presets.fixmatch_strong(32)))
    pipeline, feeds = build_pipeline(views, 8, 2, device_id=0, dtype="float32", channels_last=True)
    pipeline._device_id = None  # with a device, DALI would need a driver
    text = pipeline.serialize()
    assert text.count(b"mixed") >= 1
    assert len({feed.name for feed in feeds}) == len(feeds) > 50
    assert {output.device for output in pipeline._graph_outputs} == {"gpu"}
    pixels = ("Resize", "GaussianBlur", "CropMirrorNormalize", "WarpAffine", "Erase", "Filter")
    found = [op for op in pipeline._ops if any(kind in op.name for kind in pixels)]
    assert len(found) >= 10
    assert {output.device for op in found for output in op.outputs} == {"gpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("view", EVERY[:8], ids=lambda view: view.name)
def test_views_of_the_gpu_are_the_cpu_backends(view, photo_pack):
    view = dataclasses.replace(view, normalize=None)
    options = {"views": (view,), "batch_size": 24}
    (found,) = take(photo_pack, device="cuda", **options)
    (expected,) = take(photo_pack, backend="cpu", **options)
    assert found.views[0].is_cuda
    difference = (found.views[0].cpu() - expected.views[0]).abs() * 255
    assert difference.mean() < 0.5  # nvJPEG rounds differently
    assert (difference > 8).float().mean() < 0.01
