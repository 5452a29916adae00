"""The images of a benchmark: files on disk, repeated into epochs long enough to measure."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from loaders.errors import UserError

JPEG_SUFFIXES = (".jpg", ".jpeg")
EPOCH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Corpus:
    """Source images and the folder where contenders keep their own form of them.

    Attributes:
        root: folder for derived files (tars, betons, chunks), made once and reused.
        paths: the JPEG file of each image of an epoch; source files repeat to fill it.
        uniform: whether all images have one size.
    """

    root: Path
    paths: tuple[Path, ...]
    uniform: bool

    @property
    def tar(self) -> Path:
        """Return the WebDataset tar of the epoch."""
        return self.root / "images.tar"

    @property
    def beton(self) -> Path:
        """Return the FFCV file of the epoch."""
        return self.root / "images.beton"

    @property
    def litdata(self) -> Path:
        """Return the folder of LitData chunks of the epoch."""
        return self.root / "litdata"


def open_corpus(images: Path, cache: Path, batch_size: int, num_images: int = 0) -> Corpus:
    """List a folder's JPEG files and repeat them to an epoch.

    Args:
        images: folder searched recursively for JPEG files.
        cache: folder that receives the derived files.
        batch_size: images per batch; an epoch holds at least 4 batches.
        num_images: images per epoch; 0 repeats the sources to about 256 MiB.

    Returns:
        The corpus, with its list of paths written to `root` for the contenders' processes.

    Raises:
        UserError: no JPEG file in the folder.
    """
    sources = sorted(path.resolve() for path in images.rglob("*") if path.suffix.lower() in JPEG_SUFFIXES)
    if not sources:
        raise UserError(f"{images}: expected JPEG files, found none; give a folder with .jpg or .jpeg files")
    size_bytes = sum(path.stat().st_size for path in sources)
    repeats = max(1, EPOCH_BYTES // size_bytes, -(-4 * batch_size // len(sources)))
    paths = [path for _ in range(repeats) for path in sources] if not num_images else []
    paths += [sources[i % len(sources)] for i in range(num_images)]
    root = cache / f"{images.resolve().name}-{len(sources)}x{size_bytes}-{len(paths)}"
    root.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(root, tuple(paths), _is_uniform(sources))
    _write_atomically(root / "corpus.json", _as_json(corpus))
    return corpus


def read_corpus(root: Path) -> Corpus:
    """Return the corpus that `open_corpus` wrote to a folder."""
    stored = json.loads((root / "corpus.json").read_text())
    return Corpus(root, tuple(Path(path) for path in stored["paths"]), stored["uniform"])


def write_tar(corpus: Corpus) -> None:
    """Write the epoch's images as one WebDataset tar, unless it is there."""
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


def warm_page_cache(corpus: Corpus) -> None:
    """Read every file that a contender may read, so that all of them start from memory."""
    files = set(corpus.paths) | {path for path in corpus.root.rglob("*") if path.is_file()}
    for path in sorted(files):
        with path.open("rb") as file:
            while file.read(2**22):
                pass


def _is_uniform(sources: list[Path]) -> bool:
    from PIL import Image

    sizes = set()
    for path in sources:
        with Image.open(path) as image:
            sizes.add(image.size)
        if len(sizes) > 1:
            return False
    return True


def _as_json(corpus: Corpus) -> str:
    return json.dumps({"paths": [str(path) for path in corpus.paths], "uniform": corpus.uniform})


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
