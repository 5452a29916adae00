"""Interleaved runs of contenders, each in its own process, with its memory watched from outside."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loaders.common.json_text import parse_json
from tools.bench.contender import Contender, prepares_nothing, refusal
from tools.bench.corpus import Corpus, warm_page_cache
from tools.bench.measure import FAILED, MISSING
from tools.bench.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
STATUS = {0: "ok", MISSING: "missing", FAILED: "failed"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its contenders, images, rounds and times.

    Attributes:
        contenders: contenders in the order of the first round; each later round starts with the next one.
        workload: the work.
        corpus: the images.
        runs: rounds.
        seconds: timed seconds per run.
        warmup_s: untimed seconds before them.
        limit_s: seconds after which a run counts as failed.
        started: UTC time in all its records, which tells apart several benchmarks in one file.
    """

    contenders: Sequence[Contender]
    workload: Workload
    corpus: Corpus
    runs: int = 5
    seconds: float = 10.0
    warmup_s: float = 2.0
    limit_s: float = 600.0
    started: str = field(default_factory=lambda: _utc())


def prepare(benchmark: Benchmark) -> dict[str, Record]:
    """Write every contender's form of the images; return a record for each that cannot take part."""
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
    """Yield one record per run, round by round, so that all contenders meet the same drift of the machine.

    A contender that fails is left out of the rounds that follow.
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
        with log.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(benchmark),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            memory = _watch(process, benchmark.limit_s)
        _end_family(process)
        status = STATUS.get(process.returncode, "failed")
        timing = parse_json(out.read_text()) if out.exists() else {}
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = "" if status == "ok" else (lines[-1] if lines else f"exit code {process.returncode}")
        return {"status": status, "reason": reason, **timing, **memory}


def _environment(benchmark: Benchmark) -> dict[str, str]:
    threads = str(benchmark.workload.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **dict.fromkeys(names, threads), "PYTHONPATH": paths}


def _watch(process: subprocess.Popen[bytes], limit_s: float) -> dict[str, int]:
    """Sample the memory of a process and its children until it ends; end it at the time limit."""
    peak_rss = peak_anonymous = 0
    deadline = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < deadline:
        rss = anonymous = 0
        began = time.monotonic()
        for member in _family(process.pid):
            member_rss, member_anonymous = _memory(member)
            rss, anonymous = rss + member_rss, anonymous + member_anonymous
        peak_rss, peak_anonymous = max(peak_rss, rss), max(peak_anonymous, anonymous)
        # The kernel walks all pages of a process to answer: at most a tenth of the time goes into asking.
        time.sleep(max(0.2, 9 * (time.monotonic() - began)))
    if process.poll() is None:
        process.kill()
    process.wait()
    return {"peak_rss_bytes": peak_rss, "peak_anonymous_bytes": peak_anonymous}


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Return resident bytes, and those without the page cache; shared parts count once."""
    try:
        rss = int(process.memory_info().rss)
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        )
    except (psutil.Error, OSError):
        return 0, 0
    kilobytes = sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem") if name in fields)
    return rss, kilobytes * 1024


def _end_family(process: subprocess.Popen[bytes]) -> None:
    # If a contender is ended from outside, its worker processes stay in its session: end them by id.
    for member in psutil.process_iter():
        try:
            if os.getsid(member.pid) == process.pid:
                member.kill()
        except (ProcessLookupError, psutil.Error, PermissionError):
            continue


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
        "versions": _versions(contender.libraries),
        "machine": machine(),
        "commit": _commit(),
        "load_before": os.getloadavg()[0],
        "benchmark": benchmark.started,
        "time": _utc(),
    }


def cpu_name() -> str:
    """Return the model of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def machine() -> Record:
    """Return the facts about this machine: processor, cores, memory, system, Python."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {}
    for library in libraries:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"
