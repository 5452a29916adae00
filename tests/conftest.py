"""Packs that many tests read: made once per session."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

# One thread on every machine, also in processes that tests start: the number of threads decides how sums
# round, and the floors were measured with one. Parallel workers use the cores. Set before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

from loaders.common.allocator import keep_freed_memory
from loaders.common.cache_folder import cache_folder

# The folder where `make setup` keeps compiled kernels, even if a test sets another cache folder for the rest.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder().parent))

import hypothesis
import pytest

from loaders.packs import Pack, open_pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from tests.drawings import draw_dots
from tests.floors.data import Data
from tests.forked import start_fork_server
from tests.once import made_once
from tools.write_digits import write_digits

keep_freed_memory()  # as every command does

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a script's shell starts background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, so that no test fails by chance. `make test-slow` draws new examples.
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.load_profile("steady")


def pytest_collection(session: pytest.Session) -> None:
    """Prepare a process that runs tests; the xdist controller, which only hands out tests, needs no torch."""
    if session.config.pluginmanager.hasplugin("dsession"):
        return
    gc.disable()  # imports and collection leave no garbage; searching takes a tenth of the start
    import torch

    torch.set_num_threads(1)  # a plugin may have loaded torch before the environment said so
    if not torch.cuda.is_available():  # before Triton is loaded: run device kernels in its interpreter
        os.environ.setdefault("TRITON_INTERPRET", "1")


ENDED = count(1)
"""Counts the tests of this process as they end."""


def freeze_objects() -> None:
    """Exclude all existing objects from garbage collection.

    accelerate runs two collections after every training; looking at all objects of the process took longer
    than the training of a small network.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Exclude everything imported so far from garbage collection, and enable the collector again."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the fork server before the first test that uses it, so that its start counts for no test."""
    if any(name in vars(getattr(item, "module", item)) for name in ("Forked", "run_forked", "launch_forked")):
        start_fork_server()


def pytest_runtest_teardown() -> None:
    """Every 100 tests, exclude what they have imported from garbage collection."""
    if next(ENDED) % 100 == 0:
        freeze_objects()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a worker at once: an orderly exit would take ten seconds to free what the tests have imported."""
    if hasattr(config, "workerinput"):  # its results have been sent
        os._exit(0)
    gc.unfreeze()  # so that all objects are freed before extensions exit, as outside of tests
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)  # after all limits of tests


@pytest.fixture(scope="session", autouse=True)
def no_measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's saved measurements, which decide what "auto" means, from tests and their processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_cuts() -> Iterator[None]:
    """Turn fsync off: it only guards against power cuts, which no test can cause, and takes much time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_bfloat16() -> Iterator[None]:
    """Pretend that no processor has bfloat16 unless a test says so: a process cannot change its precision."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture
def blank_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every drawing by a dot."""
    draw_dots(monkeypatch)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `train/<digit>/*.jpg` and `test/<digit>/*.jpg`, 32x32."""
    return made_once(tmp_path_factory, "digits", lambda out: write_digits(out / "images")) / "images"


def _pack_digits(folder: Path, out: Path, shard_format: str) -> Pack:
    splits = parse_splits(
        [f"unlabeled={folder / 'train'}", f"train={folder / 'train'}", f"test={folder / 'test'}"]
    )
    pack_dataset(PackOptions(splits, out, shard_format, shard_size_mb=2.0, workers=1))
    return open_pack(out)


@pytest.fixture(scope="session")
def digits_pack(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The digits in tar shards, splits unlabeled (the training images once more), train and test."""
    return _pack_digits(digits_folder, tmp_path_factory.mktemp("packs") / "digits", "webdataset")


@pytest.fixture(scope="session")
def digits_beton_pack(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The same in beton shards."""
    return _pack_digits(digits_folder, tmp_path_factory.mktemp("packs") / "digits-beton", "ffcv")


@pytest.fixture(scope="session")
def little_pack(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """240 digits as `unlabeled` and as `train`, 200 others as `test`, for tests that check no accuracy."""
    folder = tmp_path_factory.mktemp("little-digits")
    for split, number in (("train", 24), ("test", 20)):
        for digit in "0123456789":
            target = folder / split / digit
            target.mkdir(parents=True)
            for source in sorted((digits_folder / split / digit).glob("*.jpg"))[:number]:
                (target / source.name).write_bytes(source.read_bytes())
    train = folder / "train"
    splits = parse_splits([f"unlabeled={train}", f"train={train}", f"test={folder / 'test'}"])
    pack_dataset(PackOptions(splits, folder / "pack", workers=1))
    return open_pack(folder / "pack")


@pytest.fixture(scope="session")
def data(digits_pack: Pack, digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The data of the trainings whose accuracy must exceed a floor."""
    return Data(digits_pack, digits_folder, tmp_path_factory.mktemp("data"))
