"""Our own backends as contenders, on the same pack and with the presets that the recipes use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from loaders import build_loader, open_pack
from loaders.views import presets
from loaders.views.policy import ViewPolicy
from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload


def policies(workload: Workload) -> tuple[ViewPolicy, ...]:
    """Return the presets that a workload stands for, with its interpolation."""
    side = workload.resolution
    match workload.views:
        case "barlow":
            chosen = (presets.barlow_a(side), presets.barlow_b(side))
        case "crop_flip_pair":
            chosen = (presets.crop_flip(side), presets.crop_flip(side))
        case "crop_flip":
            return (replace(presets.crop_flip(side), interpolation=workload.interpolation),)
        case "fixmatch":
            chosen = (presets.weak(side), presets.fixmatch_strong(side))
    return tuple(replace(policy, interpolation=workload.interpolation) for policy in chosen)


def cpu_batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of the cpu backend, epoch after epoch."""
    loader = build_loader(
        open_pack(corpus.pack).split(corpus.split),
        policies(workload),
        workload.batch_size,
        workload.seed,
        backend="cpu",
        num_threads=workload.threads,
        dtype="uint8" if workload.is_uint8 else "float32",
    )
    for epoch in count():
        for batch in loader.epoch(epoch):
            yield batch.views


CPU = Contender(
    name="cpu",
    libraries=("sluice", "numba", "simplejpeg"),
    setup="build_loader with its defaults, on the pack",
    differences="",
    batches=cpu_batches,
    refuses=lambda workload: None,
    kind="backend",
)
