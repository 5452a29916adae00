"""Two ranks of a host that share the pixels of a split, which is too large for one alone."""

import inspect
import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from loaders import LoaderOptions, build_loader
from loaders.backends import local_ranks, resident, spread
from loaders.common.errors import UserError
from loaders.views import presets
from tests.forked import Forked
from tests.loaders.conftest import write_pack

SCRIPT = Path(__file__).with_name("spread_ranks.py")
BAD = [2, 19]


def run_two(folder, photos, device):
    """Run two ranks; return the results of both, and the last error of rank 0."""
    pack = write_pack(folder, photos, num_classes=1)
    content = bytearray(pack.shard_path(0).read_bytes())
    for bad in BAD:
        offset, size = int(pack.columns.offset[bad]), int(pack.columns.size[bad])
        content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    pack.shard_path(0).write_bytes(content)
    temporary = folder / "temporary"
    temporary.mkdir()
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["TMPDIR"] = str(temporary)
    with ExitStack() as opened:
        ranks = [
            opened.enter_context(
                Forked(
                    SCRIPT,
                    pack.path,
                    folder,
                    device,
                    environment={**shared, "LOCAL_RANK": rank, "RANK": rank},
                )
            )
            for rank in ("0", "1")
        ]
        while None in (done := [rank.ended() for rank in ranks]):  # the first failure ends both
            assert not any(one.returncode > 0 for one in done if one), [one.stderr for one in done if one]
            time.sleep(0.01)
    assert done[0].returncode == 0, done[0].stderr
    assert not list(temporary.iterdir())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], done


@pytest.fixture(scope="module")
def two(tmp_path_factory, photos):
    return run_two(tmp_path_factory.mktemp("spread"), photos, "cpu")


def check_batches(seen, num_rows):
    for rank in seen:
        assert all(rank[name] for name in ("same", "resumed", "mark", "shared")), rank
        assert rank["bad_rows"][0] == rank["bad_rows"][1]
        assert num_rows / 3 < rank["decoded"] < 2 * num_rows / 3
    assert sum(rank["decoded"] for rank in seen) == num_rows
    assert sorted(row for rank in seen for row in rank["bad_rows"][1]) == BAD


def test_batches_are_the_cpu_backends_and_each_rank_decodes_its_part(two, photos):
    check_batches([rank["batches"] for rank in two[0]], len(photos))


def test_the_ranks_hold_the_pixels_once(two):
    files = [rank["batches"]["files"] for rank in two[0]]
    assert len(files[0]) == 1
    assert files[0] == files[1]  # both ranks use the same memory file


def test_the_ranks_meet_again_when_the_last_loader_has_gone(two):
    for rank in two[0]:
        again = rank["a second time"]
        assert again == {"held": 0, "decoded": rank["batches"]["decoded"], "same": True}


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("0 fails", "OSError: the disk is gone", "rank 0 of this host failed: the disk is gone"),
        ("1 fails", "OSError: the disk is gone", "rank 1 of this host failed: the disk is gone"),
        ("1 is interrupted", "KeyboardInterrupt: ", "rank 1 of this host was interrupted"),
        ("0 is absent", "", "rank 0 of this host did not join within 0.2 s to load its part of a split; "),
        ("1 is absent", "", "rank 1 of this host did not join within 0.2 s to load its part of a split; "),
    ],
)
def test_what_one_rank_cannot_do_is_one_line_on_the_other(two, name, own, others):
    rank = int(name[0])
    assert two[0][rank][name] == own
    said = two[0][1 - rank][name]
    assert said.startswith(f"RankFailed: backend resident: {others}")
    assert "\n" not in said


def test_a_killed_rank_is_one_line_on_the_other(two):
    _, (zero, one) = two
    assert one.returncode == -signal.SIGKILL
    assert (zero.stdout, zero.stderr) == ("RankFailed: backend resident: rank 1 of this host has ended\n", "")


def test_kernels_of_a_device_draw_from_the_parts_of_other_processes(two, photos):
    """In Triton's interpreter, with the memory of two processes in place of that of two devices."""
    pytest.importorskip("triton")
    total = sum(image.size for image in photos)
    for rank in (rank["parts"] for rank in two[0]):
        assert rank["same"]
        assert rank["index"] == [3, 0, 23, 9]  # row 2 is damaged
        assert rank["drawn from"] == [0, 0, 1, 0]
        assert sum(rank["bytes"]) == total
        assert max(rank["bytes"]) < 0.6 * total


@pytest.mark.gpu
def test_two_ranks_share_a_gpu(tmp_path, photos):
    seen, (zero, _) = run_two(tmp_path, photos, "cuda:0")
    check_batches([rank["batches"] for rank in seen], len(photos))
    assert [rank["batches"]["parts"] for rank in seen] == [2, 2]
    assert seen[0]["1 fails"].endswith("rank 1 of this host failed: the disk is gone")
    assert zero.stdout == "RankFailed: backend resident: rank 1 of this host has ended\n"


def launched(monkeypatch, rank=0, size=4):
    for name, value in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size)):
        monkeypatch.setenv(name, str(value))


def build(pack, **options):
    given = LoaderOptions(backend="resident", num_threads=1, **options)
    return build_loader(pack.split("train"), (presets.evaluation(8),), 8, options=given)


def fraction_of(pack, part):
    """Return the fraction of this machine's memory that would hold `part` of a pack's pixels."""
    columns = pack.columns
    return part * 3 * int((columns.height.astype(int) * columns.width).sum()) / psutil.virtual_memory().total


def test_what_fits_no_host_is_one_line_with_the_sizes(photo_pack, monkeypatch):
    launched(monkeypatch)
    monkeypatch.setattr(spread, "MEMORY_FRACTION", fraction_of(photo_pack, 0.9))
    line = (
        r"^backend resident: expected pixels of at most 0\.001 GB, 80% of the memory of cpu on all ranks of "
        r"this host, found 0\.001 GB in the 24 images"
    )
    with pytest.raises(UserError, match=line):
        build(photo_pack, num_ranks=4)


def test_ranks_that_have_room_alone_or_no_launcher_do_not_meet(photo_pack, monkeypatch):
    monkeypatch.setattr(local_ranks.LocalRanks, "join", lambda *_: pytest.fail("met"))
    monkeypatch.setattr(spread, "MEMORY_FRACTION", fraction_of(photo_pack, 1.1))
    build(photo_pack, num_ranks=4, rank=2).close()
    launched(monkeypatch)
    build(photo_pack).close()  # a loader for one rank, such as one for evaluation
    monkeypatch.setattr(spread, "MEMORY_FRACTION", fraction_of(photo_pack, 4.4))
    build(photo_pack, num_ranks=4).close()


def test_the_rooms_of_devices(monkeypatch):
    """One rank sees devices of different sizes, or only one that a launcher shows it; GPUs are simulated."""
    sizes = [100, 80, 10]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))

    def properties(device):
        return SimpleNamespace(uuid="", total_memory=sizes[getattr(device, "index", device)])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    options = LoaderOptions(device="cuda:1", num_ranks=2)
    assert spread.find_room(options) == (64, 64)
    launched(monkeypatch, size=2)
    assert spread.find_room(options) == (64, 144)  # no rank uses the third device
    del sizes[1:]
    assert spread.find_room(options) == (80, 160)


def test_ranks_that_have_one_device_in_truth_are_refused(monkeypatch):
    monkeypatch.setattr(spread, "memory_of", lambda _: ("one device", 10**9))
    ranks = SimpleNamespace(local_rank=0, size=2, exchange=lambda value: [value, value])
    line = (
        r"at most 0\.800 GB, found 1\.000 GB: the 2 ranks of this host have 1 devices in all; give each rank"
    )
    with pytest.raises(UserError, match=line):
        spread.load_parts(ranks, torch.device("cuda:0"), None, 10**9, None)


@pytest.mark.parametrize(
    ("num_ranks", "held", "parts", "wanted", "serve"),
    [
        (2, True, 2, True, True),
        (2, True, 2, False, True),  # a smaller split of the same rows, on all ranks
        (1, True, 2, False, False),  # rank 0's evaluation, which may outlast the others
        (1, True, 1, False, True),  # a single mapping stays valid when the other ranks end
        (2, False, 1, True, False),
        (1, False, 1, False, True),
    ],
)
def test_whom_held_pixels_serve(monkeypatch, num_ranks, held, parts, wanted, serve):
    launched(monkeypatch, size=2)
    pixels = SimpleNamespace(spread=held, parts=[None] * parts)
    options = LoaderOptions(num_ranks=num_ranks)
    assert resident.ResidentPixels.serve(pixels, options, wanted) is serve


def test_a_mapping_that_cannot_be_opened_is_one_line():
    ranks = SimpleNamespace(exchange=lambda path: ["/proc/self/fd/absent"])
    with pytest.raises(UserError, match=r"each other's memory, found that cpu cannot \(\[Errno 2\] No such"):
        spread._one_mapping(ranks, 10)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])  # on a GPU, on a processor
def test_a_device_without_room_is_one_line(monkeypatch, error):
    def full(*_, **__):
        raise error("out of memory.\nTried to allocate")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(
        UserError, match=r"^backend resident: expected 3\.000 GB of free memory on cuda:0 for .* memory\.\);"
    ):
        spread.allocate(3 * 10**9, torch.device("cuda:0"))


def test_devices_that_cannot_read_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda one: SimpleNamespace(uuid=f"gpu{one}", total_memory=1)
    )
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda _, other: other == 1)
    spread._check_peers(torch.device("cuda:0"), ("gpu0", "gpu1"))
    spread._check_peers(torch.device("cuda:0"), ("gpu0", "another that this process does not see"))
    with pytest.raises(
        UserError, match=r"found cuda:0 without access to cuda:2; use backend='hybrid', or 'cpu'"
    ):
        spread._check_peers(torch.device("cuda:0"), ("gpu0", "gpu2"))


def test_a_part_is_mapped_for_the_device_that_reads_it():
    def rebuild(size, storage_device, offset):
        if offset < 0:
            raise RuntimeError("CUDA error: invalid resource handle\nCUDA kernel errors might be")
        return size, storage_device, offset

    assert spread._open((rebuild, (1, 7, 3)), torch.device("cuda:2")) == (1, 2, 3)
    assert "storage_device" in inspect.signature(rebuild_cuda_tensor).parameters
    line = (
        r"found that cuda:2 cannot \(CUDA error: invalid resource handle\); use backend='hybrid', or 'cpu'$"
    )
    with pytest.raises(UserError, match=line):
        spread._open((rebuild, (1, 7, -3)), torch.device("cuda:2"))
    with pytest.raises(UserError, match=r"found that cuda:2 cannot \(.*storage_device"):  # another torch
        spread._open((lambda size: size, (1,)), torch.device("cuda:2"))
