"""Machine code of kernels on disk: kept once, found without the compiler, and never trusted when damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loaders.packs.stored import kernel as stored
from loaders.packs.stored.crc32 import crc32_all
from loaders.packs.stored.kernel import Kept, StoredKernel

_HASH = """
import sys
import numpy as np
from loaders.packs.stored.blake2b import hash_all
digests = hash_all(np.frombuffer(b"abc", np.uint8), np.array([0]), np.array([3]))
print(digests.tobytes().hex(), "numba" in sys.modules)
"""
_ABC = "cf4ab791c62b8d2b2109c90275287816"  # blake2b of 16 bytes, by hashlib


def hashed(folder: Path) -> tuple[str, bool]:
    """Hash in a process that keeps kernels in `folder`; return the digest, and whether it loaded numba."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, "-c", _HASH], env=environment, capture_output=True, text=True, check=True
    )
    digest, compiled = ran.stdout.split()
    return digest, compiled == "True"


def test_the_second_process_needs_no_compiler(tmp_path: Path) -> None:
    assert hashed(tmp_path) == (_ABC, True)
    (file,) = (tmp_path / "sluice").iterdir()
    assert hashed(tmp_path) == (_ABC, False)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # damaged: compiled again, and kept whole again
    file.write_bytes(data)
    assert hashed(tmp_path) == (_ABC, True)
    file.write_bytes(file.read_bytes()[:-100])
    assert hashed(tmp_path) == (_ABC, True)
    assert hashed(tmp_path) == (_ABC, False)


def test_where_nothing_can_be_kept_it_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert hashed(tmp_path / "file" / "folder") == (_ABC, True)


def test_other_code_other_settings_and_other_kinds_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StoredKernel("blake2b", "hash_all")
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
    with pytest.raises(AssertionError, match="contiguous"):
        Kept(np.zeros(8)[::2])
    with pytest.raises(AssertionError, match="contiguous"):
        crc32_all(np.zeros(4, np.uint64)[::2], np.zeros(2, np.int64))


def test_code_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StoredKernel("blake2b", "hash_all")
    monkeypatch.setattr(one, "_function", lambda *arguments: 1)
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
