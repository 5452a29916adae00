"""Kill a packer at random moments, and compare the pack that the resumed packer makes.

Run as `python random_kills.py SOURCE WORK FORMAT TRIES SEED`: each try packs in a forked child with two
threads, as large inputs are packed, sends it SIGKILL after a random fraction of the time of a whole run, and
starts the same command again. The script prints the number of kills and the tries whose pack differed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - here, not in every child

from loaders.packs import bulk, packer  # noqa: F401 - compiled code is loaded here
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import folder_hashes

SOURCE, WORK, FORMAT = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
TRIES, SEED = int(sys.argv[4]), int(sys.argv[5])


def pack(name: str) -> None:
    packer._SMALL_INPUT_BYTES = 0
    splits = parse_splits([f"train={SOURCE}"])
    pack_dataset(PackOptions(splits, WORK / name, FORMAT, shard_size_mb=0.02, workers=2))


def start(name: str) -> int:
    """Start a child that packs; return its process ID."""
    child = os.fork()
    if child == 0:
        try:
            pack(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def ended(child: int) -> bool:
    """Wait for a child; return whether it ended by itself, which it must do without an error."""
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a run failed"
    return not os.WIFSIGNALED(status)


def main() -> None:
    pack("warm")  # loads all compiled code from disk
    shutil.rmtree(WORK / "warm")
    began = time.perf_counter()
    assert ended(start("whole"))
    whole_s = time.perf_counter() - began
    expected = folder_hashes(WORK / "whole")
    rng = random.Random(SEED)
    kills, moments, differing = 0, [], []
    while kills < TRIES:
        moment = rng.uniform(0, whole_s)
        child = start("cut")
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        if not ended(child):
            kills += 1
            moments.append(moment / whole_s)
            assert ended(start("cut"))
        if folder_hashes(WORK / "cut") != expected or verify_pack(WORK / "cut"):
            differing.append(moment)
        shutil.rmtree(WORK / "cut")
    print(json.dumps({"kills": kills, "differing": differing, "whole_s": whole_s}))


if __name__ == "__main__":
    main()
