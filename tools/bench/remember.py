"""What a benchmark leaves for `build_loader(backend="auto")`: the rates of our backends on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from loaders.measured import (
    Measurement,
    Rate,
    describe_views,
    encoding_of,
    keep_measurement,
    measurements_path,
    read_measurements,
    this_machine,
    view_side,
)

from loaders import open_pack
from loaders.errors import UserError
from tools.bench.backends import BUILT_AS, policies
from tools.bench.contender import BackendName
from tools.bench.corpus import Corpus
from tools.bench.table import Record, summarise
from tools.bench.workload import Workload

_LEFT_OUT = "stream_backend"  # shuffles otherwise, so that no other backend can stand for it


def check_remember(backends: Sequence[BackendName], runs: int) -> None:
    """Refuse a benchmark from which nothing could be learnt, before it begins.

    Args:
        backends: contenders.
        runs: of each.

    Raises:
        UserError: no two backends to compare, no spread to judge them by, or a file that cannot be added to.
    """
    compared = set(backends) - {_LEFT_OUT}
    if "cpu" not in compared or len(compared) < 2:
        raise UserError(
            "remember: expected cpu and another backend that it may be compared with, found "
            f"{', '.join(backends) or 'none'}; name them, as in --backends cpu dali_backend"
        )
    if runs < 2:
        raise UserError(f"remember: expected at least 2 runs, to tell noise, found {runs}; raise --runs")
    read_measurements()
    folder = measurements_path().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be a folder ({error.strerror}); set XDG_CACHE_HOME") from None


def remember(records: Sequence[Record], workload: Workload, corpus: Corpus) -> str:
    """Keep the rates of our own backends for this machine.

    Args:
        records: of a benchmark.
        workload: its work.
        corpus: its images.

    Returns:
        A line on what was kept, or why nothing was.

    Raises:
        UserError: the file cannot be written.
    """
    rates = []
    for row in summarise(records):
        if row.kind == "backend" and row.contender != _LEFT_OUT:
            rates.append(Rate(*BUILT_AS[row.contender], row.images_per_s, row.images_per_s * row.spread))
    if len(rates) < 2 or not any(rate.backend == "cpu" for rate in rates):
        return "not remembered: there is nothing to compare, since cpu and another backend did not both run"
    views = policies(workload)
    measurement = Measurement(
        date=time.strftime("%Y-%m-%d"),
        machine=this_machine(torch.device("cuda")),
        views=describe_views(views),
        resolution=view_side(views),
        encoding=encoding_of(open_pack(corpus.tar_pack(workload.encoding))),
        threads=workload.threads,
        rates=tuple(rates),
    )
    keep_measurement(measurement)
    return (
        f"remembered for backend 'auto' in {measurements_path()}: {measurement.views} at "
        f"{measurement.resolution} px; delete the file to forget"
    )
