"""The group of the GPU suite that compares how fast other libraries and ours render views on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from loaders.views.presets import barlow_a, barlow_b
from tools.bench.workload import Workload
from tools.gpu.shared import Cases, Engine, clocked, missing, say

ROUNDS = 3
TURN_S = 0.4  # seconds per contender and round
DTYPE = torch.float16  # all contenders can deliver it
PER_IMAGE = "of each image"


class Contender(NamedTuple):
    """A library in one set-up.

    Attributes:
        name: name of the library, and of the set-up if the library has several.
        needs: packages that must be importable.
        draws: "of each image" or "of the whole batch", whichever has its own random numbers.
        build: takes the pixels, uint8 [B, 3, H, W], and the workload; returns a function that renders every
            view of all images, float16 [B, 3, R, R] each.
    """

    name: str
    needs: tuple[str, ...]
    draws: str
    build: Callable[[torch.Tensor, Workload], Callable[[], Any]]


def ours(cases: Cases, side: int, device: str) -> tuple[torch.Tensor, Callable[[], Any], str]:
    """Return pixels for all contenders, a function that renders our views of them, and our `draws`."""
    first = Engine(cases, f"barlow_a@{side}", device, None, DTYPE, False)
    engines = [first, Engine(cases, f"barlow_b@{side}", device, first.pixels, DTYPE, False)]
    numbers, draws = _numbers(cases, side, first)

    def views() -> tuple[torch.Tensor, ...]:
        for one, drawn in zip(engines, next(numbers), strict=True):
            one.plan(drawn)
            one.draw()
        return tuple(one.views for one in engines)

    return first.pixels, views, draws


def _numbers(cases: Cases, side: int, engine: Engine) -> tuple[Iterator[tuple[Any, ...]], str]:
    """Return an endless iterator over the random numbers of our batches, and our `Contender.draws`.

    Without numba, every batch has the numbers that `cases.py` stored.
    """
    names = (f"barlow_a@{side}", f"barlow_b@{side}")
    if missing("numba"):
        stored = tuple(cases.drawn(name) for name in names)
        return (stored for _ in count()), "drawn beforehand, since numba is not installed"
    from loaders.views.draw import draw

    rows, sides = np.arange(engine.batch), np.full(engine.batch, engine.image_side)

    def fresh() -> Iterator[tuple[Any, ...]]:
        for epoch in count():
            epochs = np.full(engine.batch, epoch)
            policies = enumerate((barlow_a(side), barlow_b(side)))
            yield tuple(draw(policy, 0, epochs, rows, view, sides, sides) for view, policy in policies)

    return fresh(), PER_IMAGE


def _torchvision(pixels: torch.Tensor, workload: Workload) -> Callable[[], Any]:
    from tools.peers.torchvision_views import tensor_views

    views = tensor_views(workload)
    return lambda: tuple(view.to(DTYPE) for view in views(pixels))


def _torchvision_each(pixels: torch.Tensor, workload: Workload) -> Callable[[], Any]:
    from tools.peers.torchvision_views import tensor_views

    views = tensor_views(workload)
    return lambda: tuple(
        torch.stack(view).to(DTYPE) for view in zip(*(views(image) for image in pixels), strict=True)
    )


def _kornia(mode: Any) -> Callable[[torch.Tensor, Workload], Callable[[], Any]]:
    def build(pixels: torch.Tensor, workload: Workload) -> Callable[[], Any]:
        from tools.peers.kornia_views import kornia_view

        chains = [kornia_view(view, workload, cropping_mode=mode) for view in workload.view_list]
        return lambda: tuple(chain(pixels).to(DTYPE) for chain in chains)

    return build


def _dali(pixels: torch.Tensor, workload: Workload) -> Callable[[], Any]:
    """Build a pipeline whose images are already on the device, in DALI's layout [H, W, 3]."""
    from nvidia.dali import fn, pipeline_def, types

    from tools.peers.dali_views import dali_view

    on_gpu = pixels.device.type == "cuda"
    images = pixels.permute(0, 2, 3, 1).contiguous()
    batch = images if on_gpu else images.numpy()

    def pipeline() -> tuple[Any, ...]:
        image = fn.external_source(
            lambda: batch, device="gpu" if on_gpu else "cpu", layout="HWC", no_copy=True
        )
        return tuple(dali_view(image, view, workload, types.FLOAT16) for view in workload.view_list)

    built = pipeline_def(pipeline, enable_conditionals=True)(
        batch_size=len(pixels),
        num_threads=workload.threads,
        device_id=torch.cuda.current_device() if on_gpu else None,
        seed=1,
    )
    built.build()
    run: Callable[[], Any] = built.run
    return run


CONTENDERS = (
    Contender("torchvision v2", ("torchvision", "PIL"), "of the whole batch", _torchvision),
    Contender("torchvision v2, image by image", ("torchvision", "PIL"), PER_IMAGE, _torchvision_each),
    Contender("kornia", ("kornia",), PER_IMAGE, _kornia("slice")),
    Contender("kornia, crops by a warp", ("kornia",), PER_IMAGE, _kornia("resample")),
    Contender("dali", ("nvidia.dali",), PER_IMAGE, _dali),
)


def peers(cases: Cases, device: str = "cuda", sides: tuple[int, ...] = (96, 224)) -> None:
    """Measure two Barlow views of the same images on the device: ours and each library's, taking turns."""
    for contender in CONTENDERS:
        if missing(*contender.needs):
            say(library=contender.name, skipped=missing(*contender.needs))
            continue
        for side in sides:
            try:
                say(library=contender.name, side=side, **beside(contender, cases, side, device))
            except Exception as error:
                say(library=contender.name, side=side, failed=f"{type(error).__name__}: {error}"[:200])


def beside(contender: Contender, cases: Cases, side: int, device: str) -> dict[str, Any]:
    """Return a library's and our views per second (medians over turns), and how each draws random numbers."""
    pixels, our_views, our_draws = ours(cases, side, device)
    workload = Workload("barlow", side, len(pixels), os.cpu_count() or 1)
    calls = {"ours": our_views, "theirs": contender.build(pixels, workload)}
    times = {}
    for name, call in calls.items():
        clocked(call, 3, device)  # not timed: compiles, allocates and fills queues
        times[name] = max(1, round(TURN_S / clocked(call, 1, device)))
    turns = [(name, clocked(calls[name], times[name], device)) for _ in range(ROUNDS) for name in calls]
    seconds = {name: median(took for who, took in turns if who == name) for name in calls}
    rates = {f"{name}_views_per_s": round(2 * len(pixels) / took) for name, took in seconds.items()}
    return {**rates, "ours_over_theirs": round(seconds["theirs"] / seconds["ours"], 2),
            "random_numbers": {"ours": our_draws, "theirs": contender.draws}}  # fmt: skip
