"""Appending leaves old shards untouched and keeps row numbers; a kill loses nothing."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.packs import Pack, open_pack
from loaders.packs.append import append_to_pack
from loaders.packs.image import ImagePolicy
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.packs.verify import verify_pack
from tests.loaders.packs.inputs import class_tree, folder_hashes, jpeg, write_tree

FORMATS = ["webdataset", "ffcv"]


def options(out: Path, *splits: str, shard_format: str = "webdataset", **policy) -> PackOptions:
    return PackOptions(
        parse_splits(splits), out, shard_format, ImagePolicy(**policy), shard_size_mb=0.01, workers=1
    )


def sources(tmp_path: Path) -> list[str]:
    write_tree(tmp_path / "a", class_tree(2, 6))
    write_tree(tmp_path / "b", {f"c{c}/9{i}.jpg": jpeg(700 + 10 * c + i) for c in (1, 7) for i in range(4)})
    write_tree(tmp_path / "b", {"c1/cut.jpg": jpeg(1)[:-9]})
    write_tree(tmp_path / "c", {f"{i}.jpg": jpeg(800 + i) for i in range(3)})
    return [f"train={tmp_path / 'a'}", f"train={tmp_path / 'b'}", f"extra={tmp_path / 'c'}"]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_more_images_and_a_new_split(tmp_path: Path, shard_format: str) -> None:
    first, more, extra = sources(tmp_path)
    pack_dataset(options(tmp_path / "p", first, shard_format=shard_format))
    before = open_pack(tmp_path / "p")
    old = [(before.key(r), before.read(r), int(before.labels.dense(12)[r])) for r in range(12)]
    shards = folder_hashes(tmp_path / "p" / "shards")
    append_to_pack(options(tmp_path / "p", more, extra, shard_format=shard_format))
    after = open_pack(tmp_path / "p")
    assert verify_pack(tmp_path / "p") == []
    assert not (tmp_path / "p" / ".build").exists()
    labels = after.labels.dense(len(after))
    assert [(after.key(r), after.read(r), int(labels[r])) for r in range(12)] == old
    assert shards.items() < folder_hashes(tmp_path / "p" / "shards").items()
    assert after.classes == ("c0", "c1", "c7")
    assert after.split("train").labels().tolist() == [0] * 6 + [1] * 6 + [1] * 4 + [2] * 4
    assert after.split("extra").labels().tolist() == [-1] * 3
    assert [info.num_images for info in after.manifest.splits] == [20, 3]
    assert (after.manifest.num_inputs, after.manifest.num_quarantined) == (24, 1)
    assert set(after.columns.split[20:].tolist()) == {1}
    assert len({after.key(r) for r in range(23)}) == 23
    names = [after.shard_path(s).name for s in range(after.num_shards)]
    assert len(set(names)) == after.num_shards
    append_to_pack(options(tmp_path / "p", f"late={tmp_path / 'c'}", shard_format=shard_format))
    assert len(open_pack(tmp_path / "p")) == 26
    assert verify_pack(tmp_path / "p") == []


def test_mistakes_change_nothing(tmp_path: Path) -> None:
    first, more, extra = sources(tmp_path)
    with pytest.raises(UserError, match="no pack at"):
        append_to_pack(options(tmp_path / "p", more))
    pack_dataset(options(tmp_path / "p", first))
    before = folder_hashes(tmp_path / "p")
    write_tree(tmp_path / "bad", {"x.jpg": b"words"})
    for splits, policy, match in (
        ([more], {"quality": 50}, "made with quality not given, now 50"),
        ([first], {}, r"has train/c\d/00\d already"),
        ([f"x={tmp_path / 'none'}"], {}, "no images at"),
        ([extra, f"x={tmp_path / 'bad'}"], {}, "none of the 1 files"),
    ):
        with pytest.raises(UserError, match=match):
            append_to_pack(options(tmp_path / "p", *splits, **policy))
        assert folder_hashes(tmp_path / "p") == before


def killed_at(step: int, work) -> bool:
    """Run `work` in a child and kill it at its n-th rename, removal or sync; return whether it was killed."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        os.fsync = counted(lambda descriptor: None)
        os.replace, os.unlink, os.rmdir = counted(os.replace), counted(os.unlink), counted(os.rmdir)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_while_appending(tmp_path: Path, stride: int) -> None:
    first, more, _ = sources(tmp_path)
    pack_dataset(options(tmp_path / "whole", first))
    append_to_pack(options(tmp_path / "whole", more))
    expected = folder_hashes(tmp_path / "whole")
    pack_dataset(options(tmp_path / "before", first))
    old = [open_pack(tmp_path / "before").read(r) for r in range(12)]
    step, kills = 1, 0
    while True:
        out = Path(shutil.copytree(tmp_path / "before", tmp_path / f"p{step}"))
        if not killed_at(step, lambda out=out: append_to_pack(options(out, more))):
            break
        kills += 1
        check_readable(out, old)
        if (out / ".build" / "command.json").exists():
            with pytest.raises(UserError, match="--append command again"):
                pack_dataset(options(out, first))
        if len_or_none(out) != 20 or (out / ".build" / "command.json").exists():
            append_to_pack(options(out, more))
        shutil.rmtree(out / ".build", ignore_errors=True)  # if the kill came after its last file had gone
        assert folder_hashes(out) == expected, step
        step += stride
    assert kills >= 5


def test_killed_after_the_last_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, more, _ = sources(tmp_path)
    out, remove = tmp_path / "p", shutil.rmtree
    pack_dataset(options(out, first))

    def killed(path, *args, **kwargs):
        if len_or_none(out) == 20 and Path(path).name == "next":
            raise KeyboardInterrupt
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        append_to_pack(options(out, more))
    monkeypatch.undo()
    assert append_to_pack(options(out, more)) == open_pack(out).manifest
    assert not (out / ".build").exists()


@pytest.mark.parametrize("name", ["threads", "Ray"])
def test_an_unknown_executor_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"--executor '{name}': expected processes or ray"):
        replace(options(tmp_path / "p", sources(tmp_path)[0]), executor=name)


def len_or_none(out: Path) -> int | None:
    try:
        return len(open_pack(out))
    except UserError:
        return None


def check_readable(out: Path, old: list[bytes]) -> None:
    """Check that a reader gets the old pack, the new one, or an error that names the remedy."""
    if len_or_none(out) is None:
        with pytest.raises(UserError, match="--append command again"):
            open_pack(out)
        return
    packed: Pack = open_pack(out)
    assert [packed.read(r) for r in range(12)] == old
    np.testing.assert_array_equal(packed.split("train").labels()[:12], np.repeat([0, 1], 6))
