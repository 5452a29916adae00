"""Shared by the groups of the GPU suite: output, the data of `cases.py`, clocks, and a batch to render."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.metadata import distributions
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from loaders.placing import Block
from tools.bench.workload import MEAN, STD


def say(**found: Any) -> None:
    """Print a result as a line of JSON, at once."""
    print(json.dumps({"group": sys.argv[1], **found}), flush=True)


def missing(*names: str) -> str:
    """Return a text that names the packages that are not installed; empty if all are."""
    found = []
    for name in names:
        try:
            found += [] if importlib.util.find_spec(name) else [name]
        except ModuleNotFoundError:  # the parent package is missing
            found.append(name)
    return f"{', '.join(found)}: not installed" if found else ""


def installed(pattern: str) -> str | None:
    """Return the version of the first installed package, by name, that matches a pattern, or None."""
    found = {one.name: one.version for one in distributions() if fnmatch(one.name or "", pattern)}
    return found[min(found)] if found else None


def clocked(call: Callable[[], Any], times: int, device: str) -> float:
    """Return the seconds per call by the host's clock, read when the device has finished all its work."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    begin = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - begin) / times


def timed(call: Callable[[], Any], times: int, device: str = "cuda") -> float:
    """Return the seconds per call after an untimed one, by the GPU's clock, or for a CPU by the host's."""
    call()
    if device != "cuda":
        return clocked(call, times, device)
    torch.cuda.synchronize()
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


class Cases:
    """The content of a file that `cases.py` wrote."""

    def __init__(self, path: str) -> None:
        self.content = np.load(path, allow_pickle=False)
        self.about = parse_json(self.content["about"].tobytes())

    def drawn(self, name: str, count: int | None = None) -> SimpleNamespace:
        """Return the random numbers of a view for the first `count` images, or for all if it is None."""
        names = ("box", "window", "shift", "flip", "codes", "args")
        return SimpleNamespace(**{one: self.content[f"{name}.{one}"][:count] for one in names})

    def images(self, device: str) -> tuple[list[torch.Tensor], NDArray[Any]]:
        """Return the images, uint8 [H, W, 3] each, and their heights and widths, int64 [B, 2]."""
        sizes, at, found = self.content["sizes"], 0, []
        for height, width in sizes.tolist():
            part = self.content["pixels"][at : at + 3 * height * width].reshape(height, width, 3)
            found.append(torch.from_numpy(part.copy()).to(device))
            at += 3 * height * width
        return found, sizes

    def speed(self, name: str) -> list[Any]:
        """Return a view's name, its side, the side of its images, and whether it is resized bicubically."""
        found: list[Any] = next(one for one in self.about["speed"] if one[0] == name)
        return found


class Engine:
    """A batch of views that is rendered repeatedly, from pixels on the device, to measure speed."""

    def __init__(
        self,
        cases: Cases,
        name: str,
        device: str = "cuda",
        pixels: torch.Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        channels_last: bool = True,
    ) -> None:
        """Allocate the batch and plan its launches.

        Args:
            name: name of a view that `cases.py` wrote for measurements of speed, such as "weak@96".
            pixels: uint8 [B, 3, H, W]; None takes random pixels.
            channels_last: whether the views' memory has the channels last.
        """
        _, side, self.image_side, cubic = cases.speed(name)
        drawn = cases.drawn(name)
        self.batch, self.device = len(drawn.box), device
        shape = (self.batch, 3, self.image_side, self.image_side)
        self.pixels = torch.randint(0, 256, shape, device=device).byte() if pixels is None else pixels
        self.layout = Layout(side, channels_last, cubic, False, False)
        self.gain, self.bias = (1 / (255 * torch.tensor(STD))).to(device), torch.zeros(3, device=device)
        self.bias -= torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device)
        self.out = torch.empty(self.batch * 3 * side**2, dtype=dtype, device=device)
        shape = (self.batch, side, side, 3) if channels_last else (self.batch, 3, side, side)
        self.views = self.out.view(shape).permute(0, 3, 1, 2) if channels_last else self.out.view(shape)
        self.kernels = import_kernels()
        self.plan(drawn)

    def plan(self, drawn: Any) -> None:
        """Plan launches for drawn numbers, and queue a copy of these numbers to the device, as loaders do."""
        sides = np.full(self.batch, self.image_side)
        address = self.pixels.data_ptr() + np.arange(self.batch) * self.pixels[0].nbytes
        host = parameters_of(address, sides, sides, drawn, self.layout.resolution, self.layout.cubic)
        self.extent: Extent = extent_of(host, self.layout.resolution)
        block = Block(host)
        memory = torch.empty(block.size_bytes, dtype=torch.uint8, pin_memory=self.device == "cuda")
        block.write(memory)
        self.numbers = Parameters(*block.parts(memory.to(self.device, non_blocking=True)))

    def draw(self) -> int:
        """Queue the launches that render the batch; return the number of launches."""
        return draw_views(
            self.numbers, self.extent, self.layout, self.gain, self.bias, self.out, self.kernels
        )
