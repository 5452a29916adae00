"""End a small training run at many moments, resume it, and compare the weights with an undisturbed run.

Run as `python training_kills.py WORK MODE NUM_TRIES SEED [NUM_RANKS]`. The images come through a real loader
from the pack WORK/pack. MODE "time" kills every rank by SIGKILL after a random time; "disk" kills rank 0 just
before the n-th step to the disk (write, sync, rename, remove); "term" sends SIGTERM to every rank at a random
moment of training, as a scheduler does, and expects the exit code of a saved run within 10 s; in every other
try the last rank is then waiting for a batch that does not come. Every rank is a forked child, so that torch
is imported once. The script prints the number of kills, the number of runs that ended with other weights, and
the longest time from SIGTERM to the end.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.train import checkpoint
from engine.train.stop import EXIT_STOPPED
from loaders import LoaderOptions, build_loader, open_pack
from loaders.batch import Batch
from loaders.common import files
from loaders.epochs import EpochLoader
from loaders.views import presets
from tests.engine.synthetic import train_small

WORK, MODE, NUM_TRIES, SEED = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
NUM_RANKS = int(sys.argv[5]) if len(sys.argv) > 5 else 1
SETTINGS = {"epochs": 3, "checkpoint_every_steps": 2, "keep_checkpoints": 2, "resume": True}
TOLERANCE = 0.0 if NUM_RANKS == 1 else 1e-6  # sums over ranks may differ in the last bits
STEP_S = 0.02 if MODE == "term" else 0.0  # so that the signal comes during training


HANG_S = 600.0


def make_loader(rank: int) -> EpochLoader:
    """Build the loader of a rank: 3 steps per epoch of 12 images, which 1 to 4 ranks share."""
    views = (presets.crop_flip(16, 0.5, 0.5),) * 2
    split = open_pack(WORK / "pack").split("train")
    return build_loader(
        split, views, 12, options=LoaderOptions(seed=3, num_threads=1, rank=rank, num_ranks=NUM_RANKS)
    )


class Paced:
    """A loader that writes a marker file at the start, delays each step, and hangs before step `hang_at`."""

    def __init__(self, inner: EpochLoader, rank: int, hang_at: int | None) -> None:
        self._inner, self._rank, self._hang_at = inner, rank, hang_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self._inner.epoch(epoch, start_step), start_step):
            (WORK / f"training-{self._rank}").touch()
            hangs = epoch * self._inner.steps_per_epoch + step == self._hang_at
            time.sleep(HANG_S if hangs else STEP_S)
            yield batch


def die_before_disk_step(kill_at: int) -> None:
    """Kill this process just before its `kill_at`-th disk operation."""
    count = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    os.fsync = counted(lambda descriptor: None)  # a kill loses nothing that the kernel already has
    os.unlink, os.rmdir, os.mkdir = counted(os.unlink), counted(os.rmdir), counted(os.mkdir)
    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
    files.partial_path, checkpoint.write_synced = counted(files.partial_path), counted(files.write_synced)
    checkpoint.write_tensors = counted(checkpoint.write_tensors)


def train_rank(name: str, rank: int, port: int, kill_at: int | None, hang_at: int | None) -> None:
    """Train in this forked process, then exit from it."""
    try:
        if NUM_RANKS > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        if kill_at is not None and rank == 0:
            die_before_disk_step(kill_at)
        loader = Paced(make_loader(rank), rank, hang_at if rank == NUM_RANKS - 1 else None)
        train_small(WORK / name, loader=loader, **SETTINGS)
        os._exit(0)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException as error:
        print(f"{name}: {error!r}", file=sys.stderr)
        os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Run:
    """A run under way, a forked child per rank."""

    def __init__(self, name: str, kill_at: int | None = None, hang_at: int | None = None) -> None:
        for marker in WORK.glob("training-*"):
            marker.unlink()
        port = free_port()
        self.codes: dict[int, int] = {}
        self.children = []
        for rank in range(NUM_RANKS):
            child = os.fork()
            if child == 0:
                train_rank(name, rank, port, kill_at, hang_at)
            self.children.append(child)

    def poll(self) -> bool:
        """Return whether every rank has ended."""
        for child in self.children:
            if child not in self.codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.codes[child] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == NUM_RANKS

    def wait(self, seconds: float, one_is_enough: bool = False) -> None:
        """Wait until all ranks (or one) have ended, or the time is up."""
        end = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < end:
            if one_is_enough and self.codes:
                return
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send a signal to every rank that is still running."""
        for child in self.children:
            if child not in self.codes:
                os.kill(child, number)

    def finish(self) -> None:
        """Wait until all ranks have ended, and require that all succeeded."""
        self.wait(300)
        assert set(self.codes.values()) == {0}, f"a run ended with {self.codes}"


def kill_at_random(rng: random.Random, length_s: float) -> bool:
    """Kill a run; return whether the kill came before the run's end."""
    run = Run("cut", rng.randint(1, 60) if MODE == "disk" else None)
    # When one rank dies, kill the others too, as every launcher does.
    run.wait(300 if MODE == "disk" else rng.uniform(0, length_s), one_is_enough=True)
    if MODE == "time" or any(run.codes.values()):
        run.send(signal.SIGKILL)
    run.wait(300)
    killed = -signal.SIGKILL in run.codes.values()
    assert killed or set(run.codes.values()) == {0}, f"a run ended with {run.codes}"
    return killed


def terminate_at_random(rng: random.Random, hangs: bool) -> tuple[bool, float]:
    """Send SIGTERM; return whether it came before the run's end, and the seconds until the run stopped."""
    run = Run("cut", hang_at=rng.randint(0, 8) if hangs else None)
    while not run.poll() and not all((WORK / f"training-{rank}").exists() for rank in range(NUM_RANKS)):
        time.sleep(0.002)
    run.wait(rng.uniform(0, 9 * STEP_S))
    if run.poll():
        return False, 0.0
    start = time.monotonic()
    run.send(signal.SIGTERM)
    run.wait(60)
    seconds = time.monotonic() - start
    assert set(run.codes.values()) in ({0}, {EXIT_STOPPED}), f"SIGTERM: ended with {run.codes}"
    return EXIT_STOPPED in run.codes.values(), seconds


def same_weights() -> bool:
    """Return whether both runs ended with the same weights."""
    names = ("cut", "whole")
    if NUM_RANKS == 1:
        return len({(WORK / name / "backbone.safetensors").read_bytes() for name in names}) == 1
    cut, whole = (load_file(WORK / name / "backbone.safetensors") for name in names)
    return all(torch.allclose(cut[key], whole[key], rtol=TOLERANCE, atol=TOLERANCE) for key in whole)


def main() -> None:
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    make_loader(0).close()  # compile the kernels before the fork
    gc.freeze()  # see tests/conftest.py
    start = time.monotonic()
    Run("whole").finish()
    length_s = time.monotonic() - start
    kills = lost = tries = 0
    slowest_s = 0.0
    while kills < NUM_TRIES:
        tries += 1
        assert tries < 3 * NUM_TRIES + 20, "the kills come too late"
        if MODE == "term":
            killed, seconds = terminate_at_random(rng, hangs=tries % 2 == 1)
            lost += seconds > 10
            slowest_s = max(slowest_s, seconds)
        else:
            killed = kill_at_random(rng, length_s)
        kills += killed
        if killed and rng.random() < 0.5:
            continue  # let the next try kill the resumed run again
        Run("cut").finish()
        lost += not same_weights()
        shutil.rmtree(WORK / "cut")
    print(json.dumps({"kills": kills, "lost": lost, "slowest_s": slowest_s}))


if __name__ == "__main__":
    main()
