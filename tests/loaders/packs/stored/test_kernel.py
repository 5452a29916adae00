"""Machine code of kernels on disk: kept once, found without the compiler, and never trusted when damaged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders.packs.stored import kernel as stored
from loaders.packs.stored.crc32 import crc32_all
from loaders.packs.stored.kernel import Kept, StoredKernel

_HASH = """
import sys
from pathlib import Path
import numpy as np
from loaders.packs.stored import kernel
from loaders.packs.stored.blake2b import hash_all
kernel._folders = lambda: [Path(sys.argv[1])]
digests = hash_all(np.frombuffer(b"abc", np.uint8), np.array([0]), np.array([3]))
print(digests.tobytes().hex(), "numba" in sys.modules)
"""
_ABC = "cf4ab791c62b8d2b2109c90275287816"  # blake2b of 16 bytes, by hashlib


def hashed(folder: Path) -> tuple[str, bool]:
    """Hash in a process that keeps kernels in `folder`; return the digest, and whether it loaded numba."""
    command = [sys.executable, "-c", _HASH, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    digest, compiled = ran.stdout.split()
    return digest, compiled == "True"


def test_the_second_process_needs_no_compiler(tmp_path: Path) -> None:
    assert hashed(tmp_path) == (_ABC, True)
    (file,) = tmp_path.iterdir()
    assert hashed(tmp_path) == (_ABC, False)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # damaged: compiled again, and kept whole again
    file.write_bytes(data)
    assert hashed(tmp_path) == (_ABC, True)
    file.write_bytes(file.read_bytes()[:-100])
    assert hashed(tmp_path) == (_ABC, True)
    assert hashed(tmp_path) == (_ABC, False)


def test_where_nothing_can_be_kept_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(stored, "_folders", lambda: iter([tmp_path / "file" / "folder"]))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "numba"))  # nor by numba
    kernel, good = StoredKernel("packing.read", "read_all"), np.zeros(0, np.bool_)
    for _ in range(2):
        kernel(np.zeros(1, np.uint8), np.array([0]), np.array([0]), np.zeros(1, np.uint8), good)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    first, second, *others = stored._folders()
    assert first == tmp_path / "file" / "sluice"
    assert second.name == "__pycache__"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert [first, second] == [*stored._folders()]
    monkeypatch.setattr(stored, "_folders", lambda: iter([tmp_path / "file" / "sluice", tmp_path / "next"]))
    kernel, good = StoredKernel("packing.read", "read_all"), np.zeros(0, np.bool_)
    kernel(np.zeros(1, np.uint8), np.array([0]), np.array([0]), np.zeros(1, np.uint8), good)
    assert [path.suffix for path in (tmp_path / "next").iterdir()] == [".o"]
    assert len(others) == 1


def test_other_code_other_settings_and_other_kinds_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StoredKernel("packing.blake2b", "hash_all")
    names = {one._file_name(["int64"]), one._file_name(["int64", "int64"])}
    stored._what_decides.cache_clear()
    monkeypatch.setenv("NUMBA_OPT", "1")
    names.add(one._file_name(["int64"]))
    stored._what_decides.cache_clear()
    monkeypatch.delenv("NUMBA_OPT")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# edited")
    names.add(one._file_name(["int64"]))
    stored._what_decides.cache_clear()
    assert len(names) == 4


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(TypeError, match="contiguous"):
        Kept(np.zeros(8)[::2])
    with pytest.raises(TypeError, match="contiguous"):
        crc32_all(np.zeros(4, np.uint64)[::2], np.zeros(2, np.int64))


@pytest.mark.parametrize(
    "starts", [np.array([0], np.int32), np.array([[0]]), 0], ids=["int32", "2-D", "number"]
)
def test_arrays_of_other_kinds_than_the_first_are_refused(starts: Any) -> None:
    kernel, data = StoredKernel("packing.read", "read_all"), np.zeros(1, np.uint8)
    good = np.zeros(0, np.bool_)
    kernel(data, np.array([0]), np.array([0]), data, good)
    with pytest.raises(TypeError, match=r"packing\.read\.read_all: expected arrays of"):
        kernel(data, starts, np.array([0]), data, good)


def test_code_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StoredKernel("packing.blake2b", "hash_all")
    monkeypatch.setattr(one, "_function", lambda *arguments: 1)
    monkeypatch.setattr(one, "_kinds", [()])
    with pytest.raises(RuntimeError, match=r"blake2b\.hash_all has failed with status 1"):
        one(1)


def test_packing_photographs_loads_no_compiler(tmp_path: Path) -> None:
    """Numba's import and its loading of kernels were most of a packer's second of start-up."""
    work = """
import sys
from pathlib import Path
import numpy as np
import simplejpeg
from loaders.packs.image import ImagePolicy, prepare_image
noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
made = prepare_image(simplejpeg.encode_jpeg(noise, 90), ImagePolicy(short_side=64, quality=80))
import loaders.packs.bulk, loaders.packs.tar_shard, loaders.packs.verify
print(made.height, made.width, [name for name in ("numba", "torch", "scipy") if name in sys.modules])
"""
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "64 85 []"
