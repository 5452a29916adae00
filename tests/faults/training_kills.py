"""Kills a small training run at many moments, resumes it, and compares the weights with an undisturbed run.

Run as `python training_kills.py WORK MODE NUM_TRIES SEED`. MODE "time" kills by SIGKILL after a random time;
"disk" kills just before the n-th step to the disk (write, sync, rename, remove). Every run is a forked child,
so that torch is imported once. Prints the number of kills and of runs that ended with other weights.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from engine import checkpoint, files
from tests.engine.synthetic import train_small

WORK, MODE, NUM_TRIES, SEED = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
SETTINGS = {"epochs": 3, "checkpoint_every_steps": 2, "keep_checkpoints": 2, "resume": True}


def die_before_disk_step(kill_at: int) -> None:
    """Make the `kill_at`-th disk operation of this process its last."""
    count = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    os.fsync = counted(lambda descriptor: None)  # a killed process loses nothing that the kernel holds
    os.unlink, os.rmdir, os.mkdir = counted(os.unlink), counted(os.rmdir), counted(os.mkdir)
    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
    files.write_synced = checkpoint.write_synced = counted(files.write_synced)
    checkpoint._write_tensors = counted(checkpoint._write_tensors)


def run(name: str, kill_at: int | None, kill_after_s: float | None) -> bool:
    """Train in a child; return whether it was killed. One that ends by itself must have succeeded."""
    child = os.fork()
    if child == 0:
        try:
            if kill_at is not None:
                die_before_disk_step(kill_at)
            train_small(WORK / name, **SETTINGS)
            os._exit(0)
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            os._exit(1)
    if kill_after_s is not None:
        end = time.monotonic() + kill_after_s
        while (
            time.monotonic() < end
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"run {name} failed"
    return os.WIFSIGNALED(status)


def weights(name: str) -> bytes:
    return (WORK / name / "backbone.safetensors").read_bytes()


def main() -> None:
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    start = time.monotonic()
    assert not run("whole", None, None)
    length_s = time.monotonic() - start
    kills = lost = 0
    tries = 0
    while kills < NUM_TRIES:
        tries += 1
        assert tries < 3 * NUM_TRIES + 20, "the kills come too late"
        if MODE == "time":
            killed = run("cut", None, rng.uniform(0, length_s))
        else:
            killed = run("cut", rng.randint(1, 60), None)
        kills += killed
        if killed and rng.random() < 0.5:
            continue  # killed again before it comes to its end
        assert not run("cut", None, None)
        lost += weights("cut") != weights("whole")
        shutil.rmtree(WORK / "cut")
    print(json.dumps({"kills": kills, "lost": lost}))


if __name__ == "__main__":
    main()
