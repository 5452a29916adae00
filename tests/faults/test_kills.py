"""Processes are killed at many moments; a restart then produces the same bytes as an undisturbed run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from loaders.packs import StoreOptions, open_pack
from tests.faults.http_store import serve
from tests.faults.records import record
from tests.forked import Forked, run_forked
from tests.loaders.packs.inputs import class_tree, pack, write_tree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def drive(script: Path, *arguments: object) -> dict[str, int]:
    run = run_forked(script, *arguments)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("first", "step"), [(2, 25), pytest.param(1, 1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_packing(tmp_path, first, step):
    write_tree(tmp_path / "in", class_tree(2, 10))
    driver = ROOT / "tests" / "loaders" / "packs" / "kill_driver.py"
    found = drive(driver, tmp_path / "in", tmp_path, "webdataset", first, step)
    survived = found["kills"] - len(found["differing"])
    record("SIGKILL while packing", found["kills"], survived, "resumed to the bytes of an undisturbed pack")


TRAINING = {
    "time": ("SIGKILL while training, at random times", "resumed to the same weights"),
    "disk": ("SIGKILL while saving a checkpoint", "resumed to the same weights"),
    "term": ("SIGTERM while training", "saved, code 75 within 10 s; resumed to the same weights"),
}
LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("mode", "num_ranks", "tries"),
    [
        ("time", 1, 1),
        ("disk", 1, 2),
        ("term", 2, 1),
        *(pytest.param(mode, 1, 100, marks=LONG) for mode in TRAINING),
        *(pytest.param(mode, ranks, 15, marks=LONG) for mode in TRAINING for ranks in (2, 3, 4)),
    ],
)
def test_training(tmp_path, mode, num_ranks, tries):
    """Weights are equal bit for bit on one process, and up to the rounding of reductions on several."""
    write_tree(tmp_path / "in", class_tree(2, 20))
    pack(tmp_path / "pack", f"train={tmp_path / 'in'}")
    found = drive(HERE / "training_kills.py", tmp_path, mode, tries, 0, num_ranks)
    fault, outcome = TRAINING[mode]
    processes = "1 process" if num_ranks == 1 else f"{num_ranks} processes"
    record(f"{fault}, {processes}", found["kills"], found["kills"] - found["lost"], outcome)


READER = """
import sys
from pathlib import Path
from loaders.packs import StoreOptions, open_pack
options = StoreOptions(Path(sys.argv[2]), cache_bytes=60_000, block_bytes=1000, backoff_s=0.01)
pack = open_pack(sys.argv[1], options)
print("ready", flush=True)
for _ in range(100):
    for row in range(len(pack)):
        pack.read(row)
"""


@pytest.mark.parametrize("tries", [3, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_filling_the_cache(tmp_path, tries):
    write_tree(tmp_path / "in", class_tree(2, 20))
    local = pack(tmp_path / "pack", f"train={tmp_path / 'in'}", shard_size_mb=0.012)
    rng, survived = random.Random(0), 0
    with serve(local.path) as store:
        for _ in range(tries):
            with Forked("-c", READER, store.url, tmp_path / "cache") as process:
                process.wait_for_lines(1)
                time.sleep(rng.uniform(0, 0.3))
                os.kill(process.pid, signal.SIGKILL)
            remote = open_pack(
                store.url, StoreOptions(tmp_path / "cache", cache_bytes=60_000, backoff_s=0.01)
            )
            right = all(remote.read(row) == local.read(row) for row in range(len(local)))
            kept = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/shards/*"))
            survived += right and kept <= 60_000
    record(
        "SIGKILL while filling the cache",
        tries,
        survived,
        "the next process reads the right bytes in the bound",
    )
