"""Batches are copied to a device, with fake streams that do their work only when told to."""

import gc
import weakref

import pytest
import torch

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.batch import Batch, PairedBatch
from loaders.common.errors import LoaderError
from loaders.placing import Block, Placer, place_on
from loaders.views import presets
from tests.loaders.fake_streams import FakeStreams


def batch_of(number, labels=True):
    return Batch(
        (torch.full((2, 3, 4, 4), float(number)), torch.full((2, 3, 2, 2), number + 0.5)),
        torch.tensor([number, -1]) if labels else None,
        torch.tensor([2 * number, 2 * number + 1]),
        torch.tensor([True, number % 2 == 0]),
    )


def tensors_of(batch):
    return [*batch.views, *(() if batch.labels is None else (batch.labels,)), batch.index, batch.valid]


def same(a, b):
    return all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(tensors_of(a), tensors_of(b), strict=True)
    )


@pytest.fixture
def streams():
    return FakeStreams()


def test_a_batch_is_handed_out_after_the_next_ones_copies_were_queued_and_none_was_waited_for(streams):
    asked = []

    def batches():
        for number in range(4):
            asked.append(number)
            yield batch_of(number)

    placed = Placer(streams).ahead(batches())
    first = next(placed)
    (copies,) = streams.streams
    assert asked == [0, 1]
    assert [kind for kind, _ in copies.queue].count("copy") == 6  # per batch two views and one block
    assert set(streams.log) == {"pin", "copy on stream 0"}
    assert [kind for kind, _ in streams.consumer.queue] == ["wait"]
    assert not same(first, batch_of(0))  # nothing is copied yet, so the host did not wait
    streams.consumer.run()
    assert streams.consumer.queue, "the consumer's stream went on before its batch was there"
    copies.run(5)  # the first batch: three copies and two events
    streams.consumer.run()
    assert not streams.consumer.queue
    assert same(first, batch_of(0))
    assert asked == [0, 1]


@pytest.mark.parametrize("labels", [True, False])
def test_every_batch_arrives_as_it_was(streams, labels):
    found = list(Placer(streams).ahead(batch_of(number, labels) for number in range(5)))
    streams.streams[0].run()
    assert len(found) == 5
    assert all(same(batch, batch_of(number, labels)) for number, batch in enumerate(found))


def test_a_pair_is_one_step_with_one_event(streams):
    pairs = (PairedBatch(batch_of(number), batch_of(number + 10, labels=False)) for number in range(2))
    found = list(Placer(streams).ahead(pairs))
    assert [kind for kind, _ in streams.consumer.queue] == ["wait", "wait"]
    streams.streams[0].run()
    assert same(found[1].labeled, batch_of(1))
    assert same(found[1].unlabeled, batch_of(11, labels=False))


def test_memory_is_kept_until_its_copy_is_done_and_then_used_again(streams):
    alive = []

    def batches():
        for number in range(12):
            batch = batch_of(number)
            alive.append(weakref.ref(batch.views[0]))
            yield batch
            del batch

    placed = Placer(streams).ahead(batches())
    for _ in range(3):
        next(placed)
    gc.collect()
    assert all(one() is not None for one in alive), "memory went while a queued copy still reads it"
    assert streams.log.count("pin") == 4
    for _ in range(8):  # from now on, each copy is done at once
        streams.streams[0].run()
        next(placed)
    gc.collect()
    assert sum(one() is not None for one in alive) <= 2
    assert streams.log.count("pin") == 4, "pinned memory was not used again"


def test_memory_of_the_device_waits_for_the_consumers_stream(streams):
    batch = next(Placer(streams).ahead(iter([batch_of(0), batch_of(1)])))
    held = {place for place, stream in streams.recorded if stream == "consumer"}
    assert {view.data_ptr() for view in batch.views} <= held
    assert len(held) == 3


def test_a_kept_batch_stays_as_it_was(streams):
    placed = Placer(streams).ahead(batch_of(number) for number in range(20))
    kept = next(placed)
    for _ in placed:
        streams.streams[0].run()
    assert same(kept, batch_of(0))


def test_an_error_comes_behind_the_batches_before_it(streams):
    def batches():
        yield batch_of(0)
        yield batch_of(1)
        raise LoaderError("row 5")

    placed = Placer(streams).ahead(batches())
    assert [int(next(placed).index.numel()) for _ in range(2)] == [2, 2]
    with pytest.raises(LoaderError, match="row 5"):
        next(placed)


def test_a_block_aligns_what_it_holds():
    tensors = [torch.arange(3, dtype=torch.uint8), torch.arange(5), torch.rand(2, 3, dtype=torch.float64)]
    block = Block(tensors)
    memory = torch.zeros(block.size_bytes + 7, dtype=torch.uint8)
    block.write(memory)
    parts = block.parts(memory.clone())
    assert all(torch.equal(a, b) for a, b in zip(parts, tensors, strict=True))
    assert all((a.data_ptr() - parts[0].data_ptr()) % 16 == 0 for a in parts)


def test_loaders_place_their_epochs(streams, photo_pack):
    """Batches that arrive on the device equal those on the host, also after a resume and when paired."""
    split, views = photo_pack.split("train"), (presets.weak(16), presets.barlow_a(16))
    options = LoaderOptions(seed=1, num_threads=1)
    placer = Placer(streams)
    with build_loader(split, views, 8, options=options) as loader:
        expected = list(loader.epoch(1))
        loader._place = placer.ahead
        found = list(loader.epoch(1))
        resumed = list(loader.epoch(1, 1))
        left = loader.epoch(0)
        next(left)
        loader.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(left)
    with build_paired_loader(split, split, views[:1], views, 2, 3, options=options) as pairs:
        paired = list(pairs.epoch(0))
        pairs._place = placer.ahead
        moved = list(pairs.epoch(0))
    streams.streams[0].run()
    assert all(map(same, found, expected))
    assert all(map(same, resumed, expected[1:]))
    for a, b in zip(moved, paired, strict=True):
        assert same(a.labeled, b.labeled)
        assert same(a.unlabeled, b.unlabeled)


def test_the_host_is_where_batches_are():
    batch = batch_of(0)
    assert next(place_on(torch.device("cpu"))(iter([batch]))) is batch
    moved = next(place_on(torch.device("meta"))(iter([batch])))  # a device without streams
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
