"""Peer: torchvision v2 transforms on uint8 tensors in a DataLoader, torchvision's recommended set-up."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from tools.bench.contender import Contender, Views
from tools.bench.corpus import Corpus
from tools.bench.workload import Workload
from tools.peers.torchvision_pil import Files, endless
from tools.peers.torchvision_views import tensor_views


def decode(encoded: bytes) -> torch.Tensor:
    """Decode JPEG bytes to a uint8 tensor [3, H, W] with torchvision's own decoder."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchcodec, but still the fastest here
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        pixels: torch.Tensor = decode_jpeg(data, mode=ImageReadMode.RGB)
    return pixels


def decode_file(path: str) -> torch.Tensor:
    """Decode a file; see `decode`."""
    with open(path, "rb") as file:
        return decode(file.read())


def batches(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    """Yield batches of views."""
    return endless(Files(corpus.paths, decode_file, tensor_views(workload)), workload)


CONTENDER = Contender(
    name="torchvision_v2",
    libraries=("torch", "torchvision"),
    setup="DataLoader, one worker process per thread, persistent, prefetch 4; one decode for all views",
    differences="",
    batches=batches,
    shares_crops=True,
)
