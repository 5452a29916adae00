"""The DALI backend: the contract that every backend keeps, and its views beside the cpu backend's."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from loaders import build_loader, build_paired_loader
from loaders.common.errors import LoaderError, MissingBackendError, UserError
from loaders.packs import open_pack
from loaders.views import presets
from loaders.views.dali import build_pipeline, refusal
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


# largest mean difference in 1/255, and share of values that may differ by more than 8/255
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


@pytest.mark.parametrize("name", PARITY)
def test_views_are_the_cpu_backends(name, photo_pack):
    view, mean, share = PARITY[name]
    view = dataclasses.replace(view, normalize=None)
    options = {"views": (view,), "batch_size": 24}
    (found,) = take(photo_pack, **options)
    (expected,) = take(photo_pack, backend="cpu", **options)
    assert torch.equal(found.index, expected.index)
    difference = (found.views[0] - expected.views[0]).abs() * 255
    assert difference.mean() < mean
    assert (difference > 8).float().mean() < share


def test_normalised_views_uint8_and_channels_last_agree(photo_pack):
    plain = take(photo_pack, views=(CROP,))[0].views[0]
    expected = take(photo_pack, views=(CROP,), backend="cpu")[0].views[0]
    assert (plain - expected).abs().mean() < 0.02
    last = take(photo_pack, views=(CROP,), channels_last=True)[0].views[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.contiguous(), plain)
    whole = take(photo_pack, views=(dataclasses.replace(CROP, normalize=None),), dtype="uint8")[0].views[0]
    floats = take(photo_pack, views=(dataclasses.replace(CROP, normalize=None),))[0].views[0]
    assert whole.dtype == torch.uint8
    torch.testing.assert_close(whole.float() / 255, floats)


def test_half_floats_are_the_rounded_views_and_bfloat16_is_refused(photo_pack):
    whole = take(photo_pack, views=(CROP,))[0].views[0]
    half = take(photo_pack, views=(CROP,), dtype="float16")[0].views[0]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, whole.half(), atol=2e-3, rtol=0)
    with pytest.raises(UserError, match="found bfloat16"):
        build(photo_pack, dtype="bfloat16")


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
def test_packs_of_pixels_need_no_decoder(tmp_path, photos, shard_format):
    pack = write_pack(tmp_path, photos, shard_format=shard_format, encoding="raw")
    expected = take(pack, views=(CROP,), backend="cpu")
    for found, reference in zip(take(pack, views=(CROP,)), expected, strict=True):
        assert torch.equal(found.index, reference.index)
        assert (found.views[0] - reference.views[0]).abs().mean() < 0.02


def test_order_ranks_threads_and_resume_are_the_cpu_backends(photo_pack):
    whole = take(photo_pack, epoch=2)
    cpu = take(photo_pack, epoch=2, backend="cpu")
    assert all(
        torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        for a, b in zip(whole, cpu, strict=True)
    )
    assert all(map(same, whole, take(photo_pack, epoch=2, num_threads=1)))
    assert all(map(same, whole[1:], take(photo_pack, epoch=2, start_step=1)))
    parts = [take(photo_pack, epoch=2, rank=rank, num_ranks=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.views[1], torch.cat([part[step].views[1] for part in parts]))


def test_a_kept_batch_stays_as_it_was(photo_pack):
    with build(photo_pack, prefetch=1) as loader:
        kept = next(loader.epoch(0)).views[0]
        before = kept.clone()
        for epoch in range(2):
            list(loader.epoch(epoch))
        assert torch.equal(kept, before)


def test_an_epoch_left_early_disturbs_no_later_one(photo_pack):
    expected = take(photo_pack, epoch=1)
    with build(photo_pack, prefetch=1) as loader:
        next(loader.epoch(0))
        left = loader.epoch(0)
        next(left)
        found = list(loader.epoch(1))
        del left
    assert all(map(same, expected, found))


def test_evaluation_pads_and_marks_the_padding(photo_pack):
    batches = take(photo_pack, batch_size=10, mode="eval", views=(presets.evaluation(16),))
    assert torch.cat([b.index[b.valid] for b in batches]).tolist() == list(range(24))
    assert [len(b.index) for b in batches] == [10, 10, 10]


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
    difference = (batches[0].views[0] - expected[0].views[0]).abs().mean()
    assert difference < 0.05
    with build(pack, bad_images="raise") as loader, pytest.raises(LoaderError, match=f"row {bad_row} "):
        list(loader.epoch(1))


def test_evaluation_marks_a_bad_image_invalid_in_its_place(tmp_path, photos):
    pack = damage(write_pack(tmp_path, photos, num_classes=1), 5)
    batches = take(pack, mode="eval", views=(presets.evaluation(16),))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(24))
    assert torch.cat([b.valid for b in batches]).tolist() == [row != 5 for row in range(24)]


@pytest.mark.parametrize("verify", [False, True])
def test_a_pipeline_that_dies_is_built_again_without_the_image_that_killed_it(
    photo_pack, monkeypatch, verify
):
    """An image that passes the check of its bytes and still kills DALI: only the decoder shows it."""
    expected = take(photo_pack)
    bad = int(expected[1].index[3])
    garbage = np.frombuffer(b"\xff\xd8 no image", np.uint8)
    readable = type(photo_pack).view
    with build(photo_pack, verify=verify) as loader:
        rows = loader.renderer._rows
        images_of = rows.images
        monkeypatch.setattr(type(photo_pack), "view", lambda p, r: garbage if r == bad else readable(p, r))
        rows._is_good[:] = True
        monkeypatch.setattr(
            rows,
            "images",
            lambda wanted: [
                garbage if row == bad else data for row, data in zip(wanted, images_of(wanted), strict=True)
            ],
        )
        found = list(loader.epoch(0))
        assert list(loader.bad_rows) == [bad]
    assert same(found[0], expected[0])
    assert same(found[2], expected[2])
    assert found[1].index[3] == (bad + 1) % 24


@pytest.mark.filterwarnings(
    "ignore:.*left behind:RuntimeWarning"
)  # tests/loaders/backends/test_threads.py holds it
def test_a_hung_dali_is_an_error_after_the_time_limit(photo_pack, monkeypatch):
    import time

    with build(photo_pack, timeout_s=0.2) as loader:
        monkeypatch.setattr(loader.renderer, "_feed", lambda job: time.sleep(1))
        with pytest.raises(LoaderError, match=r"longer than 0\.2 s"):
            list(loader.epoch(0))


def test_paired_streams_and_new_labels(photo_pack):
    split = photo_pack.split("train")
    options = {"views": ((presets.weak(16),), (presets.weak(16),)), "num_threads": 1}

    def steps(backend):
        with build_paired_loader(
            split, split, batch_size=2, mu=3, **gathered(seed=1, backend=backend, **options)
        ) as loader:
            return list(loader.epoch(0))

    for found, expected in zip(steps("dali"), steps("cpu"), strict=True):
        assert torch.equal(found.labeled.index, expected.labeled.index)
        assert torch.equal(found.labeled.labels, expected.labeled.labels)
        assert (found.unlabeled.views[0] - expected.unlabeled.views[0]).abs().mean() < 0.02


def test_what_dali_cannot_express_is_refused_by_name(photo_pack):
    with pytest.raises(UserError, match="equalize"):
        build(photo_pack, views=(presets.fixmatch_strong(16),))
    assert refusal(without_equalize(presets.fixmatch_strong(16))) is None
    assert refusal(only(RandomErasing())) == "RandomErasing"


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
    pipeline._device_id = None  # DALI asks for a driver as soon as a device is named
    text = pipeline.serialize()
    assert text.count(b"mixed") >= 1
    assert len({feed.name for feed in feeds}) == len(feeds) > 50
    assert {output.device for output in pipeline._graph_outputs} == {"gpu"}
    pixels = ("Resize", "GaussianBlur", "CropMirrorNormalize", "WarpAffine", "Erase", "Filter")
    found = [op for op in pipeline._ops if any(kind in op.name for kind in pixels)]
    assert len(found) >= 10
    assert {output.device for op in found for output in op.outputs} == {"gpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["barlow a", "barlow b", "weak", "fixmatch without equalize"])
def test_views_of_the_gpu_are_the_cpu_backends(name, photo_pack):
    view, mean, share = PARITY[name]
    view = dataclasses.replace(view, normalize=None)
    options = {"views": (view,), "batch_size": 24}
    (found,) = take(photo_pack, device="cuda", **options)
    (expected,) = take(photo_pack, backend="cpu", **options)
    assert found.views[0].is_cuda
    difference = (found.views[0].cpu() - expected.views[0]).abs() * 255
    assert difference.mean() < mean + 0.5  # nvJPEG rounds in its own way
    assert (difference > 8).float().mean() < share + 0.01
