"""Packs in a remote store: small files are copied once, shards are fetched when they are needed."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loaders.common.cache_folder import cache_folder
from loaders.common.errors import UserError
from loaders.common.files import atomic_file, sha256_of, write_atomic
from loaders.packs.columns import IndexColumns, open_columns
from loaders.packs.labels.class_names import (
    CLASS_NAMES_PATH,
    joined_class_names,
    parse_class_names,
    write_class_names,
)
from loaders.packs.manifest import (
    INDEX_FOLDER,
    LABELS_FOLDER,
    MANIFEST_NAME,
    SHARD_LIST_NAME,
    FileInfo,
    Manifest,
    parse_manifest,
    read_manifest,
)
from loaders.packs.mapped import map_file
from loaders.packs.pack import Pack
from loaders.packs.shards.shard_list import read_shard_records
from loaders.packs.stores.shard_cache import ShardCache
from loaders.packs.stores.store import Store, StoreError, StoreOptions

MAX_MANIFEST_BYTES = 64 << 20


class RemotePack(Pack):
    """A pack whose shards are fetched into a bounded cache when one of their rows is needed.

    Everything else works as in a local pack; `path` is the folder of the local copies.
    """

    def __init__(self, path: Path, manifest: Manifest, columns: IndexColumns, cache: ShardCache) -> None:
        """Keep the parts of an opened pack, or raise `UserError` if they differ; callers use `open_pack`."""
        super().__init__(path, manifest, columns)
        self.cache = cache
        self.url = cache.store.url
        self.shard_files = tuple(record.files[0] for record in read_shard_records(path))
        self._map_lock = threading.Lock()
        names = [self.shard_path(shard).name for shard in range(manifest.num_shards)]
        if [info.path for info in self.shard_files] != names:
            raise UserError(
                f"{self.url}/{SHARD_LIST_NAME} lists other shards than the manifest; upload the pack again"
            )

    def shard_map(self, shard: int) -> NDArray[np.uint8]:
        """Return shard `shard` as a read-only uint8 memory map; fetch it first if it is not here."""
        mapped = self._maps.get(shard)
        if mapped is None:
            mapped = self._fetch(shard)
            with self._map_lock:
                self._maps[shard] = mapped
                self._drop_old_maps()
        return mapped

    def _fetch(self, shard: int) -> NDArray[np.uint8]:
        while True:
            path = self.cache.fetch(self.shard_files[shard])
            try:
                return map_file(path)
            except FileNotFoundError:
                # Another process removed the shard to make room. Every process removes the longest unused
                # shards first, so this ends.
                continue

    def _drop_old_maps(self) -> None:
        """Drop the oldest unprotected maps beyond the cache's size: a mapped file keeps its disk space."""
        excess = sum(len(mapped) for mapped in self._maps.values()) - self.cache.cache_bytes
        for shard in list(self._maps)[:-1]:
            if excess <= 0:
                return
            if not self.cache.is_protected(self.shard_files[shard].path):
                excess -= len(self._maps.pop(shard))


def open_remote_pack(url: str, options: StoreOptions) -> RemotePack:
    """Open a remote pack; its small files are copied to this machine first, unless they are here already.

    Args:
        url: URL of the folder that `tools/pack_dataset.py` wrote, in any store fsspec knows.

    Returns:
        The pack; its columns are local and memory-mapped, and no shard has been fetched.

    Raises:
        UserError: there is no pack, it is damaged or may not be read, or the cache cannot be written.
        StoreError: the store did not deliver.
    """
    store = Store(url, options)
    raw = _fetch_manifest(store)
    # A new pack under the same URL has a new manifest, and so a new folder.
    digest = hashlib.sha256(url.encode() + b"\0" + raw).hexdigest()[:24]
    cache_dir = options.cache_dir.expanduser().absolute() if options.cache_dir else cache_folder()
    folder = cache_dir / f"{url.rsplit('/', 1)[-1] or 'pack'}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MANIFEST_NAME, raw)
        manifest = read_manifest(folder)
        for info in manifest.files:
            if _is_needed(info):
                _copy(store, info, folder / info.path)
        _copy_class_names(store, folder)
    except OSError as error:
        raise UserError(f"cache {folder}: cannot be written ({error}); give another cache_dir") from None
    cache = ShardCache(folder, store, options.cache_bytes)
    return RemotePack(folder, manifest, open_columns(folder, manifest.num_images), cache)


def _fetch_manifest(store: Store) -> bytes:
    """Return the bytes of the manifest, requested anew after a damaged answer until two answers are equal."""
    last = None
    for _ in range(store.options.tries):
        raw = store.read(MANIFEST_NAME, 0, MAX_MANIFEST_BYTES + 1)
        if len(raw) > MAX_MANIFEST_BYTES:
            raise UserError(
                f"{store.url}/{MANIFEST_NAME} has over {MAX_MANIFEST_BYTES} bytes: this is not a manifest"
            )
        try:
            parse_manifest(raw, f"{store.url}/{MANIFEST_NAME}")
        except UserError:
            if raw == last:  # so the store itself holds these bytes
                raise
            last = raw
        else:
            return raw
    raise StoreError(
        f"{store.url}/{MANIFEST_NAME}: {store.options.tries} tries gave damaged answers that differ; check "
        "the store"
    )


def _copy_class_names(store: Store, folder: Path) -> None:
    """Copy the class names added after packing; always fetch their file, which the manifest does not list."""
    try:
        raw = store.read(CLASS_NAMES_PATH, 0, MAX_MANIFEST_BYTES)
    except UserError:  # there are none; some stores deny access to a file that does not exist
        return
    names = parse_class_names(raw, f"{store.url}/{CLASS_NAMES_PATH}")
    write_class_names(folder, joined_class_names(folder, names))  # keeps classes added to the local copy


def _is_needed(info: FileInfo) -> bool:
    return info.path.split("/")[0] in (INDEX_FOLDER, LABELS_FOLDER, SHARD_LIST_NAME)


def _copy(store: Store, info: FileInfo, path: Path) -> None:
    """Copy a file that the manifest lists, unless an intact copy is here."""
    is_here = path.is_file() and path.stat().st_size == info.size_bytes
    if is_here and sha256_of(path) == info.sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        store.download(info.path, info, file)
