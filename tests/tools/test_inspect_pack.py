"""Copies, leaks and near copies are counted; the page shows every class and escapes every name."""

import errno
import io
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image
from rich.console import Console

from loaders.common.errors import UserError
from loaders.packs.findings import difference_hash, find_copies, near_pairs
from loaders.packs.repeats import repeated_rows
from tests.browser import needs_browser, open_page
from tests.loaders.packs.inputs import class_tree, encoded, jpeg, pack, pixels, write_tree
from tools.packing import pack_page
from tools.packing.inspect import faults_found, inspect_pack, parse_faults, read_quarantine


def test_copies_and_leaks(tmp_path: Path) -> None:
    train = class_tree(2, 4) | {"c1/again.jpg": jpeg(0), "c0/third.jpg": jpeg(0), "c0/cut.jpg": jpeg(1)[:-9]}
    write_tree(tmp_path / "a", train)
    write_tree(
        tmp_path / "b", {"c0/x.jpg": jpeg(0), "c0/y.jpg": jpeg(101), "c0/z.jpg": jpeg(900), "w": b"no"}
    )
    packed = pack(tmp_path / "p", f"train={tmp_path / 'a'}", f"test={tmp_path / 'b'}")
    found = find_copies(packed)
    assert (found.num_copies, found.num_leaks, found.leaks) == (2, 2, {("train", "test"): 2})
    assert found.copies == (("train/c0/000", "train/c0/third", "train/c1/again", "test/c0/x"),)
    assert ("train/c1/001", "test/c0/y") in found.leaked
    assert faults_found(found, read_quarantine(packed), ("leak", "duplicates", "corrupt")) == [
        "leak: 2 images are in two splits",
        "duplicates: 2 images are exact copies of another",
        "corrupt: 1 inputs are damaged or cannot be read",
    ]
    clean = pack(tmp_path / "q", f"test={tmp_path / 'b'}")
    assert faults_found(find_copies(clean), read_quarantine(clean), ("leak", "duplicates", "corrupt")) == []


def test_files_called_images_that_are_none_are_corrupt(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"c/0.jpg": jpeg(0), "c/no.jpg": b"text", "c/notes.txt": b"text"})
    pq.write_table(pa.table({"image": [jpeg(1), b"text"]}), tmp_path / "t.parquet")
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}", f"test={tmp_path / 't.parquet'}")
    assert faults_found(find_copies(packed), read_quarantine(packed), parse_faults(["leak,corrupt"])) == [
        "corrupt: 2 inputs are damaged or cannot be read"
    ]


def test_faults_are_named_with_commas_or_spaces() -> None:
    assert parse_faults(["corrupt,leak", "duplicates"]) == ("leak", "duplicates", "corrupt")
    assert parse_faults([]) == ()
    with pytest.raises(UserError, match="--fail-on corupt: expected leak, duplicates, corrupt"):
        parse_faults(["leak,corupt"])


def test_near_copies(tmp_path: Path) -> None:
    again = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels(3)), 60, "rgb", "420")
    larger = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels(5, 48, 64)), 90, "rgb", "420")
    copied = {"z/again.jpg": again, "z/larger.jpg": larger, "z/larger_copy.jpg": larger}
    write_tree(tmp_path / "in", class_tree(1, 10) | copied)
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}")
    found = find_copies(packed, near=True, workers=2)
    assert set(found.near) == {("train/c0/003", "train/z/again"), ("train/c0/005", "train/z/larger")}
    assert found.num_near == len(found.near_rows) == 2, "exact copies look the same, but are counted apart"
    assert found.num_copies == 1


def test_near_pairs_are_those_within_the_distance() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    close = base[:20] ^ (np.uint64(1) << rng.integers(0, 64, 20).astype(np.uint64))
    hashes = np.concatenate([base, close, base[:1]])
    expected = {(a, b) for a in range(81) for b in range(a + 1, 81)
                if 0 < int(hashes[a] ^ hashes[b]).bit_count() <= 3 and b != 80} | {(0, 80)}  # fmt: skip
    assert set(near_pairs(hashes)) == expected
    assert difference_hash(np.tile(np.arange(90, dtype=np.uint8)[::-1], (80, 1))) == (1 << 64) - 1


def test_repeats_in_parts_are_those_of_one_part() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 300, (1000, 2), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes[:, 1] = hashes[:, 0]
    groups = sorted(rows.tolist() for rows in repeated_rows(hashes, rows_at_once=64))
    assert groups == sorted(rows.tolist() for rows in repeated_rows(hashes))
    by_value: dict[int, list[int]] = {}
    for row, value in enumerate(hashes[:, 0].tolist()):
        by_value.setdefault(value, []).append(row)
    assert groups == sorted(rows for rows in by_value.values() if len(rows) > 1)
    assert list(repeated_rows(np.zeros(0, np.uint64))) == []


def test_the_page(tmp_path: Path) -> None:
    names = {"<b>cat</b>/1.jpg": jpeg(1), "dog/2.jpg": jpeg(2), "dog/3.jpg": jpeg(3)[:-9], "4.jpg": jpeg(4)}
    packed = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', names)}")
    console = Console(record=True, width=150, file=io.StringIO())
    inspect_pack(packed, True, 1, console)
    page = (tmp_path / "p" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert "&lt;b&gt;" in page
    assert "<b>cat" not in page
    assert "without a label: 1" in page
    assert "truncated" in page
    assert "0 exact copies" in console.export_text()
    inspect_pack(packed, True, 1, console)
    assert (tmp_path / "p" / "report.html").read_text() == page


def test_a_pack_that_cannot_be_written_still_tells_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "in", class_tree(2, 2))
    packed, text = pack(tmp_path / "pack", f"train={tmp_path / 'in'}"), io.StringIO()
    write = pack_page.write_atomic

    def write_outside(path: Path, data: bytes) -> None:
        if path.is_relative_to(packed.path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        write(path, data)

    monkeypatch.setattr(pack_page, "write_atomic", write_outside)
    console = Console(file=text, width=500)
    inspect_pack(packed, False, 1, console)
    assert "0 exact copies within a split" in text.getvalue()
    assert f"page: not written, {packed.path / 'report.html'}: cannot be read or written" in text.getvalue()
    inspect_pack(packed, False, 1, console, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_reasons_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    bad = [b"", b"text", jpeg(0)[:-9], jpeg(1)[:30], jpeg(2)[:200], encoded_png()[:-20], b"\xff\xd8\xff"]
    tree = {f"c/{number}.jpg": data for number, data in enumerate(bad)} | {"c/good.jpg": jpeg(3)}
    packed = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', tree)}")
    console = Console(record=True, width=150, file=io.StringIO())
    _, quarantine = inspect_pack(packed, False, 1, console)
    shown = [count for _, count in quarantine.reasons.most_common(5)]
    assert len(quarantine.reasons) > 5
    rest, hidden = quarantine.reasons.total() - sum(shown), len(quarantine.reasons) - 5
    line = f"{rest} quarantined for {hidden} more reasons: see quarantine.jsonl"
    assert line in console.export_text()


def encoded_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(0)).save(file, "PNG")
    return file.getvalue()


def test_the_page_of_a_source_whose_path_is_no_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    write_tree(folder, {"c/0.jpg": jpeg(0)})
    packed = pack(tmp_path / "p", f"train={folder}")
    inspect_pack(packed, False, 1, Console(file=io.StringIO()))
    assert "/??" in (tmp_path / "p" / "report.html").read_text()


def test_the_page_shows_what_stands_out(tmp_path: Path) -> None:
    files = {f"c{i % 2}/{i:02d}.jpg": jpeg(i) for i in range(24)}
    black, white = (encoded(Image.new("RGB", (40, 40), (v, v, v)), "JPEG") for v in (2, 253))
    files |= {"c0/black.jpg": black, "c1/white.jpg": white, "c1/long.jpg": jpeg(7, 20, 90)}
    picture = Image.fromarray(pixels(99, 48, 64))
    files |= {f"c0/same{q}.jpg": encoded(picture, "JPEG", quality=q) for q in (70, 95)}
    write_tree(tmp_path / "in", files)
    packed = pack(
        tmp_path / "p", f"train={tmp_path / 'in'}", f"test={write_tree(tmp_path / 'b', class_tree(2, 3))}"
    )
    inspect_pack(packed, True, 1, Console(file=io.StringIO()), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    out = page.split("<h2>What stands out</h2>")[1].split("<h2>")[0]
    shown = re.findall(r'<figure>.*?alt="(.*?)".*?<figcaption>(.*?)</figcaption>', out, re.S)
    assert [key for key, _ in shown][:2] == ["train/c0/black", "train/c1/white"]
    assert shown[-1] == ("train/c1/long", "the most elongated: aspect ratios up to 4.5")
    assert "2 of 35 images lie outside" in out
    copies = page.split("<h2>Copies</h2>")[1].split("<h2>")[0]
    assert "look the same: train/c0/same70 and train/c0/same95" in copies
    classes = page.split("<h2>Classes</h2>")[1].split("<h2>")[0]
    assert re.search(r'<th scope="row">c0</th><td>15</td><td>3</td>', classes)
    sizes = page.split("<h2>Sizes</h2>")[1].split("<h2>")[0]
    assert "over 4096 px" not in sizes  # empty bins are not shown
    assert sizes.count("<rect") == 3


@needs_browser
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    packed = pack(tmp_path / "p", f"train={write_tree(tmp_path / 'in', class_tree(2, 12))}")
    inspect_pack(packed, False, 1, Console(file=io.StringIO()), tmp_path / "page.html")
    script = "document.querySelector('.sheet img').click(); document.body.dataset.zoomed = zoom.open;"
    opened = open_page(tmp_path / "page.html", script, 500)
    assert opened.console == []
    assert 'data-zoomed="true"' in opened.dom
