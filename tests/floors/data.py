"""The packs that floor-tested trainings read, each made on first use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from loaders.packs import Pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


class Data:
    """The packs that trainings read.

    Attributes:
        digits: the digits as the splits `unlabeled`, `train` and `test`.
    """

    def __init__(self, digits: Pack, images: Path, folder: Path) -> None:
        """Store the paths.

        Args:
            digits: the digits as the splits `unlabeled`, `train` and `test`.
            images: folder of the images, `train/<digit>/*.jpg` and `test/<digit>/*.jpg`.
            folder: folder for the packs and runs made here.
        """
        self.digits, self._images, self._folder = digits, images, folder
        self.small, self.trained = cache(self._pack_small), cache(self._train)

    def _pack_small(self) -> Path:
        """Pack 300 digits as the splits `unlabeled` and `train`, and all of the split `test`."""
        folder = self._folder / "small"
        for digit in "0123456789":
            (folder / "images" / digit).mkdir(parents=True)
            for source in sorted((self._images / "train" / digit).glob("*.jpg"))[:30]:
                (folder / "images" / digit / source.name).write_bytes(source.read_bytes())
        images = folder / "images"
        splits = [f"unlabeled={images}", f"train={images}", f"test={self._images / 'test'}"]
        pack_dataset(PackOptions(parse_splits(splits), folder / "pack", workers=1))
        return folder / "pack"

    def _train(self, seed: int) -> Path:
        """Train a classifier and its average on ten digits per class; tests must not change the run."""
        from recipes import supervised  # imported here, as tests of loaders need no recipe
        from tests.recipes.labelled import FEW

        out = self._folder / f"trained-{seed}"
        few = FEW | {
            "labels_per_class": 10,
            "epochs": 10,
            "min_crop": 0.6,
            "ema_decay": 0.5,
            "seed": seed,
        }
        supervised.run(supervised.Config(pack=self.digits.path, out=out, **few))
        return out
