"""The autocast precision of a run: "auto" goes by the features of the hardware, never by a measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from accelerate import Accelerator

from engine.choices import Device, Precision
from engine.device import taken_device
from engine.train.presets import config_of
from loaders.batch import Loader
from loaders.common.errors import UserError
from loaders.options import BackendName, DTypeName
from loaders.packs.stores.connect import as_url

ConfigT = TypeVar("ConfigT", bound=Any)

IN_HARDWARE = ("avx512_bf16", "amx_bf16")
"""CPU features, as `torch.cpu.get_capabilities` names them, of which "auto" needs one to take bfloat16 on a
CPU. Other CPUs convert each value, which takes longer than float32."""

SAID: dict[Precision, str] = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast"}
KEY = "autocast"
"""Key of the chosen precision in a run's config.json."""
VIEWS = "views"
"""Key of the training views' dtype in a run's config.json."""
BACKEND = "taken_backend"
"""Key of the training loader's backend in a run's config.json; the value is never "auto"."""
CHOSEN = frozenset({KEY, VIEWS, BACKEND})
"""Keys that config.json has besides the configuration, for what "auto" resolved to when the run began."""
_OF_VIEWS: dict[str, DTypeName] = {"bf16": "bfloat16", "fp16": "float16"}


def of_hardware(device: Device = "auto") -> Precision:
    """Return a device's default precision: bf16 if the hardware has it, else fp16 on a GPU, else no."""
    if taken_device(device) == "cuda":
        # GPUs before Ampere emulate bfloat16, which is slower than float32; float16 is fast from Volta on.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    found = torch.cpu.get_capabilities()
    return "bf16" if any(found.get(name) for name in IN_HARDWARE) else "no"


def of_run(out: Path, device: Device = "auto") -> Precision | None:
    """Return the precision with which the run in a folder began; None if that is not known.

    Older runs did not record the precision. On a CPU they used float32, so "no" is returned for them there.

    Args:
        device: device on which the run resumes.
    """
    config = config_of(out)
    if config is None:
        return None
    for known in SAID:
        if config.get(KEY) == known:
            return known
    return None if taken_device(device) == "cuda" else "no"


def as_begun(config: ConfigT) -> ConfigT:
    """Resolve "auto" for a command that trains several networks, as its earlier runs resolved it.

    Args:
        config: a dataclass with pack, out, precision, device and loader; the runs are in folders below `out`.

    Returns:
        The configuration with precision and backend "auto" replaced by what those runs recorded, if anything.

    Raises:
        UserError: the configuration names another precision than the one with which those runs began.
    """
    runs = [path.parent for path in sorted(config.out.glob("*/**/config.json"))]
    found = (of_run(run, config.device) for run in runs)
    begun: Precision = next((one for one in found if one is not None), "auto")
    if config.precision != "auto" and begun not in ("auto", config.precision):
        raise UserError(
            f"precision: expected {begun}, with which the runs in {config.out} began, found "
            f"{config.precision}; give --precision {begun}, or another --out"
        )
    precision = begun if config.precision == "auto" else config.precision
    loader = replace(config.loader, backend=backend_of(config.loader.backend, config.pack, *runs))
    return replace(config, precision=precision, loader=loader)


def dtype_of_views(precision: str, device: str, out: Path) -> DTypeName:
    """Return the dtype of training views: the one that the run in `out` has, or the default of a new run.

    Args:
        precision: precision of autocast.
        device: device of the network; on a GPU the views of a new run have the dtype of autocast.
        out: run folder. An older run, which did not record the dtype, used float32.
    """
    config = config_of(out)
    if config is not None:
        return next((name for name in _OF_VIEWS.values() if name == config.get(VIEWS)), "float32")
    return "float32" if torch.device(device).type != "cuda" else _OF_VIEWS.get(precision, "float32")


def backend_of(asked: BackendName, pack: Path, *runs: Path) -> BackendName:
    """Return the given backend; for "auto", the first backend that one of the runs has recorded.

    Args:
        asked: the option `--backend`.
        pack: path or URL. For a pack in a store "auto" stays and means another backend than for a local pack;
            so a run whose pack moved into a store is refused, since the order of its rows would change.
        runs: run folders; if none records a backend, "auto" stays.
    """
    if asked != "auto" or as_url(str(pack)) is not None:
        return asked
    begun = ((config_of(run) or {}).get(BACKEND) for run in runs)
    return next((name for one in begun for name in get_args(BackendName) if name == one), asked)


def chosen(accelerator: Accelerator, loader: Loader[Any]) -> dict[str, str]:
    """Return precision, dtype of views and backend in use, by the keys in `CHOSEN`; a backend if known."""
    dtype = loader.fingerprint.get("dtype", "float32")
    taken_backend = str(getattr(loader, "backend", "")).partition(":")[0]  # "NAME: why"
    named = {BACKEND: taken_backend} if taken_backend in get_args(BackendName) else {}
    return {KEY: str(accelerator.mixed_precision), VIEWS: str(dtype), **named}


def taken(precision: str, out: Path | None, device: Device = "auto") -> str:
    """Return the given precision; for "auto" that of the run in `out` if known, else the device's default."""
    if precision != "auto":
        return precision
    return (of_run(out, device) if out else None) or of_hardware(device)
