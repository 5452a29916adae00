"""A packer killed at any moment resumes, and its pack has the bytes of an uninterrupted run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loaders.common.errors import UserError
from loaders.packs import open_pack
from tests.forked import run_forked
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tree

DRIVER = Path(__file__).parent / "kill_driver.py"
ROOT = Path(__file__).parents[3]


def kills(tmp_path: Path, shard_format: str, first: int, step: int) -> int:
    files = class_tree(2, 5) | {"c0/cut.jpg": jpeg(5)[:-30]}
    write_tree(tmp_path / "in", files)
    arguments = [tmp_path / "in", tmp_path, shard_format, first, step]
    run = run_forked(DRIVER, *arguments)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["differing"] == []
    return result["kills"]


@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
def test_killed_at_many_moments(tmp_path: Path, shard_format: str) -> None:
    assert kills(tmp_path, shard_format, first=1, step=11) >= 5


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard_format", ["webdataset", "ffcv"])
def test_killed_at_every_moment(tmp_path: Path, shard_format: str) -> None:
    assert kills(tmp_path, shard_format, first=1, step=1) >= 60


@pytest.mark.parametrize(
    ("shard_format", "tries"),
    [
        ("webdataset", 6),
        pytest.param("webdataset", 200, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param("ffcv", 200, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, shard_format: str, tries: int) -> None:
    files = class_tree(2, 30) | {"c0/cut.jpg": jpeg(5)[:-30]}
    write_tree(tmp_path / "in", files)
    script = Path(__file__).parent / "random_kills.py"
    run = run_forked(script, tmp_path / "in", tmp_path, shard_format, tries, 0)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    print(result)
    assert result["kills"] == tries
    assert result["differing"] == []


WORKERS_SCRIPT = """
import sys
from pathlib import Path
from loaders.packs import packer
from loaders.packs.image import ImagePolicy
from loaders.packs.sources.spec import parse_splits
if __name__ == "__main__":
    packer._SMALL_INPUT_BYTES = 0
    splits = parse_splits([f"train={sys.argv[1]}"])
    policy = ImagePolicy(quality=90)  # what is only copied needs no processes
    options = packer.PackOptions(splits, Path(sys.argv[2]), policy=policy, shard_size_mb=0.01, workers=2)
    packer.pack_dataset(options, lambda done, total: print(done, flush=True))
"""


def test_worker_processes_end_with_the_killed_packer(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", class_tree(2, 60))
    script = tmp_path / "run.py"
    script.write_text(WORKERS_SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):  # kill while shards are being written
            assert process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    with pytest.raises(UserError, match="not finished"):
        open_pack(tmp_path / "cut")
    pack(tmp_path / "cut", f"train={tmp_path / 'in'}", shard_size_mb=0.01, quality=90)
    pack(tmp_path / "whole", f"train={tmp_path / 'in'}", shard_size_mb=0.01, quality=90)
    assert folder_hashes(tmp_path / "cut") == folder_hashes(tmp_path / "whole")


def test_two_packers_of_one_pack(digits_folder: Path, tmp_path: Path) -> None:
    source = f"train={digits_folder / 'test'}"
    seen = []

    def again(done: int, total: int) -> None:
        if done == 0:
            with pytest.raises(UserError, match="another process is packing"):
                pack(tmp_path / "p", source)
            seen.append(total)

    from loaders.packs.packer import PackOptions, pack_dataset
    from loaders.packs.sources.spec import parse_splits

    start = time.perf_counter()
    pack_dataset(PackOptions(parse_splits([source]), tmp_path / "p", workers=1), again)
    assert seen == [445]
    assert time.perf_counter() - start < 60


def test_two_equal_commands_that_end_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command sees the manifest of the other, which is still removing its build files."""
    from loaders.packs import packer

    source, out, write = write_tree(tmp_path / "in", class_tree(1, 3)), tmp_path / "p", packer.write_manifest

    def write_and_lose(folder: Path, manifest: packer.Manifest) -> None:
        write(folder, manifest)
        shutil.rmtree(folder / ".build")

    with monkeypatch.context() as patched:
        patched.setattr(packer, "write_manifest", write_and_lose)
        pack(out, f"train={source}")
    (out / ".build").mkdir()
    with packer.lock_pack(out), pytest.raises(UserError, match="another process is packing"):
        pack(out, f"train={source}")
    assert (out / ".build").exists()
    pack(out, f"train={source}")
    assert not (out / ".build").exists()


def test_an_unfinished_pack_of_another_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loaders.packs import packer

    write_tree(tmp_path / "in", class_tree())
    with monkeypatch.context() as patched:

        def interrupt(*args):
            raise KeyboardInterrupt

        patched.setattr(packer, "join_parts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    with pytest.raises(UserError, match="an unfinished pack made with max_side not given, now 8"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}", max_side=8)
    with monkeypatch.context() as patched:
        patched.setattr(packer, "FORMAT_VERSION", 99)
        with pytest.raises(UserError, match="an unfinished pack made with format version 2, now 99"):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    pack(tmp_path / "q", f"train={tmp_path / 'in'}")
    assert folder_hashes(tmp_path / "p") == folder_hashes(tmp_path / "q")
