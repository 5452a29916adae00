"""Kernels and the parts they are made of: compiled once, kept on disk, loaded by the next process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite.binding import ObjectFileRef
from numba.core.caching import NullCache

from loaders.kernels.compile import inlined, kernel

_MODULE = """
import sys
import numpy as np
from loaders.kernels.compile import inlined, kernel

@inlined
def least(values, low):
    for value in values:
        low = min(low, value)
    return low

@kernel
def below(values):
    return values[0] - least(values, values[0])

@kernel
def twice(values):
    return 2 * least(values, values[0])

called = {"below": below, "twice": twice}[sys.argv[1]]
print(called(np.array([3, 7, 2])), *(sum(f.stats.cache_hits.values()) for f in (called, least)))
"""


@inlined
def _scaled(values, factor):
    for i in range(len(values)):
        values[i] *= factor


@kernel
def _scale_twice(values, factor):
    _scaled(values, factor)
    _scaled(values, factor)


def test_a_part_is_merged_into_its_kernel_and_has_no_machine_code() -> None:
    for function in (_scaled, _scale_twice):
        function._cache = NullCache()  # compiled here, whatever an earlier run has left on the disk
    values = np.arange(5, dtype=np.float32)
    _scale_twice(values, np.float32(3))
    np.testing.assert_array_equal(values, 9 * np.arange(5, dtype=np.float32))
    (part,), (whole,) = _scaled.overloads.values(), _scale_twice.overloads.values()
    assert _code_bytes(part) == 0 < _code_bytes(whole)


def _code_bytes(compiled: Any) -> int:
    object_code, _ = compiled.library.serialize_using_object_code()[2]
    sections = ObjectFileRef.from_data(object_code).sections()
    return sum(section.size() for section in sections if section.is_text())


def test_kernels_and_their_parts_are_loaded_by_the_next_process(tmp_path: Path) -> None:
    (tmp_path / "some_kernels.py").write_text(_MODULE)

    def run(name: str) -> list[int]:
        command = [sys.executable, tmp_path / "some_kernels.py", name]
        done = subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": str(Path.cwd())})
        return [int(word) for word in done.stdout.split()]

    assert run("below") == [1, 0, 0]  # its result, whether it was loaded, and whether its part was
    assert run("below") == [1, 1, 0]
    assert run("twice") == [4, 0, 1]
    assert run("twice") == [4, 1, 0]
