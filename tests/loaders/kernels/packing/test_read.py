"""Reading many files in one call: their contents, and files that changed or vanished after the listing."""

import os
from pathlib import Path

import numpy as np

from loaders.kernels.packing.read import read_files


def test_files_are_read_as_they_were_listed(tmp_path: Path) -> None:
    contents = {"a": b"", "b": b"x" * 5000, "ü c": b"yz", "grown": b"1234", "cut": b"12", "gone": b"1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone").unlink()
    sizes = [len(content) for content in contents.values()]
    sizes[3], sizes[4] = 3, 3
    paths = [os.fsencode(tmp_path / name) for name in contents]
    starts = np.cumsum([0, *(len(path) + 1 for path in paths)])[:-1]
    data, places, good = read_files(b"\0".join([*paths, b""]), starts, np.array(sizes))
    assert good.tolist() == [True, True, True, False, False, False]
    for i, content in enumerate(list(contents.values())[:3]):
        assert data[places[i] : places[i + 1]].tobytes() == content
