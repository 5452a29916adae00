"""One group of the GPU suite: prints a line of JSON per finding; needs only torch, Triton and numpy.

usage: suite.py GROUP CASES.npz      see tools/gpu_suite.sh
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def _bare(name: str) -> None:
    """Make a package whose modules can be imported without running its __init__."""
    package = ModuleType(name)
    package.__path__ = [str(ROOT / name)]
    sys.modules[name] = package


if importlib.util.find_spec("torch") is None:
    print(json.dumps({"group": "all", "needs": "torch"}), flush=True)
    sys.exit(3)
_bare("loaders")
_bare("engine")


import numpy as np
import torch

from loaders.batch import Batch
from loaders.common.json_text import parse_json
from loaders.kernels.device.launch import (
    Extent,
    Layout,
    Parameters,
    draw_views,
    extent_of,
    import_kernels,
    parameters_of,
)
from loaders.placing import CudaStreams, Placer

STALL_STEPS = 50


def say(**found: Any) -> None:
    """Print a line at once."""
    print(json.dumps({"group": sys.argv[1], **found}), flush=True)


class Cases:
    """The cases that `cases.py` has written."""

    def __init__(self, path: str) -> None:
        self.content = np.load(path, allow_pickle=False)
        self.about = parse_json(self.content["about"].tobytes())

    def drawn(self, name: str, count: int | None = None) -> SimpleNamespace:
        """Return the drawn numbers of a view, of its first `count` images."""
        names = ("box", "window", "shift", "flip", "codes", "args")
        return SimpleNamespace(**{one: self.content[f"{name}.{one}"][:count] for one in names})

    def images(self, device: str) -> tuple[list[torch.Tensor], np.ndarray[Any, Any]]:
        """Return the images, uint8 [H, W, 3] each, and int64 [B, 2] sizes."""
        sizes, at, found = self.content["sizes"], 0, []
        for height, width in sizes.tolist():
            part = self.content["pixels"][at : at + 3 * height * width].reshape(height, width, 3)
            found.append(torch.from_numpy(part.copy()).to(device))
            at += 3 * height * width
        return found, sizes


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
    """Two presets in Triton's interpreter: the part of the parity that needs no GPU."""
    _parity(cases, "cpu", 2, ("weak", "barlow_a"))


def machine(_: Cases) -> None:
    """The device, and its speed of copying."""
    import triton

    say(
        device=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability(),
        torch=torch.__version__, cuda=torch.version.cuda, triton=triton.__version__, cores=os.cpu_count(),
        memory_gb=round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
    )  # fmt: skip
    for pinned in (False, True):
        source = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=pinned)
        seconds = _timed(partial(source.to, "cuda", non_blocking=True), 10)
        say(copy="pinned" if pinned else "pageable", gb_per_s=round(source.nbytes / seconds / 1e9, 2))
    for name in ("nvidia.dali", "webdataset", "tyro", "numba", "kornia", "torchvision", "pytest"):
        try:
            say(library=name, there=importlib.util.find_spec(name) is not None)
        except ModuleNotFoundError:
            say(library=name, there=False)


def parity(cases: Cases) -> None:
    """Every preset on the GPU against the cpu backend."""
    _parity(cases, "cuda")


def sanitizer(_: Cases) -> None:
    """One batch under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        say(skipped="compute-sanitizer is not installed")
        return
    command = [tool, "--error-exitcode", "9", sys.executable, __file__, "parity", sys.argv[2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    say(exit_code=done.returncode, last=done.stdout.splitlines()[-1:])


def _timed(call: Callable[[], Any], times: int) -> float:
    """Return seconds a call takes on the device."""
    call()
    torch.cuda.synchronize()
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def _host_batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        view = torch.full((64, 3, 64, 64), float(number), pin_memory=True)
        index = torch.arange(64) + number
        yield Batch((view,), index % 10, index, torch.ones(64, dtype=torch.bool))


def lifetime(cases: Cases) -> None:
    """200 steps with queued work: the checksums of a run that waits for each."""
    weight = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in Placer(CudaStreams(torch.device("cuda"))).ahead(_host_batches(200)):
        for _ in range(4):
            weight @ weight  # the stream is busy while later batches are copied
        sums.append((batch.views[0].double().sum() + batch.index.sum(), batch.valid.sum()))
        del batch
    expected = [64 * 3 * 64 * 64 * n + sum(range(n, n + 64)) for n in range(200)]
    wrong = [n for n, (total, valid) in enumerate(sums) if float(total) != expected[n] or int(valid) != 64]
    say(steps=len(sums), wrong=wrong)


def no_sync(cases: Cases) -> None:
    """No wait between log steps: torch raises at the first call that waits for the device."""
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


class Engine:
    """The batch of views that the groups on speed draw repeatedly."""

    def __init__(self, cases: Cases, name: str, side: int, image_side: int, cubic: bool) -> None:
        drawn = cases.drawn(name)
        self.batch = len(drawn.box)
        self.pixels = torch.randint(0, 256, (self.batch, 3, image_side, image_side), device="cuda").byte()
        sides = np.full(self.batch, image_side)
        address = self.pixels.data_ptr() + np.arange(self.batch) * 3 * image_side**2
        host = parameters_of(address, sides, sides, drawn, side, cubic)
        self.extent: Extent = extent_of(host, side)
        self.numbers = Parameters(*(tensor.cuda() for tensor in host))
        self.layout = Layout(side, True, cubic, False, False)
        self.gain, self.bias = torch.full((3,), 1 / 255, device="cuda"), torch.zeros(3, device="cuda")
        self.out = torch.empty(self.batch * 3 * side**2, dtype=torch.bfloat16, device="cuda")
        self.views = self.out.view(self.batch, side, side, 3).permute(0, 3, 1, 2)
        self.kernels = import_kernels()

    def draw(self) -> int:
        """Queue the launches of the batch."""
        return draw_views(
            self.numbers, self.extent, self.layout, self.gain, self.bias, self.out, self.kernels
        )


def engine(cases: Cases) -> None:
    """Views per second of the kernels alone, with and without a graph."""
    for name, side, image_side, cubic in cases.about["speed"]:
        one = Engine(cases, name, side, image_side, cubic)
        launches = one.draw()
        eager = one.batch / _timed(one.draw, 20)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one.draw()
        say(view=name, launches=launches, views_per_s=round(eager),
            with_graph=round(one.batch / _timed(graph.replay, 20)))  # fmt: skip


def _network(name: str) -> torch.nn.Module:
    network: torch.nn.Module
    if name == "wrn_28_2":
        from engine.nets.wide_resnet import WideResNet

        network = WideResNet(28, 2)
    else:
        import torchvision

        network = getattr(torchvision.models, name)(num_classes=100)
    return network.cuda().to(memory_format=torch.channels_last)


def _step(network: torch.nn.Module, views: torch.Tensor) -> None:
    with torch.autocast("cuda", torch.bfloat16):
        loss = network(views).float().square().mean()
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None


def stall(cases: Cases) -> None:
    """The time that drawing on the device adds to training: 50 fresh steps against steps on one batch."""
    for name, side in (("wrn_28_2", 32), ("resnet18", 96), ("resnet50", 96), ("resnet50", 224)):
        try:
            network = _network(name)
            found = next(one for one in cases.about["speed"] if one[0] == f"barlow_a@{side}")
            one = Engine(cases, *found)
            one.draw()
            ahead: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

            def fresh(one: Engine = one, network: torch.nn.Module = network, ahead: Any = ahead) -> None:
                with torch.cuda.stream(ahead):
                    one.draw()
                _step(network, one.views)

            alone = _timed(partial(_step, network, one.views), STALL_STEPS)
            both = _timed(fresh, STALL_STEPS)
            say(
                network=name,
                side=side,
                images_per_s=round(one.batch / both),
                stall=round(1 - alone / both, 4),
            )
        except Exception as error:
            say(network=name, side=side, failed=str(error)[:200])


def compiled(cases: Cases) -> None:
    """A network: eager against compiled."""
    network = _network("resnet18")
    views = torch.randn(256, 3, 96, 96, device="cuda").to(memory_format=torch.channels_last)
    eager = _timed(lambda: _step(network, views), 20)
    network.compile()
    say(network="resnet18", eager_ms=round(1e3 * eager, 2),
        compiled_ms=round(1e3 * _timed(lambda: _step(network, views), 20), 2))  # fmt: skip


def nccl(_: Cases) -> None:
    """A group of one rank over NCCL."""
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl")
    value = torch.ones(4, device="cuda")
    dist.all_reduce(value)
    say(sum=float(value.sum()), expected=4.0)
    dist.destroy_process_group()


ON_CPU = {"interpreter": interpreter}
ON_GPU = {
    "machine": machine, "parity": parity, "sanitizer": sanitizer, "lifetime": lifetime, "no_sync": no_sync,
    "engine": engine, "stall": stall, "compiled": compiled, "nccl": nccl,
}  # fmt: skip


def main() -> int:
    """Run the group of the command line; exit code 3 means that a GPU is needed."""
    group, cases = sys.argv[1], Cases(sys.argv[2])
    if group in ON_GPU and not torch.cuda.is_available():
        say(needs="a CUDA device")
        return 3
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
