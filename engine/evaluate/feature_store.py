"""Features of a frozen network, computed once and kept on disk as a memory-mapped float16 array.

FOLDER/<fingerprint>/features.npy   float16 [V, N, D]: V views of N images, in the order of the split
                     present.npy    bool [N]: False where an image could not be read
                     rows.npy       int64 [N]: rows of the pack
                     store.json     the facts behind the fingerprint, and the number of images done

The fingerprint covers the pack, the rows of the split, every tensor of the network, the layer that is read,
and the views with their seed; a change in any of them makes a new array. An interrupted computation
continues from the progress that was last recorded, on any number of ranks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.evaluate.predict import evaluation_mode
from engine.evaluate.representations import Features
from engine.train.bad_rows import read_in_order
from engine.train.distributed import all_reduce_sum, on_main, rank
from engine.train.progress import CountProgress
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.locks import locked
from loaders.common.notice import tell
from loaders.epochs import EpochLoader
from loaders.order.fingerprint import pack_fingerprint
from loaders.packs import Pack, Split

FOLDER = "features"
_ROWS_PER_MARK = 8192  # maximum rows between two records of the progress, unless a batch is larger


@dataclass(frozen=True)
class FeatureStore:
    """Features of a split on disk.

    Attributes:
        folder: the folder that holds the files.
        h: float16 [V, N, D], memory-mapped; only the parts that are read are in memory.
        present: bool [N], False where an image could not be read.
        rows: int64 [N], rows of the pack.
    """

    folder: Path
    h: NDArray[np.float16]
    present: NDArray[np.bool_]
    rows: NDArray[np.int64]

    def features(self, labels: NDArray[np.int64], view: int = 0) -> Features:
        """Return one view's features of all images that could be read.

        Args:
            labels: int64 [N], label of each position of the split; -1 for none.
            view: number of the view.

        Returns:
            Features in float16, not copied if every image could be read.
        """
        h = torch.from_numpy(self.h[view])
        found, rows = torch.from_numpy(labels), torch.from_numpy(self.rows)
        if self.present.all():
            return Features(h, found, rows)
        kept = torch.from_numpy(np.flatnonzero(self.present))
        return Features(h[kept], found[kept], rows[kept])


def store_features(
    network: nn.Module,
    loader: EpochLoader,
    split: Split,
    device: torch.device | str,
    folder: Path,
    out: Path,
) -> FeatureStore:
    """Return the features of a split, computed now unless they are on disk; every rank must call this.

    Args:
        network: maps views [B, 3, H, W] to features [B, D], on `device`; it runs in evaluation mode, and
            afterwards each module has its former mode.
        loader: this rank's share of the split, in evaluation mode, with V views of one size.
        folder: folder for the features of several splits, views and networks, such as RUN/features.
        out: folder in whose `bad_rows.jsonl` images that cannot be read are recorded.

    Raises:
        UserError: features do not fit into float16, another process works on the same array, or the folder
            cannot be written or is on a full disk.
    """
    facts = _facts(network, loader)
    place = folder / hashlib.sha256(to_json(facts)).hexdigest()[:16]
    with ExitStack() as held:
        on_main(lambda: _claim(held, place))
        done = on_main(lambda: _rows_done(place, facts))
        if done < len(split):
            _compute(network, loader, split, device, place, facts, done, out)
        else:
            tell(f"features: {done:,} of {len(split):,} images are stored, in {place}")
    return _open(place, split, "c")


def _facts(network: nn.Module, loader: EpochLoader) -> dict[str, str]:
    """Return the facts that determine the features, as short texts."""
    facts = {name: text for name, text in loader.fingerprint.items() if name not in ("batch size", "labels")}
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    layer = getattr(network, "layer", None)  # the hash does not depend on which layer is read
    return facts | {"network": digest.hexdigest()} | ({} if layer is None else {"layer": repr(layer)})


def _claim(held: ExitStack, place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        taken = f"features: another process works on {place}; wait for it"
        held.enter_context(locked(place / "lock", taken))
    except OSError as error:
        raise UserError(
            f"features: {place} cannot be made or written ({error.strerror}); give another folder"
        ) from None


def _rows_done(place: Path, facts: Mapping[str, Any]) -> int:
    try:
        content = parse_json((place / "store.json").read_bytes())
        if content["facts"] != dict(facts) or not (place / "features.npy").is_file():
            return 0
        return int(content["rows_done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _open(place: Path, split: Split, mode: Literal["r", "r+", "c"]) -> FeatureStore:
    h, present = (
        np.load(place / name, mmap_mode=mode, allow_pickle=False) for name in ("features.npy", "present.npy")
    )
    return FeatureStore(place, h, present, split.rows(np.arange(len(split))))


def _create(place: Path, shape: tuple[int, int, int], split: Split) -> None:
    """Write the rows, and both arrays as sparse files of zeros, which take no space until written."""
    needed = int(np.prod(shape)) * 2
    free = os.statvfs(place)
    if needed > free.f_bavail * free.f_frsize:
        raise UserError(
            f"features: expected {needed / 1e9:.1f} GB of free disk at {place}, found "
            f"{free.f_bavail * free.f_frsize / 1e9:.1f}; free some, or give another folder"
        )
    np.save(place / "rows.npy", split.rows(np.arange(len(split))))
    for name, dtype, size in (("features.npy", np.float16, shape), ("present.npy", np.bool_, shape[1:2])):
        np.lib.format.open_memmap(place / name, mode="w+", dtype=dtype, shape=size).flush()


@torch.inference_mode()
def _compute(
    network: nn.Module,
    loader: EpochLoader,
    split: Split,
    device: torch.device | str,
    place: Path,
    facts: Mapping[str, Any],
    done: int,
    out: Path,
) -> None:
    size, first = loader.batch_size, done // loader.batch_size
    per_mark = max(1, _ROWS_PER_MARK // size)
    if first:
        tell(f"features: {done:,} of {len(split):,} images are done; continuing from there")
    position = np.full(len(split.pack), -1, np.int64)
    position[split.rows(np.arange(len(split)))] = np.arange(len(split))
    store: FeatureStore | None = None
    shown = CountProgress("features", len(split), first * size, rank() == 0)
    with evaluation_mode(network), shown:
        for step, batch in enumerate(read_in_order(loader, out, device, first), start=first):
            h = [network(view.to(device)) for view in batch.views]
            if store is None:
                shape = (len(h), len(split), h[0].shape[1])
                if first == 0:
                    on_main(lambda s=shape: _create(place, s, split))  # type: ignore[misc]
                store = _open(place, split, "r+")
            _write(store, h, batch, position)
            rows = min(len(split), (step + 1) * size)
            shown.show(rows, len(split))
            if (step + 1) % per_mark == 0 or step + 1 == loader.steps_per_epoch:
                _mark(store, rows, facts, device)


def _write(store: FeatureStore, h: list[Tensor], batch: Batch, position: NDArray[np.int64]) -> None:
    valid = batch.valid.cpu()
    places = position[batch.index[valid].cpu().numpy()]
    for view, found in enumerate(h):
        half = found[valid.to(found.device)].half().cpu()
        if not bool(torch.isfinite(half).all()):
            raise UserError(
                "features: expected numbers that float16 holds, found NaN, infinity or more than 65,504; the "
                "network is broken, or scale its output"
            )
        store.h[view, places] = half.numpy()
    store.present[places] = True


def _mark(store: FeatureStore, rows: int, facts: Mapping[str, Any], device: torch.device | str) -> None:
    """Record the progress once every rank has written its features up to `rows`."""
    for array in (store.h, store.present):
        assert isinstance(array, np.memmap)
        array.flush()
    all_reduce_sum(torch.zeros(1, device=device))
    content = to_json({"facts": dict(facts), "rows_done": rows})
    on_main(lambda: write_atomic(store.folder / "store.json", content))


def read_stored(folder: Path, pack: Pack) -> tuple[Tensor, NDArray[np.int64]] | None:
    """Return the stored features of a pack's images; None if the folder holds none.

    If the folder holds features of several networks, layers or views, those that cover the most images are
    returned.

    Args:
        folder: the folder that `store_features` was given, or the run folder that contains it.

    Returns:
        The features of the first view, float16 [N, D], memory-mapped if one array on disk holds exactly these
        in order, and their rows of the pack, int64 [N], increasing.
    """
    found: dict[tuple[Any, ...], list[FeatureStore]] = {}
    for path in sorted({*folder.glob("*/store.json"), *folder.glob(f"{FOLDER}/*/store.json")}):
        place = path.parent
        try:
            facts = dict(parse_json(path.read_bytes())["facts"])
            rows = np.load(place / "rows.npy", allow_pickle=False)
            h, present = (
                np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False)
                for name in ("features", "present")
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # written by another version, or not finished
        if facts.get("pack") == pack_fingerprint(pack) and h.shape[1] == len(rows):
            by = tuple(facts.get(name) for name in ("network", "layer", "views"))
            found.setdefault(by, []).append(FeatureStore(place, h, present, rows))
    if not found:
        return None
    stores = max(found.values(), key=lambda stores: sum(int(store.present.sum()) for store in stores))
    parts = [store.features(np.full(len(store.rows), -1)) for store in stores]
    h = parts[0].h if len(parts) == 1 else torch.cat([part.h for part in parts])
    rows, first = np.unique(torch.cat([part.index for part in parts]).numpy(), return_index=True)
    if len(parts) == 1 and (np.diff(first) == 1).all():
        return h, rows
    return h[torch.from_numpy(first)], rows


Make = Callable[[Split], EpochLoader]
"""Function that builds this rank's loader of a split, in the order of the split."""


def features_of(
    network: nn.Module,
    split: Split,
    make: Make,
    device: torch.device | str,
    folder: Path,
    out: Path,
    labels: NDArray[np.int64] | None = None,
) -> Features:
    """Return the features of the first view of a split's images; see `store_features`.

    Args:
        make: builds the loader, which is closed afterwards.
        labels: int64 [N], label of each position of the split; those of the pack by default.
    """
    with make(split) as loader:
        store = store_features(network, loader, split, device, folder, out)
    return store.features(split.labels() if labels is None else labels)
