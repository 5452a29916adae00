"""The code paths of a processor: its default, and those without its widest instructions."""

from __future__ import annotations

from typing import NamedTuple

import torch

_WIDTHS = ("DEFAULT", "AVX2", "AVX512")
_VALUES = {
    "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512"),
    "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE"),
}


class CodePath(NamedTuple):
    """One environment variable, read when torch is loaded; both strings are "" for none."""

    variable: str = ""
    value: str = ""

    @property
    def text(self) -> str:
        """The setting in shell syntax; "" for none."""
        return f"{self.variable}={self.value}" if self.variable else ""


OWN = CodePath()


def code_paths() -> list[CodePath]:
    """Return a code path for each setting whose instructions this processor has, the widest last."""
    widest = torch.backends.cpu.get_cpu_capability()
    if widest not in _WIDTHS:
        return []  # other architectures have other variables
    count = _WIDTHS.index(widest) + 1
    return [CodePath(variable, value) for variable, values in _VALUES.items() for value in values[:count]]


def narrower_paths() -> list[CodePath]:
    """Return the code paths that differ from the processor's default."""
    return [path for path in code_paths() if path.value not in widest_values()]


def widest_values() -> tuple[str, ...]:
    """Return the values of the variables that select the processor's default."""
    widest = torch.backends.cpu.get_cpu_capability()
    return tuple(values[_WIDTHS.index(widest)] for values in _VALUES.values()) if widest in _WIDTHS else ()
