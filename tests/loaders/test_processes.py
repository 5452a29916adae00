"""A loader belongs to the process that built it; any other process gets an error at once."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Self, get_type_hints

import pytest
from torch.utils.data import DataLoader, IterableDataset

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.epochs import EpochLoader, PairedLoader
from loaders.packs import Pack
from loaders.views import presets

VIEWS = (presets.weak(16),)
# Python 3.12 and later warn of a fork in a process with threads, which these tests do on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def single(pack: Pack) -> EpochLoader:
    return build_loader(pack.split("train"), VIEWS, 4, options=LoaderOptions(num_threads=2))


def paired(pack: Pack) -> PairedLoader:
    split = pack.split("train")
    return build_paired_loader(split, split, VIEWS, VIEWS, 2, 2, options=LoaderOptions(num_threads=2))


def found_in_a_fork(work: Callable[[], object]) -> str:
    """Return the error that a function raises in a forked process, within 30 s."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def tell() -> None:
        try:
            work()
        except UserError as error:
            sender.send(str(error))
        else:
            sender.send("")

    process = context.Process(target=tell)
    process.start()
    try:
        assert receiver.poll(30), "the forked process hangs"
        return str(receiver.recv())
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("build", [single, paired])
def test_a_forked_process_is_told_at_once(photo_pack: Pack, build: Callable[[Pack], Any]) -> None:
    with build(photo_pack) as loader:
        under_way = loader.epoch(0)
        next(under_way)
        for work in (lambda: next(loader.epoch(1)), lambda: list(under_way)):
            assert "expected the process that built it" in found_in_a_fork(work)
        assert found_in_a_fork(loader.close) == ""
        assert len(list(loader.epoch(1))) == loader.steps_per_epoch


def test_another_process_cannot_be_sent_a_loader(photo_pack: Pack) -> None:
    with single(photo_pack) as loader, pytest.raises(UserError, match="expected the process that built it"):
        pickle.dumps(loader)


class BuildsInWorkers(IterableDataset[Batch]):
    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def __iter__(self) -> Iterator[Batch]:
        with single(self.pack) as loader:
            yield from loader.epoch(0)


def test_a_worker_of_a_dataloader_is_told(photo_pack: Pack) -> None:
    batches = DataLoader(
        BuildsInWorkers(photo_pack),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=60,
    )
    with pytest.raises(Exception, match="found a worker of a DataLoader"):
        next(iter(batches))


def test_a_with_block_keeps_the_type_of_the_loader(photo_pack: Pack) -> None:
    with single(photo_pack) as loader:
        assert isinstance(loader, EpochLoader)
    for kind in (EpochLoader, PairedLoader):
        assert get_type_hints(kind.__enter__)["return"] is Self
