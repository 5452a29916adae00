"""A loader's fingerprint does not depend on the pack's path, and changes with all that decides batches."""

import shutil

import numpy as np

from loaders import build_loader, build_paired_loader, open_pack
from loaders.packs import LabelTable
from loaders.views import presets
from tests.loaders.settings import gathered

VIEWS = (presets.weak(16),)


def plain(pack, **changes):
    settings = {"views": VIEWS, "batch_size": 8, "num_threads": 1} | changes
    with build_loader(pack.split("train"), **gathered(**settings)) as loader:
        return tuple(loader.fingerprint.items())


def pair(pack, **changes):
    split = pack.split("train")
    with build_paired_loader(
        split, split, VIEWS, VIEWS, 2, 3, **gathered(num_threads=1, **changes)
    ) as loader:
        return tuple(loader.fingerprint.items())


def test_what_decides_the_batches_decides_the_fingerprint(photo_pack, digits_pack, tmp_path):
    same = plain(photo_pack)
    shutil.copytree(photo_pack.path, tmp_path / "elsewhere")
    assert plain(open_pack(tmp_path / "elsewhere"), num_threads=2) == same
    assert plain(photo_pack, rank=1, num_ranks=2) == same, "any number of ranks shares the same batches"
    assert plain(photo_pack, backend="cpu", window=2) == same, "no window plays a part in a full shuffle"
    table = LabelTable.of(np.arange(3), np.zeros(3, np.int64), 3)
    changed = [
        plain(digits_pack),
        plain(photo_pack, seed=1),
        plain(photo_pack, batch_size=4),
        plain(photo_pack, views=(presets.weak(32),)),
        plain(photo_pack, labels=table),
        plain(photo_pack, mode="eval"),
        plain(photo_pack, dtype="uint8"),
        plain(photo_pack, backend="stream"),
        plain(photo_pack, backend="stream", window=2),
        pair(photo_pack),
        pair(photo_pack, labels=table),
        pair(photo_pack, balanced=True),
    ]
    assert len({same, *changed}) == 1 + len(changed)
