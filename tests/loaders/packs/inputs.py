"""Inputs that tests pack: folders, tars, valid and damaged images."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from loaders.packs import Pack, open_pack
from loaders.packs.image import ImagePolicy
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


def pixels(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Draw a smooth coloured image, uint8 [height, width, 3], different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(seed: int, height: int = 24, width: int = 32) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels(seed, height, width)), 90, "rgb", "420")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def class_tree(num_classes: int = 3, per_class: int = 5, seed: int = 0) -> dict[str, bytes]:
    """Return images by path: `c0/000.jpg` and so on."""
    return {
        f"c{c}/{i:03d}.jpg": jpeg(seed + 100 * c + i) for c in range(num_classes) for i in range(per_class)
    }


def pack(out: Path, *splits: str, **options) -> Pack:
    names = ("max_side", "quality", "short_side", "crop_square", "encoding", "max_pixels", "damaged")
    policy = ImagePolicy(**{name: options.pop(name) for name in names if name in options})
    options.setdefault("workers", 1)
    pack_dataset(PackOptions(parse_splits(splits), out, policy=policy, **options))
    return open_pack(out)


def folder_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
