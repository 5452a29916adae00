"""Names of the contenders of the loader benchmark."""

from __future__ import annotations

from typing import Literal

PeerName = Literal[
    "torchvision_pil",
    "torchvision_v2",
    "webdataset",
    "dali",
    "ffcv",
    "spdl",
    "litdata",
    "turboloader",
    "kornia",
]
LimitName = Literal["decode_only", "copy_only"]
BackendName = Literal[
    "cpu",
    "cpu_gpu_backend",
    "dali_backend",
    "dali_gpu_backend",
    "ffcv_backend",
    "hybrid_gpu_backend",
    "resident_backend",
    "resident_gpu_backend",
    "stream_backend",
]
