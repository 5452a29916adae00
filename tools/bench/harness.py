"""Runs of contenders in turns, each run in its own process, whose memory this process samples."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loaders.common.json_text import parse_json
from tools.bench.contender import Contender, prepares_nothing, refusal
from tools.bench.corpus import Corpus, warm_page_cache
from tools.bench.measure import FAILED, MISSING
from tools.bench.process import ROOT, environment, last_line, machine, now, proportional, versions, watched
from tools.bench.workload import Workload

STATUS = {0: "ok", MISSING: "missing", FAILED: "failed"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its contenders, images, rounds and times.

    Attributes:
        contenders: contenders in the order of the first round. Each round starts one contender later than the
            round before.
        runs: number of rounds; in each, every contender that has not failed runs once.
        warmup_s: least untimed seconds, between the first batch and the timed part of each run.
        limit_s: seconds after which a run, or its preparation, is stopped and counts as failed.
        started: UTC time at which the benchmark started. Every record has it, so that records of several
            benchmarks in one file can be told apart.
    """

    contenders: Sequence[Contender]
    workload: Workload
    corpus: Corpus
    runs: int = 5
    seconds: float = 10.0
    warmup_s: float = 2.0
    limit_s: float = 600.0
    started: str = field(default_factory=now)


def prepare(benchmark: Benchmark) -> dict[str, Record]:
    """Write each contender's images, then warm the page cache; return records of those that cannot run."""
    absent: dict[str, Record] = {}
    for contender in benchmark.contenders:
        result: Record = {"status": "ok"}
        if why := refusal(contender, benchmark.workload):
            result = {"status": "refused", "reason": why}
        elif contender.prepare is not prepares_nothing:
            result = _spawn(benchmark, contender, prepare=True)
        if result["status"] != "ok":
            absent[contender.name] = _record(benchmark, contender, run=-1, result=result)
    warm_page_cache(benchmark.corpus)
    return absent


def rounds(benchmark: Benchmark, absent: dict[str, Record]) -> Iterator[Record]:
    """Yield one record per run, round by round, so that drifts of the machine affect all contenders alike.

    A contender that fails is left out of later rounds.
    """
    present = [contender for contender in benchmark.contenders if contender.name not in absent]
    failed: set[str] = set()
    for run in range(benchmark.runs):
        for place in range(len(present)):
            contender = present[(run + place) % len(present)]
            if contender.name in failed:
                continue
            record = _record(benchmark, contender, run, _spawn(benchmark, contender, prepare=False))
            if record["status"] != "ok":
                failed.add(contender.name)
            yield record


def _spawn(benchmark: Benchmark, contender: Contender, prepare: bool) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "timing.json"
        command = [sys.executable, "-m", "tools.bench.measure", "--contender", contender.name]
        command += ["--corpus", str(benchmark.corpus.root), "--out", str(out)]
        command += ["--seconds", str(benchmark.seconds), "--warmup-s", str(benchmark.warmup_s)]
        command += [f"--{'' if prepare else 'no-'}prepare"]
        for field, value in benchmark.workload.as_record().items():
            command += [f"--workload.{field.replace('_', '-')}", str(value)]
        log = Path(folder) / "log"
        threads = environment(benchmark.workload.threads)
        used = watched(command, threads, log, benchmark.limit_s, sample_s=0.2, memory=proportional)
        status = STATUS.get(used.code, "failed")
        timing = parse_json(out.read_text()) if out.exists() else {}
        reason = "" if status == "ok" else last_line(log) or f"exit code {used.code}"
        memory = {"peak_rss_bytes": used.peak_rss_bytes, "peak_anonymous_bytes": used.peak_own_bytes}
        return {"status": status, "reason": reason, **timing, **memory}


def _record(benchmark: Benchmark, contender: Contender, run: int, result: Record) -> Record:
    derived: Record = {}
    if result["status"] == "ok" and "images" in result:
        derived["images_per_s"] = result["images"] / result["seconds"]
        derived["cpu_s_per_1000"] = 1000 * result["cpu_s"] / result["images"]
    return {
        "contender": contender.name,
        "kind": contender.kind,
        "run": run,
        **result,
        **derived,
        "workload": benchmark.workload.as_record(),
        "pack": benchmark.corpus.pack.name,
        "epoch_images": benchmark.corpus.num_images,
        "one_size": benchmark.corpus.uniform,
        "page_cache": "warm",
        "warmup_s": benchmark.warmup_s,
        "setup": contender.setup,
        "differences": contender.differences,
        "versions": versions(contender.libraries),
        "machine": machine(),
        "commit": _commit(),
        "load_before": os.getloadavg()[0],
        "benchmark": benchmark.started,
        "time": now(),
    }


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"
