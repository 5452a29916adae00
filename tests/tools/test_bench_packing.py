"""Packing benchmarks: every writer packs every image, shrunk by the rule that it names."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import simplejpeg

from tests.loaders.packs.inputs import jpeg, write_tree
from tools import bench_transcode
from tools.packing.writers import Job, write_webdataset, write_webdataset_in_processes


def images(folder: Path) -> list[bytes]:
    found = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_writer_per_process_packs_what_one_writer_packs(tmp_path: Path) -> None:
    files = {f"c{i % 2}/{i}.jpg": jpeg(i, 40, 60) for i in range(7)}
    source = write_tree(tmp_path / "in", files)
    for name, write in (("one", write_webdataset), ("many", write_webdataset_in_processes)):
        (tmp_path / name).mkdir()
        write(Job(source, tmp_path / name, None, None, 2))
        assert sorted(images(tmp_path / name)) == sorted(files.values())


def test_pillow_shrinks_to_the_side_that_was_asked_for(tmp_path: Path) -> None:
    source = write_tree(tmp_path / "in", {"c0/large.jpg": jpeg(0, 300, 450), "c0/small.jpg": jpeg(1, 24, 32)})
    for sides, expected in (((90, None), (60, 90)), ((None, 60), (60, 90))):
        out = tmp_path / str(sides)
        out.mkdir()
        write_webdataset(Job(source, out, *sides, 1))
        sizes = [simplejpeg.decode_jpeg(data).shape[:2] for data in images(out)]
        assert sizes == [expected, (24, 32)]


def test_parts_of_transcoding_are_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    write_tree(tmp_path / "in", {f"{i}.jpg": jpeg(i, 200, 300) for i in range(3)} | {"small.jpg": jpeg(9)})
    arguments = ["--images", tmp_path / "in", "--short-side", "40", "--passes", "1", "--json", tmp_path / "r"]
    monkeypatch.setattr("sys.argv", ["bench_transcode.py", *map(str, arguments)])
    bench_transcode.main()
    record = json.load(io.StringIO((tmp_path / "r").read_text()))
    assert record["num_images"] == 3  # a small image would not shrink
    rules = {"whole", "twice the target left", "the target left, in eighths", "in planes, as packed"}
    assert set(record["psnr_db"]) == rules
    assert record["psnr_db"]["twice the target left"]["share_scaled"] == 1
    assert all(value >= 0 for value in record["cpu_us"].values())
    assert "PSNR" in capsys.readouterr().out
