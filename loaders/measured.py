"""What `tools/bench_loaders.py --remember` measured of the backends on this machine, for "auto" to go by.

The file is a JSON list, the latest measurement last. Damaged anywhere, it tells nothing, and is named.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from loaders.cache_folder import cache_folder
from loaders.errors import UserError
from loaders.json_text import parse_json
from loaders.packs import Pack
from loaders.packs.atomic import write_atomic
from loaders.views.policy import ViewPolicy

NO_GPU = "none"
_LARGEST = 2**40  # of any number in the file
_MOST_APART = 2.0  # ratio of two resolutions up to which one stands for the other


@dataclass(frozen=True)
class Machine:
    """What a rate holds for: another processor or GPU may have another fastest backend."""

    cpu: str
    cores: int
    gpu: str


@dataclass(frozen=True)
class Rate:
    """How fast a backend was.

    Attributes:
        backend: as `build_loader` is told.
        device: "cpu" or "cuda", likewise.
        images_per_s: median of the runs.
        spread: images/s, half the distance of the fastest run from the slowest.
    """

    backend: str
    device: str
    images_per_s: float
    spread: float


@dataclass(frozen=True)
class Measurement:
    """One benchmark of one kind of work.

    Attributes:
        date: day, as 2026-11-22.
        machine: it ran on.
        views: from `describe_views`.
        resolution: side of the largest view in pixels.
        encoding: "jpeg" or "raw".
        threads: of each backend.
        rates: of the backends, the cpu backend's among them.
    """

    date: str
    machine: Machine
    views: str
    resolution: int
    encoding: str
    threads: int
    rates: tuple[Rate, ...]

    def usable_on(self, device_type: str) -> list[Rate]:
        """Return the rates of what can deliver to a device, fastest first: DALI works where it delivers."""
        dali = "cuda" if device_type == "cuda" else "cpu"
        found = [rate for rate in self.rates if rate.backend != "dali" or rate.device == dali]
        return sorted(found, key=lambda rate: -rate.images_per_s)


def describe_views(views: tuple[ViewPolicy, ...]) -> str:
    """Return what views consist of: their number, and the names of their geometries and operations."""
    names = {type(part).__name__ for view in views for part in (view.geometry, *view.operations)}
    return f"{len(views)} view{'s' if len(views) > 1 else ''} of {', '.join(sorted(names))}"


def view_side(views: tuple[ViewPolicy, ...]) -> int:
    """Return the side in pixels under which views are measured and looked up: the largest."""
    return max(view.resolution for view in views)


def encoding_of(pack: Pack) -> str:
    """Return as what a pack stores its images: "jpeg", or "raw" for pixels."""
    return str(pack.manifest.options.get("encoding", "jpeg"))


def this_machine(device: torch.device | None = None) -> Machine:
    """Return what is known of this machine; its GPU is looked at only when one is named."""
    gpu = NO_GPU
    if device is not None and torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count():
        gpu = torch.cuda.get_device_name(device)
    return Machine(cpu_name(), os.cpu_count() or 1, gpu)


@cache
def cpu_name() -> str:
    """Return the model of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def find_measurement(
    views: tuple[ViewPolicy, ...], encoding: str, device: torch.device
) -> Measurement | None:
    """Return what compares backends at the work of a loader: of the nearest resolution, the latest.

    Args:
        views: of the loader; number and operations must be those measured, the resolution within a factor
            of two.
        encoding: of its pack.
        device: where batches are delivered.

    Returns:
        A measurement with at least two rates on this device, or None.

    Raises:
        UserError: the file of measurements is damaged.
    """
    kept = read_measurements()
    if not kept:
        return None
    here, side, kind = (
        this_machine(device if device.type == "cuda" else None),
        view_side(views),
        describe_views(views),
    )

    def apart(found: Measurement) -> float:
        return max(found.resolution / side, side / found.resolution)

    near = [
        found
        for found in reversed(kept)
        if (found.views, found.encoding) == (kind, encoding)
        and (found.machine.cpu, found.machine.cores) == (here.cpu, here.cores)
        and (device.type != "cuda" or found.machine.gpu == here.gpu)
        and apart(found) <= _MOST_APART
        and len(found.usable_on(device.type)) > 1
    ]
    return min(near, key=apart, default=None)


def measurements_path() -> Path:
    """Return the file that holds the measurements of this machine.

    Raises:
        UserError: the user has no home.
    """
    return cache_folder() / "backends.json"


def read_measurements() -> list[Measurement]:
    """Return what was measured on this machine, the latest last; nothing where there is no file.

    Raises:
        UserError: the file is damaged, or of another version of Sluice.
    """
    try:
        path = measurements_path()
    except UserError:
        return []
    try:
        found = parse_json(path.read_bytes())
        _require("a list", isinstance(found, list))
        return [_parse(each) for each in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise UserError(
        f"{path}: expected what tools/bench_loaders.py --remember writes, found something else ({reason}); "
        "delete it and measure again"
    )


def keep_measurement(new: Measurement) -> None:
    """Add a measurement to those of this machine, in place of an earlier one of the same work.

    Raises:
        UserError: the file is damaged, or cannot be written.
    """
    kept = [old for old in read_measurements() if replace(old, date=new.date, rates=new.rates) != new]
    path = measurements_path()
    content = json.dumps([asdict(each) for each in [*kept, new]], indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME") from None


def _parse(found: dict[str, Any]) -> Measurement:
    """Make a measurement of what JSON holds.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a field is missing, unknown or of another kind.
    """
    rates = tuple(Rate(**rate) for rate in found["rates"])
    machine = Machine(**found["machine"])
    kept = Measurement(**{**found, "machine": machine, "rates": rates})
    date.fromisoformat(kept.date)
    texts = [kept.views, kept.encoding, machine.cpu, machine.gpu]
    _require("a text", all(isinstance(text, str) for text in texts))
    counts = [kept.resolution, kept.threads, machine.cores]
    _require("a count", all(type(count) is int and 0 < count < _LARGEST for count in counts))
    for rate in rates:
        _require("a backend", rate.backend in ("cpu", "dali", "ffcv") and rate.device in ("cpu", "cuda"))
        _require(
            "a rate", _is_number(rate.images_per_s) and rate.images_per_s > 0 and _is_number(rate.spread)
        )
    _require("one rate of cpu", sum(rate.backend == "cpu" for rate in rates) == 1)
    _require("one rate each", len({(rate.backend, rate.device) for rate in rates}) == len(rates))
    return kept


def _require(what: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{what} is missing or of another kind")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LARGEST
