"""The page of every recipe opens without errors in a browser as wide as a phone's, and works there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.report.other_pages import build_page, compare_page
from engine.report.run_page import PageOptions
from loaders.packs import Pack
from recipes.evaluate import Config, evaluate
from tests.browser import needs_browser, open_pages
from tests.recipes.short_runs import SMALL
from tests.recipes.two_processes import small_runs

PHONE = (390,)  # pixels; `tests/engine/report/test_run_page.py` tests a desktop's width
DRIVER = """
  const sorted = [];
  document.querySelectorAll("table").forEach(table => {
    const heads = table.tHead.rows[0].cells, head = heads[heads.length - 1];
    const column = () => [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
    const before = column();
    head.click();
    const down = column();
    head.click();
    const numbers = values => values.map(v => parseFloat(v.replaceAll(",", ""))).filter(v => !isNaN(v));
    const falls = numbers(down).every((v, i, all) => !i || all[i - 1] >= v);
    const rises = numbers(column()).every((v, i, all) => !i || all[i - 1] <= v);
    sorted.push(falls && rises && [...before].sort().join() === [...down].sort().join());
  });
  const zoom = document.getElementById("zoom"), zoomed = [];
  document.querySelectorAll("main img").forEach(image => {
    image.click();
    zoomed.push(zoom.open && zoom.firstChild.naturalWidth !== undefined);
    zoom.click();
    zoomed.push(!zoom.open);
  });
  return {
    title: document.title, tables: sorted.length, sorted: sorted.every(x => x),
    pictures: zoomed.length / 2, zooms: zoomed.every(x => x),
    broken: [...document.querySelectorAll("main img")].filter(i => i.complete && !i.naturalWidth).length,
    wider: document.documentElement.scrollWidth - window.innerWidth,
    missing: [...document.querySelectorAll("h2")].filter(h => h.textContent === "What is missing")
      .map(h => h.parentNode.textContent),
  };
"""


def one_run_of_each() -> list[str]:
    """Return, for every recipe, the name of one of its runs on two processes."""
    labelled = sorted(small_runs(Path(), Path()))
    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("[a-z]*.py")}
    runs = {name: name for name in (*SMALL, "barlow")}
    for recipe in sorted(recipes - runs.keys() - {"active", "evaluate", "pipeline"}):
        runs[recipe] = next(run for run in labelled if run.startswith(recipe))
    runs["pseudo_label"] = "pseudo_label_permanent"  # a run of several phases
    assert runs.keys() | {"active", "evaluate", "pipeline"} == recipes
    return list(runs.values())


def pipeline_of(runs: Path, out: Path, pack: Pack) -> Path:
    """Write a pipeline's folder whose stages are runs of other commands."""
    out.mkdir()
    for stage, run in (("pretrain", "barlow"), ("rounds", "self_training"), ("fixmatch", "fixmatch")):
        (out / stage).symlink_to(runs / run)
    stages = [{"stage": "scratch", "top1": 0.4}, {"stage": "tta", "top1": 0.55}]
    config = {"pack": str(pack.path), "test_split": "test"}
    (out / "ablation.json").write_text(json.dumps({"config": config, "stages": stages}))
    return out


@pytest.fixture
def runs(by_two: Path, labelled_by_two: Path, tmp_path: Path, blank_drawings: None) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    for run in (*by_two.iterdir(), *labelled_by_two.iterdir()):
        (folder / run.name).symlink_to(run)
    return folder


@needs_browser
@pytest.mark.timeout(300)
@pytest.mark.parametrize("labelled", [False, True])
def test_every_page_works_in_a_browser(
    labelled: bool, runs: Path, by_two: Path, little_pack: Pack, tmp_path: Path
) -> None:
    pages = {}
    for name in one_run_of_each():
        if labelled != (by_two / name).exists():
            pages[name] = build_page(PageOptions(runs / name, num_images=2, num_tested=40))
    if labelled:
        pages["pipeline"] = build_page(PageOptions(pipeline_of(runs, tmp_path / "pipeline", little_pack)))
        tested = tmp_path / "evaluated"
        evaluate(Config(run=runs / "fixmatch", pack=little_pack.path, out=tested, sizes=(16, 24)))
        pages["evaluate"] = build_page(PageOptions(tested))
        pages["compared"] = compare_page([runs / name for name in ("fixmatch", "mean_teacher", "vae")])
    assert len(pages) > 8
    files = {name: tmp_path / f"{name}.html" for name in pages}
    for name, text in pages.items():
        files[name].write_text(text)
    opened = open_pages(files, DRIVER, PHONE, tmp_path)
    assert opened.console == []
    assert set(opened.found) == {f"{name} {width}" for name in pages for width in PHONE}
    for name, found in opened.found.items():
        assert isinstance(found, dict), (name, found)
        assert found["sorted"], name
        assert found["zooms"], name
        assert found["broken"] == 0, name
        assert found["wider"] <= 0, name
        assert found["pictures"] > 0 or name.startswith("transfer"), name
        assert found["missing"] == [], name
