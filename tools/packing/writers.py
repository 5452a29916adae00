"""What a benchmark of packing compares: our packer, other projects' writers, and a plain copying loop.

Each function packs the files of a class-folder tree into an empty folder, in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

QUALITY = 90
SHARD_BYTES = 64_000_000


class Job(NamedTuple):
    """Files to pack.

    Attributes:
        source: class-folder tree.
        out: empty folder.
        max_side: shrink to it and encode with quality 90; None copies the bytes.
        workers: processes or threads that the writer may use.
    """

    source: Path
    out: Path
    max_side: int | None
    workers: int


def files(source: Path) -> Iterator[tuple[str, int]]:
    """Yield path and class number of every file, in the order of the names."""
    for label, folder in enumerate(sorted(os.scandir(source), key=lambda entry: entry.name)):
        for name in sorted(os.listdir(folder.path)):
            yield os.path.join(folder.path, name), label


def write_sluice(job: Job, shard_format: str = "webdataset") -> None:
    """Pack with our packer: checks every image, hashes every byte, syncs every file."""
    from loaders.packs.image import ImagePolicy
    from loaders.packs.packer import PackOptions, pack_dataset
    from loaders.packs.sources.spec import parse_splits

    policy = ImagePolicy(max_side=job.max_side, quality=None if job.max_side is None else QUALITY)
    splits = parse_splits([f"train={job.source}"])
    pack_dataset(PackOptions(splits, job.out / "pack", shard_format, policy, workers=job.workers))


def write_sluice_beton(job: Job) -> None:
    """Pack with our packer into betons."""
    write_sluice(job, "ffcv")


def write_plain(job: Job) -> None:
    """Read every file and write it behind the last: the least that any packer does."""
    with open(job.out / "plain.bin", "wb") as out:
        for path, _ in files(job.source):
            with open(path, "rb") as file:
                out.write(file.read())


def write_webdataset(job: Job) -> None:
    """Pack with webdataset's ShardWriter, Pillow where images shrink: the loop of its documentation."""
    import webdataset

    with webdataset.ShardWriter(str(job.out / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, (path, label) in enumerate(files(job.source)):
            with open(path, "rb") as file:
                data = file.read()
            if job.max_side is not None:
                data = _shrink(data, job.max_side)
            writer.write({"__key__": f"{number:09d}", "jpg": data, "cls": label})


def _shrink(data: bytes, max_side: int) -> bytes:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
        rgb.thumbnail((max_side, max_side))
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class _FileDataset:
    """(image, label) pairs for FFCV's writer: bytes to copy, or Pillow images to shrink."""

    def __init__(self, source: Path, decodes: bool) -> None:
        self._files = list(files(source))
        self._decodes = decodes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        path, label = self._files[index]
        if self._decodes:
            with Image.open(path) as image:
                return image.convert("RGB"), label
        with open(path, "rb") as file:
            return file.read(), label


def write_ffcv(job: Job) -> None:
    """Pack with FFCV's DatasetWriter; copies are a field of bytes, shrunk images its images."""
    import ffcv.fields
    from ffcv.writer import DatasetWriter

    image = (
        ffcv.fields.BytesField()
        if job.max_side is None
        else ffcv.fields.RGBImageField(write_mode="jpg", max_resolution=job.max_side, jpeg_quality=QUALITY)
    )
    fields = {"image": image, "label": ffcv.fields.IntField()}
    dataset = _BytesArrays(job.source) if job.max_side is None else _FileDataset(job.source, True)
    writer = DatasetWriter(str(job.out / "x.beton"), fields, num_workers=job.workers)
    writer.from_indexed_dataset(dataset)


class _BytesArrays(_FileDataset):
    def __init__(self, source: Path) -> None:
        super().__init__(source, False)

    def __getitem__(self, index: int) -> tuple[object, int]:
        import numpy as np

        data, label = super().__getitem__(index)
        return np.frombuffer(data, np.uint8), label  # type: ignore[call-overload]


def write_litdata(job: Job) -> None:
    """Pack with LitData's optimize."""
    import litdata

    inputs = list(files(job.source))
    litdata.optimize(
        fn=_LitSample(job.max_side),
        inputs=inputs,
        output_dir=str(job.out / "lit"),
        num_workers=job.workers,
        chunk_bytes="64MB",
    )


class _LitSample:
    def __init__(self, max_side: int | None) -> None:
        self._max_side = max_side

    def __call__(self, item: tuple[str, int]) -> dict[str, object]:
        path, label = item
        with open(path, "rb") as file:
            data = file.read()
        return {"image": data if self._max_side is None else _shrink(data, self._max_side), "label": label}


def write_mosaicml(job: Job) -> None:
    """Pack with MosaicML's MDSWriter."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(job.out / "mds"), columns=columns, size_limit=SHARD_BYTES) as writer:
        for path, label in files(job.source):
            with open(path, "rb") as file:
                data = file.read()
            writer.write(
                {"image": data if job.max_side is None else _shrink(data, job.max_side), "label": label}
            )


WRITERS: dict[str, Callable[[Job], None]] = {
    "plain loop": write_plain,
    "sluice tar": write_sluice,
    "sluice beton": write_sluice_beton,
    "webdataset": write_webdataset,
    "ffcv": write_ffcv,
    "litdata": write_litdata,
    "mosaicml": write_mosaicml,
}
