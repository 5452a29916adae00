"""Reading starts no pyarrow thread: a process that exits while one runs may abort (apache/arrow#34314)."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loaders.packs.labels.tables import LabelTable
from tests.loaders.packs.inputs import jpeg

READ = """
import os
import sys
from pathlib import Path

import numpy, pyarrow.parquet

from loaders.packs.labels.tables import LabelTable
from loaders.packs.sources.image_table import ImageTableSource
from loaders.packs.sources.list_rows import read_rows


def threads():
    # jemalloc's own thread only gives memory back.
    tasks = Path("/proc/self/task").iterdir()
    return {t.name for t in tasks if not (t / "comm").read_text().startswith("jemalloc")}


path = Path(sys.argv[1])
before = threads()
if path.name == "labels.parquet":
    count = len(LabelTable.read(path).row)
elif path.name == "list.parquet":
    count = len(list(read_rows(path)))
else:
    source = ImageTableSource([path], None)
    count = sum(len(source.read(item)) > 0 for item in source.items())
print(count, len(threads() - before))
"""


@pytest.mark.parametrize("name", ["labels.parquet", "list.parquet", "images.parquet", "s.arrow", "f.arrow"])
def test_reading_tables_starts_no_thread(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    images = pa.table({"image": [jpeg(seed) for seed in range(40)], "label": list(range(40))})
    packed = pa.ipc.IpcWriteOptions(compression="zstd")
    if name == "labels.parquet":
        LabelTable.of(range(40), [0, 1] * 20, num_classes=2).write(path)
    elif name == "list.parquet":
        pq.write_table(pa.table({"path": [f"{i}.jpg" for i in range(40)], "label": list(range(40))}), path)
    elif name == "images.parquet":
        pq.write_table(images, path, row_group_size=10)
    else:
        new = pa.ipc.new_stream if name == "s.arrow" else pa.ipc.new_file
        with new(path, images.schema, options=packed) as writer:
            writer.write_table(images, max_chunksize=10)
    ended = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.stderr == ""
    assert ended.stdout.split() == ["40", "0"]
