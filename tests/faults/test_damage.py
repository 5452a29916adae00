"""Hundreds of cases of damage: cut shards, flipped bits, read errors, failing stores, clock jumps."""

import errno
import json
import os
import random
import shutil
import time
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from loaders import LoaderOptions, build_loader
from loaders.common.errors import LoaderError, UserError
from loaders.packs import StoreOptions, open_pack, packer
from loaders.packs.manifest import QUARANTINE_NAME
from loaders.packs.verify import verify_pack
from loaders.views import presets
from tests.faults.http_store import serve
from tests.faults.records import record
from tests.loaders.packs.inputs import class_tree, folder_hashes, pack, write_tar, write_tree
from tests.loaders.settings import gathered

VIEWS = (presets.crop_flip(16),)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("damage") / "in", class_tree(2, 20))


@pytest.fixture(scope="module")
def whole(source):
    return pack(source.parent / "pack", f"train={source}", shard_size_mb=0.03)


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "copy")
    return open_pack(tmp_path / "copy")


def batches(opened, epochs=(0,), **options):
    settings = {"batch_size": 8, "num_threads": 2, "timeout_s": 110.0} | options
    with build_loader(opened.split("train"), VIEWS, **gathered(**settings)) as loader:
        return [batch for epoch in epochs for batch in loader.epoch(epoch)], loader.bad_rows


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(a.views[0], b.views[0]) and torch.equal(a.index, b.index)
        for a, b in zip(found, expected, strict=True)
    )


def number_of_tries(few, many):
    return pytest.mark.parametrize(
        "tries", [few, pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
    )


@number_of_tries(25, 500)
def test_flipped_bits(copy, tries):
    rng, caught = random.Random(1), 0
    path = copy.shard_path(0)
    good = path.read_bytes()
    rows = np.flatnonzero(copy.columns.shard == 0)
    for _ in range(tries):
        row = int(rng.choice(rows))
        at = int(copy.columns.offset[row]) + rng.randrange(int(copy.columns.size[row]))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        found, bad = batches(open_pack(copy.path), verify=True, mode="eval")
        invalid = torch.cat([b.index[~b.valid] for b in found]).tolist()
        caught += list(bad) == [row] and invalid == [row]
    record("a flipped bit in an image, verify=True", tries, caught, "the row is named, counted and left out")


@number_of_tries(12, 300)
def test_truncated_shards(whole, copy, tries):
    rng, survived = random.Random(2), 0
    expected, _ = batches(whole)
    for _ in range(tries):
        path = copy.shard_path(rng.randrange(copy.num_shards))
        good = path.read_bytes()
        path.write_bytes(good[: rng.randrange(len(good))])
        listed = bool(verify_pack(copy.path))
        try:
            found, bad = batches(open_pack(copy.path))
            survived += listed and not bad and same(found, expected)  # only padding was cut
        except UserError as error:
            survived += listed and str(path) in str(error)
        path.write_bytes(good)
    record("a truncated shard", tries, survived, "an error naming shard and row, or no row was cut")


@number_of_tries(2, 40)
def test_a_store_that_keeps_failing(whole, tmp_path, tries):
    kinds = ("error", "stall", "crawl", "cut", "short", "reset", "flip")
    rng, injected, survived = random.Random(3), 0, 0
    expected, _ = batches(whole, (0, 1), backend="stream", window=2)
    with serve(whole.path) as store:

        def fault_for(path, n):
            nonlocal injected
            if path.endswith("manifest.json") or rng.random() > 0.15:
                return None
            injected += 1
            return rng.choice(kinds)

        store.fault_for = fault_for
        for number in range(tries):
            before = injected
            options = StoreOptions(
                tmp_path / f"cache{number}", tries=12, backoff_s=0.01, request_timeout_s=0.3, block_bytes=8192
            )
            found, bad = batches(open_pack(store.url, options), (0, 1), backend="stream", window=2)
            survived += (injected - before) * (same(found, expected) and not bad)
    record(
        "a failing answer of a store (7 kinds)", injected, survived, "asked again; the batches are the same"
    )


NO_MEMORY = "/proc/self/mem"  # reading at its beginning gives EIO from the kernel


@pytest.fixture(scope="module")
def sources(source, whole):
    """Return sources of the same 40 images, in files and in archives, by the kind of reader."""
    folder = source.parent
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        for name, data in class_tree(2, 20).items():
            archive.writestr(name, data)
    beton = pack(folder / "beton", f"train={source}", shard_format="ffcv").shard_path(0)
    tar = write_tar(folder / "in.tar", class_tree(2, 20))
    return {"folder": source, "bulk": source, "tar": tar, "zip": folder / "in.zip", "beton": beton}


@contextmanager
def bad_file(folder, image, monkeypatch):
    """Replace the file that holds `image` by one that cannot be read."""
    (path,) = (path for path in folder.rglob("*.jpg") if path.read_bytes() == image)
    path.unlink()
    path.symlink_to(NO_MEMORY)
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(image)


@contextmanager
def bad_sector(path, image, monkeypatch):
    """Make an archive unreadable in the middle of `image`."""
    at, read = path.read_bytes().index(image) + len(image) // 2, os.pread

    def pread(descriptor, num_bytes, offset):
        if offset <= at < offset + num_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, num_bytes, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", pread)
        yield


@pytest.mark.skipif(not os.path.exists(NO_MEMORY), reason=f"{NO_MEMORY} is Linux's")
@number_of_tries(10, 200)
def test_read_errors_of_sources(sources, tmp_path, tries, monkeypatch):
    """An image that cannot be read while packing goes to the quarantine with its reason, and nowhere else."""
    rng, survived, images = random.Random(4), 0, list(class_tree(2, 20).values())
    for number in range(tries):
        kind = list(sources)[number % len(sources)]
        monkeypatch.setattr(packer, "_SMALL_INPUT_BYTES", 0 if kind == "bulk" else 1 << 60)
        damage = bad_file if kind in ("folder", "bulk") else bad_sector
        image = rng.choice(images)
        with damage(sources[kind], image, monkeypatch):
            made = pack(tmp_path / f"p{number}", f"train={sources[kind]}")
        (entry,) = (json.loads(line) for line in (made.path / QUARANTINE_NAME).read_text().splitlines())
        is_named = entry["reason"] == f"cannot be read: {os.strerror(errno.EIO)}"
        rows = {made.read(row) for row in range(len(made))}
        survived += is_named and rows == set(images) - {image} and not verify_pack(made.path)
    record("a read error in a source", tries, survived, "the image is in the quarantine with its reason")


@number_of_tries(5, 50)
def test_clock_jumps(source, whole, tmp_path, tries, monkeypatch):
    rng, survived = random.Random(5), 0
    expected, _ = batches(whole, (0, 1), backend="stream", window=1)
    hashes = folder_hashes(whole.path)
    now = time.time
    largest = max(whole.shard_path(shard).stat().st_size for shard in range(whole.num_shards))
    with serve(whole.path) as store:
        for number in range(tries):
            monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-1e9, 1e9))
            pack(tmp_path / f"p{number}", f"train={source}", shard_size_mb=0.03)
            options = StoreOptions(tmp_path / f"c{number}", cache_bytes=2 * largest, block_bytes=8192)
            remote = open_pack(store.url, options)
            with build_loader(
                remote.split("train"),
                VIEWS,
                8,
                options=LoaderOptions(num_threads=2, backend="stream", window=1, timeout_s=30),
            ) as loader:
                found = []
                for batch in (batch for epoch in (0, 1) for batch in loader.epoch(epoch)):
                    found.append(batch)
                    for path in (tmp_path / f"c{number}").glob("*/shards/*.tar"):
                        try:  # times of last use as a clock jump would leave them
                            os.utime(path, (0, rng.uniform(0, 4e9)))
                        except FileNotFoundError:
                            continue
            monkeypatch.setattr(time, "time", now)
            survived += same(found, expected) and folder_hashes(tmp_path / f"p{number}") == hashes
    record("a clock that jumps by decades", tries, survived, "the same pack, the same batches")


def test_a_shard_that_shrinks_under_a_loader_is_no_silent_loss(copy):
    """A shard of another size than recorded is an error even if it changes after the loader was built."""
    loader = build_loader(copy.split("train"), VIEWS, 8, options=LoaderOptions(num_threads=1))
    for shard in range(copy.num_shards):
        copy.shard_path(shard).write_bytes(b"")
    with loader, pytest.raises((UserError, LoaderError), match="cannot be read"):
        list(loader.epoch(0))
