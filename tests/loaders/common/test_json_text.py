"""The single function that parses JSON, and the readers of pack files that use it: damage gives one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.common.json_text import MAX_DEPTH, parse_json
from loaders.packs import Pack, open_pack, packer
from loaders.packs.audit import compare_with_source
from loaders.packs.labels.files import read_label_file
from loaders.packs.sources.spec import SplitSource
from tests.loaders.packs.inputs import class_tree, pack, write_tree

DEEP = "[" * 200_000


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_lists_and_objects_lie_in_each_other_up_to_a_bound(opened: str) -> None:
    closed = {"[": "]", '{"a":': "}"}[opened]

    def nested(depth: int) -> str:
        return opened * depth + '"' + "[" * 300 + '"' + closed * depth

    assert json.dumps(parse_json(nested(MAX_DEPTH))).replace(" ", "") == nested(MAX_DEPTH)
    for text in (nested(MAX_DEPTH + 1), nested(500), nested(200_000), opened * 200_000):  # the last is cut
        with pytest.raises(ValueError, match="100 deep") as caught:
            parse_json(text)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="100 deep"):
            parse_json(text.encode("utf-16"))
    flat = "[" + ",".join(["[1]", '{"a":[]}'] * 500) + "]"
    assert parse_json(flat) == parse_json(flat.encode()) == json.loads(flat)


@pytest.fixture
def made(tmp_path: Path) -> Pack:
    write_tree(tmp_path / "in", {**class_tree(), "c0/note.txt": b"words"})
    return pack(tmp_path / "p", f"train={tmp_path / 'in'}")


def compare(made: Pack, beside: Path) -> None:
    compare_with_source(made, SplitSource("train", str(beside / "in")))


def take_as_source(made: Pack, beside: Path) -> None:
    pack(beside / "new", f"train=pack:{made.path}")


def quarantine(made: Pack, beside: Path) -> None:
    from tools.packing.inspect import read_quarantine

    read_quarantine(made)


@pytest.mark.parametrize("use", [compare, take_as_source, quarantine])
@pytest.mark.parametrize("line", [DEEP, "{", "7", '{"split": "train", "key": 1}', '{"split": "train"}'])
def test_a_damaged_quarantine_is_one_line(made: Pack, use: Callable[[Pack, Path], None], line: str) -> None:
    (made.path / "quarantine.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"quarantine.jsonl is damaged \(.*\); restore it or pack again"):
        use(made, made.path.parent)
    assert not (made.path.parent / "new").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("command.json", content) for content in (DEEP, "{", "[7]")),
        *(("plan.json", content) for content in (DEEP, "{", "[7]", '{"classes": 7}')),
    ],
)
def test_a_damaged_file_of_an_unfinished_pack_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    write_tree(tmp_path / "in", class_tree())
    with monkeypatch.context() as patched:

        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(packer, "join_parts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    (tmp_path / "p" / ".build" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*: .*\): .*; remove .*then pack again"):
        pack(tmp_path / "p", f"train={tmp_path / 'in'}")


def test_a_deep_list_of_paths_or_labels_is_one_line(made: Pack, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"row": 0, "label": 1}\n' + DEEP + "\n")
    with pytest.raises(UserError, match=r"list.jsonl, line 2 is not JSON \(.*100 deep\); correct it"):
        read_label_file(tmp_path / "list.jsonl", made, ((0, len(made)),), "test")
    (tmp_path / "paths.jsonl").write_text(DEEP + "\n")
    for source in (f"{tmp_path / 'paths.jsonl'}", f"{tmp_path / 'in'}#labels={tmp_path / 'paths.jsonl'}"):
        with pytest.raises(UserError, match=r"paths.jsonl, line 1 is not JSON \(.*100 deep\); correct it"):
            pack(tmp_path / "new", f"train={source}")
        assert not (tmp_path / "new").exists()


def test_a_deep_manifest_is_one_line(made: Pack) -> None:
    (made.path / "manifest.json").write_text('{"format_version": 2, "x": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(UserError, match=r"manifest.json is damaged \(.*100 deep\)"):
        open_pack(made.path)


def test_what_hugging_face_says_of_a_table_may_be_deep(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.loaders.packs.inputs import jpeg

    table = pa.table({"image": [jpeg(0), jpeg(1)], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": DEEP}), tmp_path / "x.parquet")
    assert pack(tmp_path / "p", f"train={tmp_path / 'x.parquet'}").classes == ("0", "1")
