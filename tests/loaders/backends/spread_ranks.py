"""One of two ranks that share the pixels of a split; run as `python spread_ranks.py PACK OUT DEVICE`.

Each rank writes its results to OUT/RANK.json. At the end rank 1 kills itself, and rank 0 prints its error.
"""

import gc
import json
import mmap
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import torch

from loaders import LoaderOptions, build_loader, open_pack
from loaders.backends import resident, spread
from loaders.backends.cpu import CpuRenderer
from loaders.backends.decoding import SLACK
from loaders.backends.device import DeviceRenderer
from loaders.backends.work import Crew, Request, Work
from loaders.common.errors import LoaderError
from loaders.views import presets
from tests.loaders.fake_streams import FakeStreams

PACK, OUT, DEVICE = open_pack(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
RANK = int(os.environ["LOCAL_RANK"])
VIEWS = (presets.weak(16, normalize=None), presets.crop_flip(12, normalize=None))
ROWS = {"decoded": 0}
load, decode = resident.ResidentPixels._load, resident.ResidentPixels._decode
memory_of = spread.memory_of


def options(**given):
    return LoaderOptions(seed=3, num_threads=1, rank=RANK, num_ranks=2, **given)


def build(backend="resident", num_ranks=2, **given):
    given = options(backend=backend, device=DEVICE if backend == "resident" else "cpu", **given)
    given = replace(given, num_ranks=num_ranks)
    return build_loader(PACK.split("train"), VIEWS, 8, options=given)


def counted(pixels, renderer, job, first, last, part):
    ROWS["decoded"] += last - first
    load(pixels, renderer, job, first, last, part)


def same(one, other, most=0.0 if DEVICE == "cpu" else 0.01):
    views = all((a.cpu() - b).abs().max() <= most for a, b in zip(one.views, other.views, strict=True))
    facts = ((one.index, other.index), (one.labels, other.labels), (one.valid, other.valid))
    return views and all(torch.equal(a.cpu(), b) for a, b in facts)


def epochs(loader, number=2):
    return [batch for epoch in range(number) for batch in loader.epoch(epoch)]


def told(**given):
    """Build a loader; return its error, or "built"."""
    try:
        build(**given).close()
    except (OSError, LoaderError, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "built"


def pixels_of(loader):
    return loader.renderer.pixels if DEVICE == "cpu" else loader.renderer._rows.pixels


def batches():
    with build("cpu") as cpu:
        expected, bad, mark = epochs(cpu), cpu.bad_rows, cpu.fingerprint
    with build() as loader, build() as other:
        found, resumed = epochs(loader), list(loader.epoch(1, start_step=2))
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {
            "same": all(map(same, found, expected)) and len(found) == len(expected),
            "resumed": len(resumed) == 1 and same(resumed[0], expected[-1]),
            "mark": loader.fingerprint == mark or DEVICE != "cpu",
            "bad_rows": [sorted(bad), sorted(loader.bad_rows)],
            "shared": pixels_of(loader) is pixels_of(other),
            "decoded": ROWS["decoded"],
            "parts": len(pixels_of(loader).parts),
            "files": sorted({line.split()[4] for line in maps if "memfd:sluice-pixels" in line}),
        }


def a_second_time():
    """Build again after the last loader was freed, while rank 0 also has a loader for itself alone."""
    gc.collect()
    held = len(resident._held)
    alone = build(num_ranks=1) if RANK == 0 and DEVICE == "cpu" else None
    before = ROWS["decoded"]
    with build() as loader, build("cpu") as cpu:
        equal = all(map(same, epochs(loader, 1), epochs(cpu, 1)))
    if alone is not None:
        alone.close()
    return {"held": held, "decoded": ROWS["decoded"] - before, "same": equal}


def memory_of_this_rank(device):
    """Pretend that each rank has a separate memory."""
    return f"memory of {RANK}", memory_of(device)[1]


def shared_memory(size, device):
    """Allocate shared memory in place of device memory that another process can open."""
    file = os.memfd_create("part")
    os.ftruncate(file, size)
    memory = torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
    memory.file = f"/proc/{os.getpid()}/fd/{file}", size
    return memory


def opened(handle, device):
    with open(handle[0], "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), handle[1]), dtype=torch.uint8)


def parts():
    """Render by the device's kernels, in the interpreter, from pixels that both processes hold in part."""
    resident.ResidentPixels._decode = decode
    spread.memory_of, spread.allocate, spread._open = memory_of_this_rank, shared_memory, opened
    spread.reduce_tensor = lambda part: part.file
    split, given = PACK.split("train"), options()
    work = Work(split, VIEWS[:1], given, 4, Crew(given), split.labels())
    rows = resident.ResidentRenderer(work)
    device = DeviceRenderer(rows, FakeStreams(eager=True))
    request = Request(np.array([2, 0, len(split) - 1, 9]), np.zeros(4, np.int64), np.ones(4, np.bool_))
    found = device.submit(request).result(60.0)
    expected = CpuRenderer(work).submit(request).result(60.0)
    places = rows.pixels.starts[expected.index]
    return {
        "same": same(found, expected, 0.01 / 255),
        "index": found.index.tolist(),
        "drawn from": (np.searchsorted(rows.pixels.origins, places, side="right") - 1).tolist(),
        "bytes": [len(part) - SLACK for part in rows.pixels.parts],
    }


def fails(*_):
    raise OSError("the disk is gone")


def interrupted(*_):
    raise KeyboardInterrupt


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def without(rank, stand_in):
    """Return the error on each rank if one rank runs `stand_in` instead of decoding."""
    resident.ResidentPixels._decode = stand_in if rank == RANK else decode
    return told()


def absent(rank):
    return "" if rank == RANK else told(timeout_s=0.2)


def main():
    resident.ResidentPixels._load = counted
    needed = resident.pixel_bytes(Work(PACK.split("train"), VIEWS, options(), 4, Crew(options())))
    if DEVICE == "cpu":  # room for both ranks together, not for one alone
        spread.MEMORY_FRACTION = 1.5 * needed / psutil.virtual_memory().total
    else:
        spread.MEMORY_FRACTION = 0.75 * needed / memory_of(0)[1]
        spread.memory_of = memory_of_this_rank
    actions = {
        "batches": batches,
        "a second time": a_second_time,
        "0 fails": lambda: without(0, fails),
        "1 fails": lambda: without(1, fails),
        "1 is interrupted": lambda: without(1, interrupted),
        "0 is absent": lambda: absent(0),
        "1 is absent": lambda: absent(1),
        "parts": parts if DEVICE == "cpu" and find_spec("triton") else str,
    }
    seen = {}
    for number, (name, action) in enumerate(actions.items()):
        os.environ["MASTER_PORT"] = str(number)  # each action is a separate launch
        seen[name] = action()
    (OUT / f"{RANK}.json").write_text(json.dumps(seen))
    print(without(1, killed))


main()
