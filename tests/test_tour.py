"""Run every command of docs/tour.md, in order, with fewer steps, on a few drawn photographs."""

import csv
import importlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.report import embedding, feature_maps, figures, rank_sections
from engine.report.page import Picture
from tests.loaders.packs.inputs import jpeg, write_tree

PAGE = Path(__file__).parents[1] / "docs" / "tour.md"
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for line in re.sub(r" *\\\n\s*", " ", block).strip().splitlines()
]
# Options that shorten each stage to a step or so, which a processor takes little time for.
SHORTER = {
    "barlow": ["--max-steps", "1"],
    "supervised": [
        "--max-steps",
        "1",
        "--lr",
        "0.001",
    ],  # a step at the usual rate would spoil a network of one step
    "doctor": ["--seconds", "0.02"],
}
SMALLER = {"32": "16", "512": "16"}


def label(path: Path) -> None:
    """Fill in a request as the labelling page does."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, ("cat", "dog", "cat"), strict=False):
        row["label"] = name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawings of pages, which take half of the time and are tested elsewhere."""
    blank = io.BytesIO()
    Image.new("RGB", (4, 4)).save(blank, "PNG")

    def draw(*args: Any, **kwargs: Any) -> Picture:
        return Picture(blank.getvalue(), blank.getvalue(), "")

    for module in (figures, rank_sections, feature_maps, embedding):
        monkeypatch.setattr(module, "draw_picture", draw)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("undrawn")
def test_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = np.arange(46).tolist()
    photos = {f"{'cat' if i % 2 else 'dog'}/{i}.jpg": jpeg(i) for i in seeds[:40]}
    write_tree(tmp_path / "photos", photos)
    write_tree(tmp_path / "new_photos", {f"{i}.jpg": jpeg(i) for i in seeds[40:]})
    for program, script, *arguments in COMMANDS:
        assert program == "python"
        name = Path(script).stem
        small = [SMALLER.get(text, text) for text in arguments] + SHORTER.get(name, [])
        module = importlib.import_module(script[:-3].replace("/", "."))
        if "--filled" in arguments:
            label(tmp_path / "runs/tour/ask/request.csv")
        monkeypatch.setattr(sys, "argv", [script, *small])
        assert not module.main(), " ".join([script, *small])
    for name in (
        "runs/tour/first",
        "runs/tour/barlow",
        "runs/tour/second",
        "runs/tour/more-labels",
        "packs/photos",
    ):
        assert (tmp_path / name / "report.html").is_file(), name
    assert (
        "python recipes/supervised.py --pack packs/photos"
        in (tmp_path / "runs/tour/first/report.html").read_text()
    )
    assert len((tmp_path / "runs/tour/predictions/predictions.csv").read_text().splitlines()) == 7
    assert (tmp_path / "runs/tour/compared.html").is_file()
    assert (tmp_path / "runs/tour/ask/request.html").is_file()
    out = capsys.readouterr().out
    assert "bottleneck: " in out
    *_, filled, more = COMMANDS
    assert f"next: {shlex.join(filled)}\n" in out
    table, folder = (more[more.index(option) + 1] for option in ("--extra-labels", "--out"))
    assert f" --extra-labels {table} --out {folder}\n" in out
