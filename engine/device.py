"""The rule by which all commands choose a device; importing this module loads no heavy library."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, get_args

from engine.choices import Device
from loaders.common.checks import check_one_of
from loaders.common.errors import UserError

_SWITCH = "ACCELERATE_USE_CPU"
# The values that accelerate accepts; "" also stands for an unset variable.
_ON, _OFF = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def taken_device(asked: Device = "auto") -> Literal["cpu", "cuda"]:
    """Return the device on which networks compute: the CPU if requested, else the GPU if there is one.

    Args:
        asked: the option `--device`. accelerate's own variable, ACCELERATE_USE_CPU, also requests the CPU.

    Raises:
        UserError: the option or the variable has an unknown value, or the option is "cuda" although there is
            no GPU or the variable requests the CPU.
    """
    check_one_of("device", asked, get_args(Device))
    switch = os.environ.get(_SWITCH, "").lower()
    if switch not in _ON + _OFF:
        raise UserError(f"{_SWITCH}: expected true or false, found {switch!r}; change the variable")
    switched = switch in _ON
    if asked != "cpu" and not switched and has_gpu():
        return "cuda"
    if asked == "cuda" and switched:
        raise UserError(f"device: expected auto or cpu with {_SWITCH}, found cuda; change one of them")
    if asked == "cuda":
        raise UserError(
            "device: expected a GPU for cuda, found none; give --device cpu, or fix the driver "
            "('nvidia-smi' shows what it sees)"
        )
    return "cpu"


def has_gpu() -> bool:
    """Return whether torch finds a GPU; where no GPU driver is present, torch is not imported to find out."""
    if "torch" not in sys.modules and not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import torch

    return bool(torch.cuda.is_available())


def device_of_process() -> str:
    """Return the device of this process's Accelerator; if there is none, the device that "auto" selects."""
    from accelerate.state import AcceleratorState, is_initialized

    return str(AcceleratorState().device) if is_initialized() else taken_device()
