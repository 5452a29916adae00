"""Pack the same images many times, each time killed at another moment, and compare the results.

Run as `python kill_driver.py SOURCE WORK FORMAT FIRST STEP`: a run in a forked child is killed by SIGKILL
just before its n-th disk operation (write, sync, rename, remove), n = FIRST, FIRST + STEP, ...; then the same
command runs to its end. The script prints the number of kills and all differences from an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - here, not in every child

from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.shards import beton_shard, tar_shard
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import folder_hashes

SOURCE, WORK, FORMAT, FIRST, STEP = (*map(Path, sys.argv[1:3]), sys.argv[3], *map(int, sys.argv[4:6]))


def pack(name: str) -> None:
    splits = parse_splits([f"train={SOURCE}"])
    pack_dataset(PackOptions(splits, WORK / name, FORMAT, shard_size_mb=0.008, workers=1))


def die_before_step(kill_at: int) -> None:
    """Kill this process at its `kill_at`-th disk operation; a write still writes half of its bytes."""
    count = 0

    def counted(function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                if function.__name__ == "write_all":
                    args[0].write(bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    # A kill loses nothing that the kernel already has, so real syncing would only slow the test down.
    os.fsync = counted(lambda descriptor: None)
    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
    os.rmdir, os.mkdir = counted(os.rmdir), counted(os.mkdir)
    tar_shard.write_all = beton_shard.write_all = counted(tar_shard.write_all)


def run_in_child(name: str, kill_at: int) -> bool:
    """Pack in a child; return whether it was killed. A child that ends by itself must have succeeded."""
    child = os.fork()
    if child == 0:
        try:
            die_before_step(kill_at)
            pack(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"run {name} failed"
    return os.WIFSIGNALED(status)


def main() -> None:
    assert not run_in_child("whole", -1)
    expected = folder_hashes(WORK / "whole")
    kills, differing, kill_at = 0, [], FIRST
    while run_in_child("cut", kill_at):
        kills += 1
        assert not run_in_child("cut", -1)
        if folder_hashes(WORK / "cut") != expected or verify_pack(WORK / "cut"):
            differing.append(kill_at)
        shutil.rmtree(WORK / "cut")
        kill_at += STEP
    # One pack whose runs are killed again and again: every run must get further than the one before.
    tries = 0
    while run_in_child("often", 100):
        tries += 1
        assert tries < 100, "no progress between kills"
    if folder_hashes(WORK / "often") != expected:
        differing.append(-1)
    print(json.dumps({"kills": kills + tries, "differing": differing}))


if __name__ == "__main__":
    main()
