"""Our own backends as contenders, on the same pack and with the presets that the recipes use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count

from loaders import BackendName, LoaderOptions, build_loader, open_pack
from loaders.views import presets
from loaders.views.policy import ViewPolicy
from tools.bench.contender import Contender, Views, refuses_nothing
from tools.bench.corpus import Corpus, write_beton, write_pixels
from tools.bench.workload import Workload


def policies(workload: Workload) -> tuple[ViewPolicy, ...]:
    """Return the presets that a workload stands for, with its interpolation."""
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


BUILT_AS: dict[str, tuple[BackendName, str]] = {
    "cpu": ("cpu", "cpu"),
    "dali_backend": ("dali", "cpu"),
    "dali_gpu_backend": ("dali", "cuda"),
    "resident_backend": ("resident", "cpu"),
    "resident_gpu_backend": ("resident", "cuda"),
    "hybrid_gpu_backend": ("hybrid", "cuda"),
    "cpu_gpu_backend": ("cpu", "cuda"),
    "ffcv_backend": ("ffcv", "cpu"),
    "stream_backend": ("stream", "cpu"),
}
"""Backend and device for `build_loader`, by the name of the contender."""


def _batches(name: str, workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of one of our backends, epoch after epoch; on a GPU, finished ones.

    The ffcv backend reads the .beton of its peer; stream reads the pack as a folder, without a network.
    """
    import torch

    backend, device = BUILT_AS[name]
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
            if device == "cuda":  # time finished batches only; the loader works ahead meanwhile
                torch.cuda.current_stream().synchronize()
            yield batch.views


def refuses_gpu(workload: Workload) -> str | None:
    """Return why the GPU cannot do the work."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


CPU = Contender(
    name="cpu",
    libraries=("sluice", "numba", "turbojpeg"),
    setup="build_loader with its defaults, on the pack",
    differences="",
    batches=partial(_batches, "cpu"),
    prepare=write_pixels,
    kind="backend",
    reads_pixels=True,
    shares_crops=True,
)


def _decoded_elsewhere(name: str, library: str, setup: str, differences: str, on_gpu: bool) -> Contender:
    """Return a contender that decodes by DALI, before its start, or for a GPU; our kernels draw the views."""
    return Contender(
        name=name,
        libraries=("sluice", library),
        setup=f"build_loader({setup})",
        differences=differences,
        batches=partial(_batches, name),
        refuses=refuses_gpu if on_gpu else refuses_nothing,
        prepare=write_pixels,
        kind="backend",
        reads_pixels=True,
        shares_crops=True,
    )


DALI = _decoded_elsewhere("dali_backend", "nvidia-dali-cuda130", "backend='dali'", "", False)
DALI_GPU = _decoded_elsewhere(
    "dali_gpu_backend",
    "nvidia-dali-cuda130",
    "backend='dali', device='cuda'",
    "nvJPEG's rounding",
    True,
)
RESIDENT = _decoded_elsewhere("resident_backend", "numba", "backend='resident'", "", False)
RESIDENT_GPU = _decoded_elsewhere(
    "resident_gpu_backend", "triton", "backend='resident', device='cuda'", "", True
)
HYBRID_GPU = _decoded_elsewhere("hybrid_gpu_backend", "triton", "backend='hybrid', device='cuda'", "", True)
CPU_GPU = _decoded_elsewhere("cpu_gpu_backend", "numba", "backend='cpu', device='cuda'", "", True)

STREAM = Contender(
    name="stream_backend",
    libraries=("sluice", "numba", "turbojpeg"),
    setup="build_loader(backend='stream'), on the pack as a folder",
    differences="rows shuffled over windows of shards",
    batches=partial(_batches, "stream_backend"),
    prepare=write_pixels,
    kind="backend",
    reads_pixels=True,
    shares_crops=True,
)

FFCV = Contender(
    name="ffcv_backend",
    libraries=("sluice", "ffcv", "numba", "turbojpeg"),
    setup="build_loader(backend='ffcv'): our views in FFCV's Loader",
    differences="",
    batches=partial(_batches, "ffcv_backend"),
    prepare=write_beton,
    kind="backend",
    reads_pixels=True,
    shares_crops=True,
)
