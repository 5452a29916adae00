"""The promises of every backend (design contracts 2, 3, 6, 7), on packs of real photographs."""

import gc
import importlib.util
import itertools
import math
import re
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import simplejpeg
import torch

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.backends.cpu import CpuRenderer
from loaders.common.errors import LoaderError, UserError
from loaders.packs import LabelTable
from loaders.views import presets
from tests.faults.http_store import wait_until
from tests.loaders.conftest import write_pack
from tests.loaders.every_backend import BACKENDS, FUSED, reseal
from tests.loaders.settings import gathered


@pytest.fixture(params=list(BACKENDS))
def case(request):
    found = BACKENDS[request.param]
    if importlib.util.find_spec(found.module) is None:
        pytest.skip(f"backend {found.name}: {found.module} is not installed")
    return found


@pytest.fixture
def photo_pack(case, photo_pack, photo_beton_pack):
    return {"webdataset": photo_pack, "ffcv": photo_beton_pack}[case.shard_format]


@pytest.fixture
def build(case, tmp_path):
    """Return a function that builds a loader of the backend under test; it places each pack once."""
    placed = {}

    def make(pack, **options):
        if pack.path not in placed:
            placed[pack.path] = case.place(pack, tmp_path)
        settings = {"views": case.views, "batch_size": 8, "seed": 3, "num_threads": 2, "timeout_s": 60.0}
        settings |= {"backend": case.name} | case.options | options
        return build_loader(placed[pack.path].split("train"), **gathered(**settings))

    return make


def take(loader, epoch=0, start_step=0):
    return list(loader.epoch(epoch, start_step))


def same(a, b):
    return len(a.views) == len(b.views) and all(
        torch.equal(x, y)
        for x, y in zip((*a.views, a.index, a.valid), (*b.views, b.index, b.valid), strict=True)
    )


def test_a_batch_is_what_the_contract_says(build, photo_pack):
    with build(photo_pack) as loader:
        batch = next(loader.epoch(0))
    assert [view.shape for view in batch.views] == [(8, 3, 24, 24), (8, 3, 32, 32)]
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in batch.views)
    assert all(torch.isfinite(view).all() and -3 < view.min() < view.max() < 3 for view in batch.views)
    assert batch.index.dtype == torch.int64
    assert batch.valid.dtype == torch.bool
    assert batch.valid.all()
    assert torch.equal(batch.labels, torch.from_numpy(photo_pack.split("train").labels()[batch.index]))


FLOATS = {}  # float32 batches, with which other dtypes are compared


@pytest.mark.parametrize("resolution", [20, 21])  # whole vectors, and a remainder
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3), ("uint8", 0.51 / 255)],
)
def test_every_dtype_and_layout_holds_the_same_pixels(
    build, case, photo_pack, resolution, channels_last, dtype, tolerance
):
    views = (presets.crop_flip(resolution, normalize=None),)
    if (case.name, resolution) not in FLOATS:
        FLOATS[case.name, resolution] = take(build(photo_pack, views=views))
    batches = take(build(photo_pack, views=views, dtype=dtype, channels_last=channels_last))
    for expected, found in zip(FLOATS[case.name, resolution], batches, strict=True):
        x = found.views[0]
        assert x.dtype == getattr(torch, dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert x.is_contiguous(memory_format=layout)
        pixels = x.float() / 255 if dtype == "uint8" else x.float()
        assert (pixels - expected.views[0]).abs().max() <= tolerance + 1e-7


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(build, photo_pack):
    with build(photo_pack) as loader:
        epochs = [torch.cat([batch.index for batch in loader.epoch(epoch)]) for epoch in range(3)]
    for index in epochs:
        assert sorted(index.tolist()) == list(range(24))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("num_threads", [1, 2, 16])
def test_threads_do_not_change_a_byte(build, photo_pack, num_threads):
    expected = take(build(photo_pack), epoch=5)
    assert all(map(same, expected, take(build(photo_pack, num_threads=num_threads), epoch=5)))


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_share_what_one_rank_sees(build, photo_pack, num_ranks):
    whole = take(build(photo_pack))
    parts = [take(build(photo_pack, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    for step, batch in enumerate(whole):
        for view in range(2):
            assert torch.equal(batch.views[view], torch.cat([part[step].views[view] for part in parts]))
        assert torch.equal(batch.index, torch.cat([part[step].index for part in parts]))


@pytest.mark.parametrize("start_step", [0, 1, 2, 3])
def test_a_resumed_epoch_goes_on_where_it_stopped(build, photo_pack, start_step):
    expected = take(build(photo_pack), epoch=2)[start_step:]
    found = take(build(photo_pack), epoch=2, start_step=start_step)
    assert len(found) == len(expected) == 3 - start_step
    assert all(map(same, expected, found))


def test_a_resume_computes_none_of_the_skipped_batches(photo_pack, monkeypatch):
    asked, submit = [], CpuRenderer.submit

    def recorded(renderer, request):
        asked.append(len(request.positions))
        return submit(renderer, request)

    monkeypatch.setattr(CpuRenderer, "submit", recorded)
    with build_loader(
        photo_pack.split("train"), (presets.weak(16),), 4, options=LoaderOptions(num_threads=1)
    ) as loader:
        assert len(list(loader.epoch(0, start_step=loader.steps_per_epoch - 1))) == 1
    assert asked == [4]


def test_training_drops_the_partial_batch_and_evaluation_pads_it(build, photo_pack):
    train = build(photo_pack, batch_size=10)
    assert train.steps_per_epoch == len(take(train)) == 2
    evaluation = take(build(photo_pack, batch_size=10, mode="eval", views=(presets.evaluation(16),)))
    assert len(evaluation) == 3
    assert torch.cat([b.index[b.valid] for b in evaluation]).tolist() == list(range(24))
    assert evaluation[-1].valid.sum() == 4
    assert len(evaluation[-1].index) == 10


def test_a_kept_batch_stays_as_it_was(build, photo_pack):
    with build(photo_pack, prefetch=1) as loader:
        kept = next(loader.epoch(0)).views[0]
        before = kept.clone()
        for epoch in range(5):
            take(loader, epoch)
        assert torch.equal(kept, before)


def test_memory_is_used_again_once_a_batch_is_gone(build, case, photo_pack):
    with build(photo_pack, prefetch=0) as loader:
        places = set()
        for epoch in range(6):
            for batch in loader.epoch(epoch):
                places.add(batch.views[0].data_ptr())
                del batch
    assert len(places) <= case.places


def damaged_pack(case, folder, photos, bad_rows, damage):
    pack = write_pack(folder, photos, num_classes=1, shard_format=case.shard_format)
    damage_rows(pack, bad_rows, damage)
    return reseal(pack)


def damage_rows(pack, bad_rows, damage):
    """Damage rows in the shard file itself, which a loader may have mapped."""
    places = [(int(pack.columns.offset[row]), int(pack.columns.size[row])) for row in bad_rows]
    path = pack.shard_path(0)
    content = bytearray(path.read_bytes())
    for offset, size in places:
        damage(content, offset, size)
    with path.open("r+b") as file:
        file.write(content)


def cut(content, offset, size):
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)


def swap(content, offset, size):
    other = simplejpeg.encode_jpeg(np.zeros((5, 5, 3), np.uint8), 30)[:size]
    content[offset : offset + len(other)] = other


def flip_a_bit_of_the_picture(content, offset, size):
    table = content.index(b"\xff\xdb", offset, offset + size)  # a quantisation table: any value decodes
    content[table + 20] ^= 4


@pytest.mark.parametrize("bad_row", [0, 11, 23])
def test_a_flipped_bit_that_still_decodes_is_caught_by_its_checksum(build, case, tmp_path, photos, bad_row):
    pack = damaged_pack(case, tmp_path, photos, [bad_row], flip_a_bit_of_the_picture)
    with build(pack) as loader:
        take(loader)
        unseen = case.always_verifies or not loader.bad_rows
    with build(pack, verify=True) as loader:
        index = torch.cat([batch.index for batch in take(loader)]).tolist()
        assert list(loader.bad_rows) == [bad_row]
        assert "CRC-32" in loader.bad_rows[bad_row]
    assert bad_row not in index
    assert unseen, "this flip does not even need the checksum; choose another"


def test_a_bit_that_flips_between_two_epochs_is_caught(build, case, tmp_path, photos):
    if case.in_store:
        pytest.skip(f"backend {case.name} reads a copy of the shard")
    pack = damaged_pack(case, tmp_path, photos, [], cut)
    with build(pack, verify=True) as loader:
        take(loader)
        assert not loader.bad_rows
        damage_rows(pack, [7], flip_a_bit_of_the_picture)
        take(loader, 1)
        assert list(loader.bad_rows) == [7]


def test_verification_changes_no_byte_of_a_whole_pack(build, photo_pack):
    assert all(map(same, take(build(photo_pack)), take(build(photo_pack, verify=True))))


@pytest.mark.parametrize("damage", [cut, swap])
@pytest.mark.parametrize("bad_row", [0, 11, 23])
def test_a_bad_image_is_counted_and_replaced_by_the_row_after_it(
    build, case, tmp_path, photos, bad_row, damage
):
    pack = damaged_pack(case, tmp_path, photos, [bad_row], damage)
    with build(pack) as loader:
        batches = take(loader, 1)
        assert list(loader.bad_rows) == [bad_row]
        assert pack.key(bad_row) in loader.bad_rows[bad_row]
    index = torch.cat([batch.index for batch in batches]).tolist()
    expected = list(range(24))
    expected[bad_row] = (bad_row + 1) % 24
    assert sorted(index) == sorted(expected)
    again = take(build(pack, num_threads=1), 1)
    assert all(map(same, batches, again))


def test_evaluation_marks_a_bad_image_invalid_in_its_place(build, case, tmp_path, photos):
    pack = damaged_pack(case, tmp_path, photos, [5], cut)
    batches = take(build(pack, mode="eval", views=(presets.evaluation(16),)))
    assert torch.cat([b.index for b in batches]).tolist() == list(range(24))
    assert torch.cat([b.valid for b in batches]).tolist() == [row != 5 for row in range(24)]


def test_a_bad_image_can_stop_the_run(build, case, tmp_path, photos):
    pack = damaged_pack(case, tmp_path, photos, [5], cut)
    with (
        build(pack, bad_images="raise") as loader,
        pytest.raises(
            LoaderError,
            match=r"row 5 .*0005.*train-000000.*; restore it in /.*, or use another row .*replace$",
        ),
    ):
        take(loader)


def test_a_split_of_damaged_images_is_an_error(build, case, tmp_path, photos):
    pack = damaged_pack(case, tmp_path, photos, range(24), cut)
    with build(pack) as loader, pytest.raises(LoaderError, match="can be read either"):
        take(loader)


def test_an_exception_in_a_worker_reaches_the_caller(build, case, photo_pack, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("in a worker")

    with build(photo_pack) as loader:
        monkeypatch.setattr(case.work, fail)
        with pytest.raises(ZeroDivisionError, match="in a worker"):
            take(loader)


@pytest.mark.filterwarnings("ignore:.* still hang")  # close() does not wait for hung workers
def test_a_hung_worker_is_an_error_after_the_time_limit(build, case, photo_pack, monkeypatch):
    release = threading.Event()
    with build(photo_pack, timeout_s=0.2) as loader:
        monkeypatch.setattr(case.work, lambda *args: release.wait(30))
        try:
            with pytest.raises(LoaderError, match=r"longer than 0\.2 s"):
                take(loader)
        finally:
            release.set()


def test_closing_while_iterating_stops_the_threads(build, photo_pack):
    before = set(threading.enumerate())
    loader = build(photo_pack)
    batches = loader.epoch(0)
    next(batches)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive(), "close() hangs"
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        list(itertools.islice(loader.epoch(0), 1))
    assert set(threading.enumerate()) <= before


def test_closing_in_another_thread_ends_the_wait_for_a_batch(build, case, photo_pack, monkeypatch):
    release = threading.Event()
    loader = build(photo_pack, timeout_s=60.0, num_threads=1)
    # So slow that close() comes first; returns True, as for a readable row.
    monkeypatch.setattr(case.work, lambda *args: release.wait(0.1) or True)
    closer = threading.Timer(0.3, loader.close)
    closer.start()
    start = time.monotonic()
    try:
        with pytest.raises((RuntimeError, LoaderError)):
            take(loader)
        assert time.monotonic() - start < 20, "the wait ended with its own limit, not with close()"
    finally:
        release.set()
        closer.join()


@pytest.mark.filterwarnings("ignore:.*left behind:RuntimeWarning")
def test_closing_leaves_a_hung_worker_behind(build, case, photo_pack, monkeypatch):
    release = threading.Event()
    start = time.monotonic()
    try:
        with build(photo_pack, timeout_s=0.3) as loader:
            monkeypatch.setattr(case.work, lambda *args: release.wait(60))
            with pytest.raises(LoaderError, match="longer than"):
                take(loader)
        assert time.monotonic() - start < 20
    finally:
        release.set()


def test_two_loaders_at_once_do_not_meet(build, photo_pack):
    expected = take(build(photo_pack)), take(build(photo_pack, seed=9))
    with build(photo_pack) as one, build(photo_pack, seed=9) as two:
        found = list(zip(one.epoch(0), two.epoch(0), strict=True))
    assert all(same(a, b) for a, (b, _) in zip(expected[0], found, strict=True))
    assert all(same(a, b) for a, (_, b) in zip(expected[1], found, strict=True))


@pytest.mark.parametrize("num_epochs", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_epochs_leave_nothing_behind(build, photo_pack, num_epochs):
    settling = min(100, num_epochs // 2)
    process = psutil.Process()
    with build(photo_pack, views=(presets.crop_flip(8),)) as loader:
        for epoch in range(settling):
            take(loader, epoch)
        gc.collect()
        before = (process.memory_info().rss, process.num_threads(), process.num_fds())
        for epoch in range(settling, num_epochs):
            take(loader, epoch)
        gc.collect()
        end = time.monotonic() + 10  # a thread of FFCV's last epoch may still be ending
        while process.num_threads() > before[1] and time.monotonic() < end:
            time.sleep(0.01)
        after = (process.memory_info().rss, process.num_threads(), process.num_fds())
    assert after[0] - before[0] < 2e6 + 6e6 * (num_epochs - settling) / 900
    assert after[1] <= before[1]
    assert after[2] == before[2]


NO_POLICY, BORROWED = ("weak",), (replace(presets.weak(16), shares_draws_of=1),)
IMPOSSIBLE = [  # for both kinds of loader
    ("seed", (-1, 2**63, 1.0, "1", True, None)),
    ("device", ("gpu", "cuda:99", 1.5)),
    ("num_threads", (0, -1, 1.5)),
    ("num_ranks", (0, -1, 3, 1.0)),  # batches of 8 and 2 cannot be divided by 3
    ("rank", (1, -1, 0.0)),
    ("dtype", ("float64", "int8", torch.float32, None)),
    ("channels_last", ("NHWC", 1, None)),
    ("bad_images", ("skip", "", True)),
    ("verify", ("no", 1)),
    ("prefetch", (-1, 1.5)),
    ("timeout_s", (0, -1.0, math.nan, math.inf, "1", None)),
    ("window", (0, -1, 1.5)),
    ("batch_size", (0, -8, 2.5, 25, True)),
    ("labels", ("true", LabelTable.of([0], [0], 4), LabelTable.of([0], [0], 2))),
]
IMPOSSIBLE_ALONE = [
    *IMPOSSIBLE,
    ("mode", ("test", True)),
    ("labels", (LabelTable.of([24], [0], 3),)),
    ("views", ((), None, list(FUSED), NO_POLICY, BORROWED)),
]
IMPOSSIBLE_PAIR = [
    *IMPOSSIBLE,
    ("mu", (0, -1, 1.5, 13)),
    ("balanced", ("yes", 1)),
    ("labeled_views", ((), FUSED[0], BORROWED)),
    ("unlabeled_views", ((), NO_POLICY, FUSED * 129)),
]

SAID = {  # arguments whose message does not begin with just their name
    "batch_size": r"batch size \(global\)|unlabelled batch size \(mu = .*\)",
    "num_ranks": r"num_ranks|batch size \(global\)",
    "mu": r"mu|unlabelled batch size \(mu = .*\)",
    "labels": "labels|label table",
}


def check_refusals(make, impossible):
    """Check that each value is refused in one line (what, expected, found, remedy) and leaves no thread."""
    threads = threading.active_count()
    for name, values in impossible:
        for value in values:
            with pytest.raises(UserError) as refused:
                make(**{name: value})
            line = f"({SAID.get(name, name)}): expected .+, found .+; .+"
            assert re.fullmatch(line, str(refused.value)), f"{name}={value!r}: {refused.value}"
    assert threading.active_count() <= threads


def test_what_cannot_be_built_is_refused(build, photo_pack):
    check_refusals(lambda **options: build(photo_pack, **options), IMPOSSIBLE_ALONE)
    with pytest.raises(UserError, match="split: expected a split, found Pack"):
        build_loader(photo_pack, FUSED, 8)


def test_a_pair_that_cannot_be_built_is_refused(case, photo_pack):
    check_refusals(
        lambda **options: build_pair(photo_pack, {"backend": case.name} | case.options | options),
        IMPOSSIBLE_PAIR,
    )


def test_the_batch_of_unlabelled_rows_is_said_to_be_a_product(photo_pack):
    for options in ({"mu": 200}, {"mu": 1, "batch_size": 3, "num_ranks": 2}):
        mu, size = options["mu"], options.get("batch_size", 2)
        product = rf"unlabelled batch size \(mu = {mu} times batch_size = {size}\): .* found {mu * size};"
        match = r"^batch size \(global\): .* found 3;" if size == 3 else product
        with pytest.raises(UserError, match=match):
            build_pair(photo_pack, options)


def test_what_is_no_place_in_an_epoch_is_refused(build, photo_pack):
    with build(photo_pack) as loader:
        for place in [(0, 4), (0, 999), (0, -1), (0, 1.0), (-1, 0), (2**32, 0), (None, 0)]:
            with pytest.raises(UserError, match=r"^(epoch|start_step): expected a whole .*, found .*; "):
                loader.epoch(*place)
        assert take(loader, 0, 3) == []


@pytest.fixture
def paired(case, tmp_path):
    if not case.pairs:
        pytest.skip(f"backend {case.name} refuses pairs: test_pairs_are_refused_by_name")

    def make(pack, **options):
        return build_pair(case.place(pack, tmp_path), {"backend": case.name} | case.options | options)

    return make


def build_pair(pack, options):
    split = pack.split("train")
    settings = {
        "labeled_views": (presets.weak(16),),
        "unlabeled_views": (presets.weak(16), presets.barlow_a(16)),
        "batch_size": 2,
        "mu": 3,
        "seed": 1,
        "num_threads": 2,
    }
    return build_paired_loader(split, split, **gathered(**(settings | options)))


def test_pairs_are_refused_by_name(case, photo_pack):
    if case.pairs:
        pytest.skip(f"backend {case.name} renders pairs")
    with pytest.raises(UserError, match=f"backend {case.name}: expected one stream"):
        build_pair(photo_pack, {"backend": case.name})


def test_a_paired_step_holds_exactly_b_and_mu_b_rows(paired, photo_pack):
    with paired(photo_pack) as loader:
        steps = take(loader)
    assert loader.steps_per_epoch == len(steps) == 4
    for step in steps:
        assert len(step.labeled.index) == 2
        assert len(step.unlabeled.index) == 6
        assert step.labeled.labels is not None
        assert step.unlabeled.labels is None
        assert len(step.unlabeled.views) == 2
    assert sorted(torch.cat([step.unlabeled.index for step in steps]).tolist()) == list(range(24))


def test_paired_streams_cycle_without_a_gap_and_resume(paired, photo_pack):
    with paired(photo_pack) as loader:
        whole = [step for epoch in range(3) for step in take(loader, epoch)]
        resumed = take(loader, 1, 2)
    labeled = torch.cat([step.labeled.index for step in whole]).tolist()
    assert sorted(labeled) == list(range(24))  # 12 steps of 2 are one epoch of the labelled stream
    for found, expected in zip(resumed, whole[6:8], strict=True):
        assert same(found.labeled, expected.labeled)
        assert same(found.unlabeled, expected.unlabeled)


def test_tables_that_were_swapped_leave_no_threads_behind(paired, photo_pack):
    def workers():
        gc.collect()
        return sum("fetch" not in thread.name for thread in threading.enumerate())  # these start gradually

    with paired(photo_pack) as loader:
        take(loader)
        before = workers()
        for label in range(3):
            loader.set_labels(LabelTable.of([2, 5, 11], [1, 0, label], 3))
            take(loader)
        wait_until(lambda: workers() <= before)


def test_the_streams_draw_apart(paired, photo_pack):
    """An image that is in both streams gets different views in them."""
    with paired(
        photo_pack,
        batch_size=8,
        mu=3,
        labeled_views=(presets.barlow_a(16),),
        unlabeled_views=(presets.barlow_a(16),),
    ) as loader:
        step = take(loader)[0]
    for i, row in enumerate(step.labeled.index):
        j = (step.unlabeled.index == row).nonzero()[0, 0]
        assert not torch.equal(step.labeled.views[0][i], step.unlabeled.views[0][j])
