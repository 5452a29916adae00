"""The images of a benchmark: a pack, and copies in other formats for contenders that cannot read packs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders import open_pack
from loaders.common.errors import UserError
from loaders.common.files import write_atomic
from loaders.common.json_text import parse_json
from loaders.kernels.encodings import ENCODING_JPEG
from loaders.packs.image import ImagePolicy
from loaders.packs.manifest import MANIFEST_NAME
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import SplitSource
from tools.bench.workload import ImageEncoding, Workload

JPEG_SUFFIXES = (".jpg", ".jpeg")
EPOCH_BYTES = 256 * 2**20
LEAST_BATCHES = 4
_ONE_SHARD_MB = 1e6


@dataclass(frozen=True)
class Corpus:
    """One epoch of images: the same JPEG bytes, or the pixels decoded from them, for every contender.

    Attributes:
        root: folder for the copies in other formats, which are written once and reused.
        num_images: images of the split, and so of an epoch.
        uniform: whether all images have the same height and width.
    """

    root: Path
    pack: Path
    split: str
    num_images: int
    uniform: bool

    @property
    def paths(self) -> list[Path]:
        """Return the path of each image's JPEG file, for contenders that read files."""
        return [self.root / "files" / f"{number:08d}.jpg" for number in range(self.num_images)]

    @property
    def tar(self) -> Path:
        """Return the path of the WebDataset tar that holds the epoch."""
        return self.root / "images.tar"

    def tar_pack(self, encoding: ImageEncoding) -> Path:
        """Return the folder of the pack that holds the epoch as JPEG images or as pixels."""
        return self.pack if encoding == "jpeg" else self.root / "raw"

    def beton_pack(self, encoding: ImageEncoding) -> Path:
        """Return the folder of the pack that holds the epoch in one FFCV shard."""
        return self.root / ("beton" if encoding == "jpeg" else "raw_beton")

    @property
    def litdata(self) -> Path:
        """Return the folder of the LitData chunks that hold the epoch."""
        return self.root / "litdata"


def pack_images(images: Path, cache: Path, batch_size: int, num_images: int = 0) -> Path:
    """Pack a folder of JPEG files, repeated if need be, for a benchmark, unless this pack exists.

    Args:
        images: folder that is searched recursively for JPEG files.
        batch_size: images per batch; matters only if `num_images` is 0.
        num_images: images per epoch; 0 repeats all files up to 256 MiB, but to four batches at least.

    Returns:
        The folder of the pack, which has one split, "train".

    Raises:
        UserError: the folder holds no JPEG file.
    """
    sources = sorted(path for path in images.rglob("*") if path.suffix.lower() in JPEG_SUFFIXES)
    if not sources:
        raise UserError(f"{images}: expected JPEG files, found none; give a folder with .jpg or .jpeg files")
    sizes = [path.stat().st_size for path in sources]
    repeats = max(1, EPOCH_BYTES // max(1, sum(sizes)), -(-LEAST_BATCHES * batch_size // len(sources)))
    total = num_images or repeats * len(sources)
    named = json.dumps([total, *[(str(path), size) for path, size in zip(sources, sizes, strict=True)]])
    pack = cache / f"{images.resolve().name}-{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    if not (pack / MANIFEST_NAME).exists():
        copies = pack.with_name(f"{pack.name}.copies")
        copies.mkdir(parents=True, exist_ok=True)
        for number in range(total):
            shutil.copyfile(sources[number % len(sources)], copies / f"{number:08d}.jpg")
        pack_dataset(PackOptions((SplitSource("train", str(copies)),), pack))
        shutil.rmtree(copies)
    return pack


def open_corpus(pack_path: Path, split_name: str, cache: Path, batch_size: int) -> Corpus:
    """Write a pack's images as files for contenders that read files, and return the corpus.

    The fields of the corpus are also written to its root, where the contenders' processes read them.

    Args:
        split_name: name of the split; an empty name takes the first split.
        batch_size: images per batch; the split must have at least 4 batches.

    Raises:
        UserError: no such pack or split, images that are not JPEG, or too few images.
    """
    pack = open_pack(pack_path)
    split = pack.split(split_name or pack.splits[0])
    if len(split) < LEAST_BATCHES * batch_size:
        raise UserError(
            f"split {split.name!r}: expected at least {LEAST_BATCHES} batches of {batch_size} images, found "
            f"{len(split)} images; use a smaller --batch-size, or --images to have them repeated"
        )
    rows = split.rows(np.arange(len(split)))
    if (pack.columns.encoding[rows] != ENCODING_JPEG).any():
        raise UserError(f"pack: expected JPEG images, found pixels in {pack_path}; pack with --encoding jpeg")
    shapes = np.stack([pack.columns.height[rows], pack.columns.width[rows]])
    uniform = bool((shapes == shapes[:, :1]).all())
    mark = hashlib.sha256((pack_path / MANIFEST_NAME).read_bytes()).hexdigest()[:8]
    root = cache / f"{split.name}-{mark}"
    corpus = Corpus(root, pack_path.resolve(), split.name, len(split), uniform)
    if not (root / "corpus.json").exists():
        (root / "files").mkdir(parents=True, exist_ok=True)
        for row, path in zip(rows, corpus.paths, strict=True):
            path.write_bytes(pack.read(int(row)))
        about = {"pack": str(corpus.pack), "split": split.name, "num_images": len(split), "uniform": uniform}
        write_atomic(root / "corpus.json", json.dumps(about).encode())
    return corpus


def read_corpus(root: Path) -> Corpus:
    """Return the corpus whose fields `open_corpus` wrote to this root."""
    stored = parse_json((root / "corpus.json").read_text())
    return Corpus(root, Path(stored["pack"]), stored["split"], stored["num_images"], stored["uniform"])


def write_tar(workload: Workload, corpus: Corpus) -> None:
    """Write the epoch's images as one WebDataset tar, unless the tar exists."""
    if corpus.tar.exists():
        return
    partial = corpus.tar.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, path in enumerate(corpus.paths):
            for suffix, payload in (("jpg", path.read_bytes()), ("cls", b"0")):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
    partial.replace(corpus.tar)


def write_beton(workload: Workload, corpus: Corpus) -> None:
    """Write the epoch's images, as JPEG or as pixels, as a pack of one FFCV shard, unless the pack exists."""
    _write_pack(corpus, corpus.beton_pack(workload.encoding), "ffcv", workload.encoding)


def write_pixels(workload: Workload, corpus: Corpus) -> None:
    """Write the epoch's images as a pack of pixels, if the workload reads pixels and no such pack exists."""
    if workload.encoding == "raw":
        _write_pack(corpus, corpus.tar_pack("raw"), "webdataset", "raw")


def _write_pack(corpus: Corpus, out: Path, kind: str, encoding: ImageEncoding) -> None:
    source = SplitSource("train", str(corpus.root / "files"))
    policy = ImagePolicy(encoding=encoding)
    pack_dataset(PackOptions((source,), out, kind, policy, shard_size_mb=_ONE_SHARD_MB))


def warm_page_cache(corpus: Corpus) -> None:
    """Read every file that a contender may read, so that the page cache holds it."""
    for folder in (corpus.root, corpus.pack):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(2**22):
                        pass
