"""The writers in the benchmark of packing: our packer, other projects' writers, and a plain copying loop.

Each function of `WRITERS` packs the files of a class-folder tree into an empty folder, in a new process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

QUALITY = 90
SHARD_BYTES = 64_000_000


class Job(NamedTuple):
    """Files to pack.

    Attributes:
        max_side: longer side in pixels to which images are shrunk, then encoded with quality 90.
        short_side: shorter side in pixels to which images are shrunk, then encoded with quality 90. If both
            limits are None, bytes are copied.
        workers: processes or threads that the writer may use.
        part: (k, n) packs every n-th file, beginning with file k.
    """

    source: Path
    out: Path
    max_side: int | None
    short_side: int | None
    workers: int
    part: tuple[int, int] = (0, 1)

    @property
    def copies(self) -> bool:
        """Return whether images keep their bytes."""
        return self.max_side is None and self.short_side is None

    def files(self) -> list[tuple[str, int]]:
        """Return the path and class number of each file that this job packs."""
        return list(files(self.source))[self.part[0] :: self.part[1]]

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image is shrunk; images within the limit keep theirs."""
        if self.max_side is not None:
            scale = self.max_side / max(width, height)
        else:
            assert self.short_side is not None
            scale = self.short_side / min(width, height)
        return (round(width * scale), round(height * scale)) if scale < 1 else (width, height)


def files(source: Path) -> Iterator[tuple[str, int]]:
    """Yield the path and class number of every file, sorted by class folder, then by file name."""
    for label, folder in enumerate(sorted(os.scandir(source), key=lambda entry: entry.name)):
        for name in sorted(os.listdir(folder.path)):
            yield os.path.join(folder.path, name), label


def write_sluice(job: Job, shard_format: str = "webdataset") -> None:
    """Pack with our packer, which checks every image, hashes every byte and syncs every file."""
    from loaders.packs.image import ImagePolicy
    from loaders.packs.packer import PackOptions, pack_dataset
    from loaders.packs.sources.spec import parse_splits

    quality = None if job.copies else QUALITY
    policy = ImagePolicy(max_side=job.max_side, short_side=job.short_side, quality=quality)
    splits = parse_splits([f"train={job.source}"])
    pack_dataset(PackOptions(splits, job.out / "pack", shard_format, policy, workers=job.workers))


def write_sluice_beton(job: Job) -> None:
    """Pack with our packer into .beton shards."""
    write_sluice(job, "ffcv")


def write_plain(job: Job) -> None:
    """Read every file and append it to one file, the least work that any packer does."""
    with open(job.out / "plain.bin", "wb") as out:
        for path, _ in files(job.source):
            with open(path, "rb") as file:
                out.write(file.read())


def write_webdataset(job: Job) -> None:
    """Pack with webdataset's ShardWriter in the loop of its documentation; Pillow shrinks the images."""
    import webdataset

    with webdataset.ShardWriter(str(job.out / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, (path, label) in enumerate(job.files()):
            writer.write({"__key__": f"{job.part[0]}-{number:09d}", "jpg": _encoded(path, job), "cls": label})


def write_webdataset_in_processes(job: Job) -> None:
    """Pack with one ShardWriter per process; each process packs a part of the files."""
    _in_processes(write_webdataset, job)


def _in_processes(write: Callable[[Job], None], job: Job) -> None:
    jobs = []
    for number in range(job.workers):
        out = job.out / str(number)
        out.mkdir()
        jobs.append(job._replace(out=out, part=(number, job.workers)))
    with ProcessPoolExecutor(job.workers) as pool:
        list(pool.map(write, jobs))


def _encoded(path: str, job: Job) -> bytes:
    """Return a file's bytes, or those of the image shrunk and encoded by Pillow.

    This is Pillow's fastest way without visible loss: "draft" decodes at a reduced size if that is still at
    least twice the target.
    """
    with open(path, "rb") as file:
        data = file.read()
    if job.copies:
        return data
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        size = job.target(*image.size)
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        rgb = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class _FileDataset:
    """(image, label) pairs for FFCV's writer: bytes to copy, or pixels to shrink and encode."""

    def __init__(self, job: Job) -> None:
        self._files = job.files()
        self._job = job

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[object, int]:
        import numpy as np
        from PIL import Image

        path, label = self._files[index]
        if self._job.copies:
            return np.fromfile(path, np.uint8), label
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        if self._job.short_side is not None:  # FFCV's field limits only the longer side: shrink as it does
            import cv2

            size = self._job.target(pixels.shape[1], pixels.shape[0])
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return pixels, label


def write_ffcv(job: Job) -> None:
    """Pack with FFCV's DatasetWriter: copied bytes in a BytesField, shrunk images in an RGBImageField."""
    import ffcv.fields
    from ffcv.writer import DatasetWriter

    image = (
        ffcv.fields.BytesField()
        if job.copies
        else ffcv.fields.RGBImageField(write_mode="jpg", max_resolution=job.max_side, jpeg_quality=QUALITY)
    )
    fields = {"image": image, "label": ffcv.fields.IntField()}
    writer = DatasetWriter(str(job.out / "x.beton"), fields, num_workers=job.workers)
    writer.from_indexed_dataset(_FileDataset(job))


def write_litdata(job: Job) -> None:
    """Pack with LitData's optimize; Pillow shrinks the images."""
    import litdata

    litdata.optimize(
        fn=_LitSample(job),
        inputs=job.files(),
        output_dir=str(job.out / "lit"),
        num_workers=job.workers,
        chunk_bytes="64MB",
    )


class _LitSample:
    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, item: tuple[str, int]) -> dict[str, object]:
        return {"image": _encoded(item[0], self._job), "label": item[1]}


def write_mosaicml(job: Job) -> None:
    """Pack with MosaicML's MDSWriter; Pillow shrinks the images."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(job.out / "mds"), columns=columns, size_limit=SHARD_BYTES) as writer:
        for path, label in job.files():
            writer.write({"image": _encoded(path, job), "label": label})


def write_mosaicml_in_processes(job: Job) -> None:
    """Pack with one MDSWriter per process; each process packs a part of the files."""
    _in_processes(write_mosaicml, job)


WRITERS: dict[str, Callable[[Job], None]] = {
    "plain loop": write_plain,
    "sluice tar": write_sluice,
    "sluice beton": write_sluice_beton,
    "webdataset": write_webdataset,
    "webdataset, processes": write_webdataset_in_processes,
    "ffcv": write_ffcv,
    "litdata": write_litdata,
    "mosaicml": write_mosaicml,
    "mosaicml, processes": write_mosaicml_in_processes,
}
