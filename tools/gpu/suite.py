"""Run a group of the GPU suite and print JSON lines; most groups need only torch, Triton and numpy.

usage: suite.py GROUP CASES.npz      see tools/gpu_suite.sh
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if find_spec("torch") is None:
    print(json.dumps({"group": "all", "needs": "torch"}), flush=True)
    sys.exit(3)


import numpy as np
import torch

from loaders.batch import Batch
from loaders.kernels.device.launch import (
    Layout,
    Parameters,
    draw_views,
    extent_of,
    import_kernels,
    parameters_of,
)
from loaders.placing import CudaStreams, Placer
from tools.gpu.peers import peers
from tools.gpu.shared import Cases, Engine, installed, missing, say, timed
from tools.gpu.training import OTHERS, compiled, fed, resume, stall


def _parity(cases: Cases, device: str, count: int | None = None, wanted: tuple[str, ...] = ()) -> None:
    images, sizes = cases.images(device)
    images, sizes = images[:count], sizes[:count]
    address = np.array([image.data_ptr() for image in images])
    for name, side, cubic, rounded in cases.about["parity"]:
        if wanted and name not in wanted:
            continue
        heights, widths = sizes.T.astype(np.int64)
        p = parameters_of(address, heights, widths, cases.drawn(name, count), side, cubic)
        extent = extent_of(p, side)
        p = Parameters(*(tensor.to(device) for tensor in p))
        gain, bias = (torch.from_numpy(cases.content[f"{name}.{one}"]).to(device) for one in ("gain", "bias"))
        out = torch.zeros(len(images) * 3 * side**2, device=device)
        layout = Layout(side, False, cubic, True, rounded)
        launches = draw_views(p, extent, layout, gain, bias, out, import_kernels())
        expected = torch.from_numpy(cases.content[f"{name}.views"][:count])
        scale = 1.0 if float(gain[0]) == 1.0 else 255.0
        apart = scale * (out.cpu().view(expected.shape) - expected).abs().amax(1)
        share = float((apart > 0.01).float().mean())
        say(view=name, max_of_255=float(apart.max()), share_beyond_0_01=share, launches=launches)


def interpreter(cases: Cases) -> None:
    """Compare two presets with the cpu backend in Triton's interpreter (TRITON_INTERPRET=1); needs no GPU."""
    _parity(cases, "cpu", 2, ("weak", "barlow_a"))


def machine(_: Cases) -> None:
    """Report the device, the speed of copies to it, and the versions of libraries."""
    import triton

    say(
        device=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability(),
        torch=torch.__version__, cuda=torch.version.cuda, triton=triton.__version__, cores=os.cpu_count(),
        memory_gb=round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
    )  # fmt: skip
    for pinned in (False, True):
        source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=pinned)
        seconds = timed(partial(source.to, "cuda", non_blocking=True), 10)
        say(copy="pinned" if pinned else "pageable", gb_per_s=round(source.nbytes / seconds / 1e9, 2))
    for name in ("nvidia-dali-cuda*", "webdataset", "tyro", "numba", "kornia", "torchvision", "pytest"):
        say(library=name, version=installed(name))


def parity(cases: Cases) -> None:
    """Compare every view that `cases.py` wrote, rendered on the GPU, with the cpu backend's."""
    _parity(cases, "cuda")


def sanitizer(_: Cases) -> None:
    """Run the group `parity` under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        say(skipped="compute-sanitizer is not installed")
        return
    command = [tool, "--error-exitcode", "9", sys.executable, __file__, "parity", sys.argv[2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    say(exit_code=done.returncode, last=done.stdout.splitlines()[-1:])


def _host_batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        view = torch.full((64, 3, 64, 64), float(number), pin_memory=True)
        index = torch.arange(64) + number
        yield Batch((view,), index % 10, index, torch.ones(64, dtype=torch.bool))


def lifetime(cases: Cases) -> None:
    """Run 200 steps without waiting; the batches' checksums show whether memory was reused too early."""
    weight = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in Placer(CudaStreams(torch.device("cuda"))).ahead(_host_batches(200)):
        for _ in range(4):
            weight @ weight  # keeps the stream busy while later batches are copied
        sums.append((batch.views[0].double().sum() + batch.index.sum(), batch.valid.sum()))
        del batch
    expected = [64 * 3 * 64 * 64 * n + sum(range(n, n + 64)) for n in range(200)]
    wrong = [n for n, (total, valid) in enumerate(sums) if float(total) != expected[n] or int(valid) != 64]
    say(steps=len(sums), wrong=wrong)


def no_sync(cases: Cases) -> None:
    """Check that taking batches never waits for the device: torch raises at the first call that does."""
    placed = Placer(CudaStreams(torch.device("cuda"))).ahead(_host_batches(60))
    for _ in range(5):
        next(placed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = torch.zeros((), device="cuda")
        for batch in placed:
            total += batch.views[0].mean()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    say(steps=55, ok=bool(torch.isfinite(total)))


def engine(cases: Cases) -> None:
    """Measure the views per second of the kernels alone, with and without a CUDA graph."""
    for name, *_ in cases.about["speed"]:
        one = Engine(cases, name)
        launches = one.draw()
        eager = one.batch / timed(one.draw, 20)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one.draw()
        say(view=name, launches=launches, views_per_s=round(eager),
            with_graph=round(one.batch / timed(graph.replay, 20)))  # fmt: skip


def _batchnorm_of_views() -> None:
    """Compare our BatchNorm on a batch of two views with torch's on each view: results and time.

    A single rank exercises the kernels, but sends no messages.
    """
    from torch import nn

    from engine.train.batchnorm import GlobalBatchNorm

    torch.manual_seed(0)
    x = torch.randn(2, 128, 64, 56, 56, device="cuda", dtype=torch.bfloat16)
    x[1].mul_(3).add_(1)  # different statistics per view, so that a mix-up of views shows in the results
    x = x.flatten(0, 1).to(memory_format=torch.channels_last).requires_grad_()
    target = (x.detach() + torch.randn_like(x)).to(memory_format=torch.channels_last)
    ours, theirs = GlobalBatchNorm(nn.BatchNorm2d(64).cuda()), nn.BatchNorm2d(64).cuda()
    ours.num_views = 2

    def joined() -> list[torch.Tensor]:
        y = ours(x)
        return [y, *torch.autograd.grad(y, (x, *ours.parameters()), target)]

    def apart() -> list[torch.Tensor]:
        views = [view.requires_grad_() for view in x.detach().chunk(2)]
        outputs = [theirs(view) for view in views]
        gradients = torch.autograd.grad(outputs, (*views, *theirs.parameters()), target.chunk(2))
        return [torch.cat(outputs), torch.cat(gradients[:2]), *gradients[2:]]

    pairs = [*zip(joined(), apart(), strict=True), *zip(ours.buffers(), theirs.buffers(), strict=True)]
    off = [float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs]
    times = {"joined": timed(joined, 20), "apart_with_two_copies": timed(apart, 20)}
    say(batchnorm_ms={name: round(1e3 * s, 3) for name, s in times.items()}, off=off, ok=max(off) < 0.02)


def nccl(_: Cases) -> None:
    """Run a process group of one rank over NCCL: a sum, and BatchNorm of two views."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl")
    value = torch.ones(4, device="cuda")
    dist.all_reduce(value)
    say(sum=float(value.sum()), expected=4.0)
    if absent := missing("timm", "accelerate", "tyro"):
        say(skipped=absent)
    else:
        _batchnorm_of_views()
    dist.destroy_process_group()


ON_CPU = {"interpreter": interpreter}
ON_GPU: dict[str, Callable[[Cases], None]] = {
    "machine": machine, "parity": parity, "sanitizer": sanitizer, "lifetime": lifetime, "no_sync": no_sync,
    "engine": engine, "stall": stall, "compiled": compiled, "nccl": nccl, "fed": fed, "resume": resume,
    "peers": peers, "fed_others": partial(fed, networks=OTHERS),
}  # fmt: skip
EXPECTED_S = {"resume": 40, "fed": 150, "peers": 60, "fed_others": 150}
"""Estimated seconds on one H200 with 16 cores; `fed` and `resume` include compiling the CPU kernels once."""


def main() -> int:
    """Run the group that the command line names; return 0, 1 if it failed, or 3 without the GPU it needs."""
    group, cases = sys.argv[1], Cases(sys.argv[2])
    if group in ON_GPU and not torch.cuda.is_available():
        say(needs="a CUDA device")
        return 3
    if group in EXPECTED_S:
        say(expected_s=EXPECTED_S[group])
    begin = time.monotonic()
    try:
        (ON_CPU | ON_GPU)[group](cases)
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}"[:300])
        return 1
    say(seconds=round(time.monotonic() - begin, 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
