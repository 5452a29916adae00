"""A pack on S3 gives the same batches as one on disk, also under the faults that an S3 store shows."""

import pytest
import torch

from loaders import build_loader
from loaders.common.errors import LoaderError, UserError
from loaders.packs import StoreOptions, open_pack
from loaders.packs.stores.store import StoreError
from loaders.views import presets
from tests.faults.s3_server import KEYS, s3_server
from tests.loaders.packs.inputs import class_tree, pack, write_tree
from tests.loaders.settings import gathered

s3fs = pytest.importorskip("s3fs", reason="needs the extra s3")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    write_tree(folder / "in", class_tree(2, 20))
    return pack(folder / "pack", f"train={folder / 'in'}", shard_size_mb=0.012)


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def bucket(endpoint, local):
    """Upload the pack as s3://images/packs/mine; return a client of the store."""
    client = s3fs.S3FileSystem(**KEYS, client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True)
    client.mkdir("images")
    client.put(str(local.path), "images/packs/mine", recursive=True)
    return client


def remote(endpoint, tmp_path, path="images/packs/mine", **changes):
    # The client library tries each request once, so that our own retries have to handle the faults.
    filesystem = {**KEYS, "client_kwargs": {"endpoint_url": endpoint}, **changes}
    filesystem["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 2}
    options = StoreOptions(
        tmp_path, tries=3, backoff_s=0.01, request_timeout_s=5, block_bytes=8192, filesystem=filesystem
    )
    return open_pack(f"s3://{path}", options)


def batches(pack):
    settings = {"batch_size": 8, "backend": "stream", "window": 2, "num_threads": 2, "timeout_s": 30}
    with build_loader(pack.split("train"), (presets.crop_flip(16),), **gathered(**settings)) as loader:
        return [batch for epoch in range(2) for batch in loader.epoch(epoch)]


def test_the_batches_of_the_disk(tmp_path, local, endpoint, bucket):
    for a, b in zip(batches(remote(endpoint, tmp_path)), batches(local), strict=True):
        assert torch.equal(a.views[0], b.views[0])
        assert torch.equal(a.index, b.index)


def test_what_is_not_there(tmp_path, endpoint, bucket):
    with pytest.raises(UserError, match=r"no object at s3://images/packs/other/manifest\.json"):
        remote(endpoint, tmp_path, "images/packs/other")
    with pytest.raises(UserError, match=r"no object at s3://nobody/pack/manifest\.json"):
        remote(endpoint, tmp_path, "nobody/pack")


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_object_is_an_error_with_its_url(tmp_path, local, endpoint, bucket, damage):
    key = f"images/packs/mine/shards/{local.shard_path(1).name}"
    whole = bucket.cat_file(key)
    try:
        if damage == "gone":
            bucket.rm(key)
        else:
            bucket.pipe_file(key, whole[:5000] if damage == "cut" else bytes(len(whole)))
        with pytest.raises((StoreError, UserError), match=f"s3://{key}"):
            batches(remote(endpoint, tmp_path))
    finally:
        bucket.pipe_file(key, whole)


def test_a_store_that_goes_away(tmp_path, local):
    with s3_server() as endpoint:
        client = s3fs.S3FileSystem(**KEYS, client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True)
        client.mkdir("images")
        client.put(str(local.path), "images/packs/mine", recursive=True)
        pack = remote(endpoint, tmp_path)
    with pytest.raises(LoaderError, match=r"s3://images/packs/mine/shards/train-\d+\.tar"):
        batches(pack)
