"""Packing on Ray and into remote stores gives the bytes of a local pack, and resumes."""

import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.packs.packer import PackOptions, lock_pack, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.packs.stores import upload
from loaders.packs.stores.connect import connect
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, pack, write_tree

ROOT = Path(__file__).parents[3]


def source(tmp_path: Path) -> str:
    files = class_tree(2, 10) | {"c0/cut.jpg": jpeg(3)[:-9]}
    return f"train={write_tree(tmp_path / 'in', files)}"


def options(tmp_path: Path, url: str, **changes) -> PackOptions:
    return PackOptions(
        parse_splits([source(tmp_path)]),
        tmp_path / "staging",
        shard_size_mb=0.01,
        workers=1,
        upload=url,
        **changes,
    )


def downloaded(url: str, to: Path) -> dict[str, str]:
    fs, path = connect(url)
    fs.get(path.rstrip("/") + "/", f"{to}/", recursive=True)
    return folder_hashes(to)


def check_upload(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack into `url` with an interruption after some shards, resume, and compare with a local pack."""
    sent, send = [], upload.upload_file

    def interrupted(path: Path, target: str) -> None:
        send(path, target)
        sent.append(target)
        if len(sent) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("loaders.packs.shards.job.upload_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack_dataset(options(tmp_path, url))
    assert upload.read_remote_manifest(url) is None
    pack_dataset(options(tmp_path, url))
    assert not (tmp_path / "staging").exists()
    pack(tmp_path / "local", source(tmp_path), shard_size_mb=0.01)
    assert downloaded(url, tmp_path / "back") == folder_hashes(tmp_path / "local")
    pack_dataset(options(tmp_path, url))  # finished: nothing to do
    with pytest.raises(UserError, match=r"holds a pack made with format webdataset, now ffcv"):
        pack_dataset(options(tmp_path, url, shard_format="ffcv"))


def test_a_pack_behind_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_upload(tmp_path, "memory://packs/mine", monkeypatch)


def test_a_finished_pack_empties_no_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another --staging, the command finds the pack finished and must not delete that folder's files."""
    asked = options(tmp_path, "memory://packs/kept")
    mine = write_tree(tmp_path / "mine", {"thesis.txt": b"words", ".build/notes": b""})

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The upload is finished, but the command is killed before it deletes its local files.
        patched.setattr(upload, "shutil", types.SimpleNamespace(rmtree=stop))
        with pytest.raises(KeyboardInterrupt):
            pack_dataset(asked)
    pack_dataset(replace(asked, out=mine))
    assert sorted(folder_hashes(mine)) == [".build/notes", "thesis.txt"]
    other = shutil.copytree(asked.out, tmp_path / "other")
    command = other / ".build" / "command.json"
    command.write_text(command.read_text().replace("webdataset", "ffcv"))
    pack_dataset(replace(asked, out=other))
    assert command.exists()
    with lock_pack(asked.out), pytest.raises(UserError, match="another process is packing"):
        pack_dataset(asked)
    pack_dataset(asked)
    assert not asked.out.exists()


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield a bucket of moto's S3 server on this machine."""
    pytest.importorskip("s3fs", reason="S3 needs: pip install '.[s3]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x"}
    for name, value in {**settings, "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    fs, _ = connect("s3://packs")
    fs.mkdir("packs")
    yield "s3://packs"
    server.stop()


@pytest.mark.peer
def test_a_pack_on_s3(tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_upload(tmp_path, f"{s3_bucket}/mine", monkeypatch)
    fs, _ = connect(s3_bucket)
    for path in (tmp_path / "in").rglob("*.jpg"):
        fs.put_file(str(path), f"packs/images/{path.relative_to(tmp_path / 'in')}")
    pack(tmp_path / "again", f"train={s3_bucket}/images", shard_size_mb=0.01)
    assert folder_hashes(tmp_path / "again" / "shards") == folder_hashes(tmp_path / "local" / "shards")


RAY_SCRIPT = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
splits = parse_splits([f"train={sys.argv[1]}"])
pack_dataset(PackOptions(splits, Path(sys.argv[2]), shard_size_mb=0.01, workers=2, executor="ray"))
"""


@pytest.mark.peer
def test_two_ray_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray needs: pip install '.[ray]'")
    where = source(tmp_path).removeprefix("train=")
    command = [sys.executable, "-c", RAY_SCRIPT, where, str(tmp_path / "ray")]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    pack(tmp_path / "local", source(tmp_path), shard_size_mb=0.01)
    assert folder_hashes(tmp_path / "ray") == folder_hashes(tmp_path / "local")
    assert len(list((tmp_path / "ray" / "shards").iterdir())) > 3


def test_ray_is_asked_for_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        pack_dataset(PackOptions(parse_splits([source(tmp_path)]), tmp_path / "p", executor="ray", workers=2))
    assert not (tmp_path / "p").exists()


def test_ray_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    stand_in = types.SimpleNamespace(is_initialized=lambda: False, init=fail)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    with pytest.raises(UserError, match=r"Ray did not start \(The current node timed out during startup.\)"):
        pack_dataset(PackOptions(parse_splits([source(tmp_path)]), tmp_path / "p", executor="ray", workers=2))
