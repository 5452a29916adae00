"""Contenders of the loader benchmark, and the function that finds one by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tools.bench.corpus import Corpus
from tools.bench.names import BackendName
from tools.bench.workload import Workload

Views = tuple[Any, ...]
"""One array or tensor per view, [B, 3, R, R] or [B, R, R, 3]."""


def refuses_nothing(workload: Workload) -> str | None:
    """Return None, for a contender that lacks no operation of the workloads."""
    return None


def prepares_nothing(workload: Workload, corpus: Corpus) -> None:
    """Do nothing, for a contender that reads the JPEG files of the corpus, or no files."""


@dataclass(frozen=True)
class Contender:
    """One loader or upper limit to measure, in its best reasonable set-up.

    Attributes:
        libraries: installed distributions whose versions are recorded.
        setup: how the contender is set up, in one line.
        differences: where its pixels differ from the definition of the views; empty if nowhere.
        batches: yields batches of views without end. It need not clean up: its process ends after the run.
        refuses: returns why the contender cannot do a workload (the operation it lacks), or None.
        prepare: writes the images in the format that the contender reads, before the timed part.
        kind: "peer": another project's loader; "backend": ours; "limit": yields an empty tuple per batch.
        reads_pixels: whether it can read images stored as pixels in this benchmark.
        shares_crops: whether it can make several views of one crop, rotated or cut into tiles, in this
            benchmark.
    """

    name: str
    libraries: tuple[str, ...]
    setup: str
    differences: str
    batches: Callable[[Workload, Corpus], Iterator[Views]]
    refuses: Callable[[Workload], str | None] = refuses_nothing
    prepare: Callable[[Workload, Corpus], None] = prepares_nothing
    kind: Literal["peer", "backend", "limit"] = "peer"
    reads_pixels: bool = False
    shares_crops: bool = False


def refusal(contender: Contender, workload: Workload) -> str | None:
    """Return why a contender takes no part in a workload, or None if it takes part."""
    if workload.encoding == "raw" and not contender.reads_pixels:
        return "not set up here for images stored as pixels"
    if workload.views in ("rotations", "tiles") and not contender.shares_crops:
        return "not set up here for several views of one crop"
    return contender.refuses(workload)


def find_contender(name: str) -> Contender:
    """Import and return one contender; most contenders import their libraries only when the batches start.

    Raises:
        ValueError: no contender has this name.
    """
    match name:
        case _ if name in get_args(BackendName):
            from tools.bench.backends import backend_contender

            return backend_contender(name)
        case "decode_only":
            from tools.peers.limits import DECODE_ONLY as found
        case "copy_only":
            from tools.peers.limits import COPY_ONLY as found
        case "torchvision_pil":
            from tools.peers.torchvision_pil import CONTENDER as found
        case "torchvision_v2":
            from tools.peers.torchvision_v2 import CONTENDER as found
        case "webdataset":
            from tools.peers.webdataset_pil import CONTENDER as found
        case "dali":
            from tools.peers.dali_native import CONTENDER as found
        case "ffcv":
            from tools.peers.ffcv_native import CONTENDER as found
        case "spdl":
            from tools.peers.spdl_threads import CONTENDER as found
        case "litdata":
            from tools.peers.litdata_stream import CONTENDER as found
        case "turboloader":
            from tools.peers.turboloader_native import CONTENDER as found
        case "kornia":
            from tools.peers.kornia_batch import CONTENDER as found
        case _:
            raise ValueError(f"contender: expected a known name, found {name!r}")
    return found
