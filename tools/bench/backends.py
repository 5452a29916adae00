"""Our own backends as contenders, on the benchmark's pack or a copy, with the presets of the recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import NamedTuple

from loaders import BackendName, LoaderOptions, build_loader, open_pack
from loaders.views import presets
from loaders.views.policy import ViewPolicy
from tools.bench.contender import Contender, Views, refuses_nothing
from tools.bench.corpus import Corpus, write_beton, write_pixels
from tools.bench.workload import Workload


def policies(workload: Workload) -> tuple[ViewPolicy, ...]:
    """Return the presets of a workload's views, with its interpolation."""
    side = workload.resolution
    match workload.views:
        case "barlow":
            chosen: tuple[ViewPolicy, ...] = (presets.barlow_a(side), presets.barlow_b(side))
        case "crop_flip_pair":
            chosen = (presets.crop_flip(side), presets.crop_flip(side))
        case "crop_flip":
            return (replace(presets.crop_flip(side), interpolation=workload.interpolation),)
        case "fixmatch":
            chosen = (presets.weak(side), presets.fixmatch_strong(side))
        case "rotations":
            chosen = presets.rotations(side)
        case "tiles":
            chosen = presets.tiles(workload.side, side, gray_p=0.0)
    return tuple(replace(policy, interpolation=workload.interpolation) for policy in chosen)


class BuiltAs(NamedTuple):
    """Arguments of `build_loader` and texts in the records for one contender.

    Attributes:
        backend, device: fields of `LoaderOptions`.
        libraries: distributions whose versions are recorded, besides Sluice.
        setup, differences: fields of `Contender`.
    """

    backend: BackendName
    device: str
    libraries: tuple[str, ...]
    setup: str
    differences: str = ""


BUILT_AS = {
    "cpu": BuiltAs("cpu", "cpu", ("numba", "turbojpeg"), "build_loader with its defaults, on the pack"),
    "dali_backend": BuiltAs("dali", "cpu", ("nvidia-dali-cuda130",), "build_loader(backend='dali')"),
    "dali_gpu_backend": BuiltAs(
        "dali",
        "cuda",
        ("nvidia-dali-cuda130",),
        "build_loader(backend='dali', device='cuda')",
        "nvJPEG's rounding",
    ),
    "resident_backend": BuiltAs("resident", "cpu", ("numba",), "build_loader(backend='resident')"),
    "resident_gpu_backend": BuiltAs(
        "resident", "cuda", ("triton",), "build_loader(backend='resident', device='cuda')"
    ),
    "hybrid_gpu_backend": BuiltAs(
        "hybrid", "cuda", ("triton",), "build_loader(backend='hybrid', device='cuda')"
    ),
    "cpu_gpu_backend": BuiltAs("cpu", "cuda", ("numba",), "build_loader(backend='cpu', device='cuda')"),
    "stream_backend": BuiltAs(
        "stream",
        "cpu",
        ("numba", "turbojpeg"),
        "build_loader(backend='stream'), on the pack as a folder",
        "rows shuffled over windows of shards",
    ),
    "ffcv_backend": BuiltAs(
        "ffcv",
        "cpu",
        ("ffcv", "numba", "turbojpeg"),
        "build_loader(backend='ffcv'): our views in FFCV's Loader",
    ),
}
"""How each of our backends is built, by the name of its contender."""


def _batches(name: str, workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield the views of batches of one of our backends without end; a GPU has finished them when yielded.

    The ffcv backend reads the same .beton file as FFCV. The stream backend reads a local folder.
    """
    import torch

    backend, device = BUILT_AS[name][:2]
    encoding = workload.encoding
    path = corpus.beton_pack(encoding) if backend == "ffcv" else corpus.tar_pack(encoding)
    split = corpus.split if path == corpus.pack else "train"
    loader = build_loader(
        open_pack(path).split(split),
        policies(workload),
        workload.batch_size,
        options=LoaderOptions(
            seed=workload.seed,
            backend=backend,
            device=device,
            num_threads=workload.threads,
            dtype="uint8" if workload.is_uint8 else "float32",
        ),
    )
    for epoch in count():
        for batch in loader.epoch(epoch):
            if device == "cuda":  # time finished batches only; meanwhile the loader prepares the next ones
                torch.cuda.current_stream().synchronize()
            yield batch.views


def refuses_gpu(workload: Workload) -> str | None:
    """Return why the work cannot be done here, or None if there is a CUDA device."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def backend_contender(name: str) -> Contender:
    """Return the contender with this name, one of our backends."""
    built = BUILT_AS[name]
    return Contender(
        name=name,
        libraries=("sluice", *built.libraries),
        setup=built.setup,
        differences=built.differences,
        batches=partial(_batches, name),
        refuses=refuses_gpu if built.device == "cuda" else refuses_nothing,
        prepare=write_beton if built.backend == "ffcv" else write_pixels,
        kind="backend",
        reads_pixels=True,
        shares_crops=True,
    )
