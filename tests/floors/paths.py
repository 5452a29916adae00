"""The code paths of a processor: what its libraries run with when its widest instructions are taken away."""

from __future__ import annotations

from typing import NamedTuple

import torch

_WIDTHS = ("DEFAULT", "AVX2", "AVX512")
_VALUES = {
    "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512"),
    "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE"),
}


class CodePath(NamedTuple):
    """One environment variable, read when torch is loaded.

    Attributes:
        variable: "" for none.
        value: likewise.
    """

    variable: str = ""
    value: str = ""

    @property
    def text(self) -> str:
        """As a shell takes it; "" where nothing is set."""
        return f"{self.variable}={self.value}" if self.variable else ""


OWN = CodePath()


def code_paths() -> list[CodePath]:
    """Return a path for every value that this processor has instructions for, the widest last."""
    widest = torch.backends.cpu.get_cpu_capability()
    if widest not in _WIDTHS:
        return []  # another architecture, which has other variables
    count = _WIDTHS.index(widest) + 1
    return [CodePath(variable, value) for variable, values in _VALUES.items() for value in values[:count]]


def narrower_paths() -> list[CodePath]:
    """Return those that differ from what the processor takes by itself."""
    return [path for path in code_paths() if path.value not in widest_values()]


def widest_values() -> tuple[str, ...]:
    """Return the values that name what the processor takes by itself."""
    widest = torch.backends.cpu.get_cpu_capability()
    return tuple(values[_WIDTHS.index(widest)] for values in _VALUES.values()) if widest in _WIDTHS else ()
