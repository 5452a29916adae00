"""Packs in a store: same batches as from disk, a bounded cache, and a retry or an error after faults."""

import os
import re
import shutil
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import LoaderOptions, build_loader, build_paired_loader
from loaders.backends.stream import shards_of
from loaders.common.errors import LoaderError, MissingBackendError, UserError
from loaders.common.locks import locked
from loaders.packs import StoreOptions, open_pack
from loaders.packs.labels.class_names import CLASS_NAMES_PATH, write_class_names
from loaders.packs.stores.connect import as_url
from loaders.packs.stores.remote_pack import RemotePack
from loaders.packs.stores.store import StoreError
from loaders.views import presets
from tests.faults.http_store import serve, wait_until
from tests.loaders.packs.inputs import class_tree, jpeg, write_tree
from tests.loaders.packs.inputs import pack as make_pack
from tests.loaders.settings import gathered

VIEWS = (presets.crop_flip(16),)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A pack of 60 images in 10 shards."""
    folder = tmp_path_factory.mktemp("stream")
    write_tree(folder / "in", class_tree(3, 20))
    return make_pack(folder / "pack", f"train={folder / 'in'}", shard_size_mb=0.012)


@pytest.fixture
def store(local):
    with serve(local.path) as running:
        yield running


def options(tmp_path: Path, **changes) -> StoreOptions:
    fast = {"tries": 4, "backoff_s": 0.01, "request_timeout_s": 0.5, "block_bytes": 10_000}
    return StoreOptions(cache_dir=tmp_path / "cache", **(fast | changes))


def build(pack, **changes):
    settings = {"views": VIEWS, "batch_size": 8, "seed": 1, "num_threads": 2, "window": 3, "timeout_s": 20.0}
    return build_loader(pack.split("train"), **gathered(**({"backend": "stream"} | settings | changes)))


def batches(loader, epochs=(0,), start_step=0):
    with loader:
        return [batch for epoch in epochs for batch in loader.epoch(epoch, start_step)]


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.views[0], b.views[0])
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)


def test_a_remote_pack_gives_the_bytes_of_the_local_one(tmp_path, local, store):
    remote = open_pack(store.url, options(tmp_path))
    assert not [path for path in store.requests if "/shards/" in path], "opening touches no shard"
    assert isinstance(remote, RemotePack)
    assert [remote.read(row) for row in range(60)] == [local.read(row) for row in range(60)]
    assert remote.key(7) == local.key(7)
    same(batches(build(remote, backend="auto"), (0, 1)), batches(build(local), (0, 1)))


@pytest.mark.parametrize("backend", ["cpu", "dali", "ffcv"])
def test_another_backend_refuses_a_store(tmp_path, local, store, backend):
    remote = open_pack(store.url, options(tmp_path))
    with pytest.raises(UserError, match=f"backend {backend}: expected packs on this machine, found http"):
        build(remote, backend=backend)


def test_what_is_cached_is_not_fetched_again(tmp_path, local, store):
    expected = batches(build(open_pack(store.url, options(tmp_path))), (0, 1, 2))
    before = dict(store.requests)
    same(batches(build(open_pack(store.url, options(tmp_path))), (0, 1, 2)), expected)
    more = {path: n - before[path] for path, n in store.requests.items() if n != before[path]}
    assert more == {"/manifest.json": 1, "/labels/classes.json": 1}


@pytest.mark.parametrize("name", ["index/crc32.npy", "labels/true.parquet", "shards.jsonl"])
def test_a_small_file_that_changed_in_the_cache_is_fetched_anew(tmp_path, local, store, name):
    expected = batches(build(open_pack(store.url, options(tmp_path))))
    (copy,) = (tmp_path / "cache").glob(f"*/{name}")
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])  # a damaged copy of the same size
    before = store.requests[f"/{name}"]
    same(batches(build(open_pack(store.url, options(tmp_path)), verify=True)), expected)
    assert copy.read_bytes() == whole
    assert store.requests[f"/{name}"] > before


def kept_bytes(cache):
    sizes = []
    for path in cache.glob("*/shards/*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def test_the_cache_stays_in_its_bounds_and_the_batches_stay_the_same(tmp_path, local, store):
    sizes = [local.shard_path(shard).stat().st_size for shard in range(local.num_shards)]
    bound = sum(sorted(sizes)[-6:])
    assert bound < sum(sizes)
    remote = open_pack(store.url, options(tmp_path, cache_bytes=bound))
    most = 0
    found = []
    with build(remote) as loader:
        for epoch in range(3):
            for batch in loader.epoch(epoch):
                found.append(batch)
                with locked(tmp_path / "cache" / "lock"):
                    most = max(most, kept_bytes(tmp_path / "cache"))
    same(found, batches(build(local), (0, 1, 2)))
    assert 0 < most <= bound
    assert max(store.requests[path] for path in store.requests if "/shards/" in path) > 3, "nothing went"


def test_a_shard_that_another_process_removes_at_any_moment_is_fetched_again(tmp_path, store, monkeypatch):
    remote = open_pack(store.url, options(tmp_path))
    info, utime = remote.shard_files[0], os.utime
    copy = remote.cache.fetch(info)

    def late(path):
        copy.unlink(missing_ok=True)
        utime(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", late)  # deleted after it is found, before it is marked as used
        assert remote.cache.fetch(info) == copy
    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_file", lambda path: True)  # deleted right after the check
        assert not remote.cache.holds(info)
    assert len(remote.shard_map(0)) == info.size_bytes


def test_shards_of_the_window_come_before_they_are_asked_for(tmp_path, store):
    remote = open_pack(store.url, options(tmp_path))
    with build(remote, prefetch=0) as loader:
        next(loader.epoch(0))
        wait_until(lambda: len(list((tmp_path / "cache").glob("*/shards/*.tar"))) >= 6)
        assert len({path for path in store.requests if path.endswith(".tar")}) <= 9, "not the whole pack"


@pytest.mark.parametrize("start_step", [0, 3, 6])
def test_resume_and_ranks_in_block_order(tmp_path, local, store, start_step):
    whole = batches(build(local, window=2), (4,))
    remote = open_pack(store.url, options(tmp_path))
    same(batches(build(remote, window=2), (4,), start_step), whole[start_step:])
    parts = [batches(build(remote, window=2, rank=rank, num_ranks=2), (4,)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.index, torch.cat([part[step].index for part in parts]))


def test_every_row_once_whatever_the_window(local):
    for window in (1, 2, 100):
        index = torch.cat([b.index for b in batches(build(local, window=window, batch_size=6))])
        assert sorted(index.tolist()) == list(range(60))
    evaluated = batches(build(local, mode="eval", batch_size=7))
    assert torch.cat([b.index[b.valid] for b in evaluated]).tolist() == list(range(60))


def test_a_pair_of_streams(tmp_path, local, store):
    def pairs(pack):
        split = pack.split("train")
        loader = build_paired_loader(
            split,
            split,
            VIEWS,
            VIEWS,
            2,
            3,
            options=LoaderOptions(backend="stream", num_threads=2, window=2, timeout_s=20),
        )
        with loader:
            return [half for pair in loader.epoch(1) for half in (pair.labeled, pair.unlabeled)]

    for a, b in zip(pairs(open_pack(store.url, options(tmp_path))), pairs(local), strict=True):
        assert torch.equal(a.views[0], b.views[0])
        assert torch.equal(a.index, b.index)


@pytest.mark.parametrize("fault", ["error", "stall", "crawl", "cut", "short", "reset", "flip"])
def test_a_fault_that_passes_is_met_by_a_retry(tmp_path, local, store, fault):
    store.fault_for = lambda path, n: fault if n == 0 and path.endswith(("3.tar", "size.npy")) else None
    remote = open_pack(store.url, options(tmp_path))
    same(batches(build(remote)), batches(build(local)))
    assert store.requests["/index/size.npy"] >= 2
    assert store.requests["/shards/train-000003.tar"] > 2


@pytest.mark.parametrize("fault", ["error", "stall", "crawl", "cut", "short", "reset", "flip"])
def test_a_fault_of_the_manifest_that_passes_is_met_by_a_retry(tmp_path, local, store, fault):
    store.fault_for = lambda path, n: fault if n == 0 and path.endswith("manifest.json") else None
    assert len(open_pack(store.url, options(tmp_path))) == len(local)
    assert store.requests["/manifest.json"] == 2


@pytest.mark.parametrize("fault", ["error", "stall", "crawl", "cut", "short", "reset", "flip"])
def test_a_fault_that_stays_is_an_error_with_the_url(tmp_path, store, fault):
    store.fault_for = lambda path, n: fault if path.endswith("000003.tar") else None
    remote = open_pack(
        store.url, options(tmp_path, request_timeout_s=0.3 if fault in ("stall", "crawl") else 5, tries=3)
    )
    start = time.monotonic()
    with pytest.raises(StoreError, match=rf"{store.url}/shards/train-000003\.tar"):
        batches(build(remote))
    assert time.monotonic() - start < 10
    assert not list((tmp_path / "cache").glob("*/shards/*.partial"))


def test_a_store_without_credentials_is_not_asked_again(tmp_path, store, monkeypatch):
    class NoCredentialsError(Exception):
        """Named like botocore's error."""

    asked = []

    def request(self, path, start, stop):
        asked.append(path)
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("loaders.packs.stores.store.Store._request", request)
    with pytest.raises(UserError, match=rf"^{store.url}: expected credentials for this store, found none"):
        open_pack(store.url, options(tmp_path, tries=5))
    assert len(asked) == 1


def test_a_fault_while_opening_is_an_error_with_the_url(tmp_path, store):
    store.fault_for = lambda path, n: "error" if path.endswith("offset.npy") else None
    with pytest.raises(StoreError, match=rf"{store.url}/index/offset\.npy"):
        open_pack(store.url, options(tmp_path))
    store.fault_for = lambda path, n: "short" if path.endswith("manifest.json") else None
    with pytest.raises(UserError, match=rf"{store.url}/manifest.json is damaged"):
        open_pack(store.url, options(tmp_path))


def test_a_time_limit_names_the_shard_that_is_missing(tmp_path, store):
    store.fault_for = lambda path, n: "stall" if path.endswith("000003.tar") else None
    remote = open_pack(store.url, options(tmp_path, request_timeout_s=3.0))
    loader = build(remote, timeout_s=0.3)
    try:
        with pytest.raises(LoaderError, match=rf"longer than 0\.3 s.*{store.url}/shards/train-000003\.tar"):
            list(loader.epoch(0))
    finally:
        store.release()
        loader.close()


def test_closing_ends_the_fetching(tmp_path, store):
    batches(build(open_pack(store.url, options(tmp_path)), num_threads=1))  # starts a thread of fsspec
    threads = threading.active_count()
    shutil.rmtree(tmp_path / "cache")
    remote = open_pack(store.url, options(tmp_path, backoff_s=5.0))
    store.requests.clear()
    store.fault_for = lambda path, n: "error"
    loader = build(remote)
    iterator = loader.epoch(0)
    ended = threading.Event()

    def consume():
        with pytest.raises((RuntimeError, CancelledError)):  # "closed", or a cancelled fetch
            next(iterator)
        ended.set()

    worker = threading.Thread(target=consume)
    worker.start()
    wait_until(lambda: len(store.requests) >= 4)
    start = time.monotonic()
    loader.close()
    worker.join()
    assert ended.is_set()
    assert time.monotonic() - start < 3
    wait_until(lambda: threading.active_count() <= threads)


def test_a_pack_serves_on_after_its_loaders_are_closed(tmp_path, local, store):
    remote = open_pack(store.url, options(tmp_path))
    first, second = build(remote, window=1, prefetch=0), build(remote, window=1, prefetch=0)
    kept = [next(loader.epoch(0)) for loader in (first, second)]
    for loader in (first, second):
        loader.close()
    assert [remote.read(row) for row in range(60)] == [local.read(row) for row in range(60)]
    shutil.rmtree(tmp_path / "cache")
    same(batches(build(open_pack(store.url, options(tmp_path)), window=1))[:1], kept[:1])
    same(kept[:1], kept[1:])


def test_a_server_without_ranges(tmp_path, local):
    with serve(local.path, ranges=False) as store:
        remote = open_pack(store.url, options(tmp_path))
        assert [remote.read(row) for row in (0, 59)] == [local.read(row) for row in (0, 59)]
        assert store.requests["/shards/train-000000.tar"] == 1


def test_another_pack_under_the_same_url_is_another_pack(tmp_path):
    for seed in (0, 1):
        write_tree(tmp_path / f"in{seed}", class_tree(2, 3, seed=seed))
        make_pack(tmp_path / f"pack{seed}", f"train={tmp_path / f'in{seed}'}")
    with serve(tmp_path / "now") as store:
        for seed in (0, 1):
            (tmp_path / "now").unlink(missing_ok=True)
            (tmp_path / "now").symlink_to(tmp_path / f"pack{seed}")
            remote = open_pack(store.url, options(tmp_path))
            assert remote.read(0) == open_pack(tmp_path / f"pack{seed}").read(0)


def test_classes_named_after_packing_are_those_of_the_store(tmp_path):
    """New class names leave the manifest unchanged, so the cached manifest does not show them."""
    write_tree(tmp_path / "in", {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    packed = make_pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    with serve(packed.path) as store:
        for names in ((), ("cat", "dog"), ("cat", "dog", "hen")):
            if names:
                write_class_names(packed.path, names)
            remote = open_pack(store.url, options(tmp_path))
            assert remote.classes == names
        write_class_names(remote.path, (*names, "owl"))
        assert open_pack(store.url, options(tmp_path)).classes == (*names, "owl")
        (packed.path / CLASS_NAMES_PATH).write_text("[")
        with pytest.raises(UserError, match=rf"^{store.url}/labels/classes\.json is damaged"):
            open_pack(store.url, options(tmp_path))


def test_what_cannot_be_read_is_refused(tmp_path, local, store):
    with pytest.raises(UserError, match=r"no object at .*nothing/manifest\.json"):
        open_pack(f"{store.url}/nothing", options(tmp_path))
    with pytest.raises(UserError, match="a store that fsspec knows"):
        open_pack("gopher://host/pack", options(tmp_path))
    with pytest.raises(UserError, match="two windows of 3 shards"):
        build(open_pack(store.url, options(tmp_path, cache_bytes=10_000)))
    with pytest.raises(UserError, match="use 'stream'"):
        build(open_pack(store.url, options(tmp_path)), backend="cpu")
    for wrong in [
        {"tries": 0},
        {"num_fetchers": 1.5},
        {"request_timeout_s": float("nan")},
        {"backoff_s": -1},
    ]:
        with pytest.raises(UserError, match=f"store {next(iter(wrong))}: expected .*, found .*; "):
            StoreOptions(**wrong)


@pytest.mark.parametrize(("scheme", "install"), [("s3", ".[s3]"), ("gs", "fsspec[gs]")])
def test_a_store_whose_library_is_missing(monkeypatch, scheme, install):
    def missing(*args, **kwargs):
        raise ImportError("Install the package of this store")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    found = f"a package that reads {scheme}://, found none (Install the package of this store)"
    with pytest.raises(MissingBackendError, match=re.escape(f"{found}; pip install '{install}'")):
        open_pack(f"{scheme}://bucket/pack")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/p/", "s3://bucket/p"),
        (str(Path("s3://bucket/p")), "s3://bucket/p"),
        ("file:///srv/p", "file:///srv/p"),
        ("packs/mine", None),
        ("/packs/mi:ne", None),
    ],
)
def test_urls_are_told_from_paths(path, url):
    assert as_url(path) == url


def test_shards_of_a_split_and_of_a_part_of_it(local, monkeypatch):
    split = local.split("train")
    shards, rows = shards_of(split)
    assert shards.tolist() == list(range(local.num_shards))
    assert rows.sum() == 60
    for positions in ([0, 1, 30, 59], list(range(0, 60, 2))):
        shards, rows = shards_of(split.take(np.array(positions)))
        numbers, counts = np.unique(local.columns.shard[np.array(positions)], return_counts=True)
        assert shards.tolist() == numbers.tolist()
        assert rows.tolist() == counts.tolist()
    monkeypatch.setattr("loaders.backends.stream._FEW_RANGES", 2)
    assert shards_of(split.take(np.arange(0, 60, 7)))[1].sum() == 9
