"""Page sections about ranks: right and wrong images of each class, thresholds, imbalance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from engine.report import rank_sections, tested
from engine.report.blocks import Sheet
from engine.report.page import Picture, Table
from engine.report.rank_sections import RankPages
from engine.report.theme import LIGHT
from loaders.packs import Pack


def said_of(pack: Pack, labels: np.ndarray) -> tested.Tested:
    """Return predictions of ten classes: class 7 is never predicted, class 3 always rightly and surely."""
    rows = pack.split("test").rows(np.arange(len(labels)))
    rng = np.random.default_rng(0)
    scores = rng.random((len(labels), 10)).astype(np.float32)
    scores[:, 7] = 0.0
    true = pack.split("test").labels()[: len(labels)]
    scores[true == 3] = 0.001
    scores[true == 3, 3] = 9.0
    scores[true != 3, 3] = 0.0
    scores /= scores.sum(1, keepdims=True)
    none = np.zeros(0, np.int64)
    return tested.Tested(
        "test", len(labels), rows, labels, torch.from_numpy(scores), none, np.zeros((0, 0), "f4")
    )


@pytest.fixture
def pages(digits_pack: Pack) -> RankPages:
    labels = digits_pack.split("test").labels()
    return RankPages(digits_pack, said_of(digits_pack, labels), digits_pack.classes)


def test_the_best_and_the_worst_classes_are_shown(pages: RankPages, digits_pack: Pack) -> None:
    chosen = pages.chosen(())
    assert chosen[0] == 3
    assert len(chosen) == 4
    sheets = [block for block in pages.sheets().blocks if isinstance(block, Sheet)]
    count = int(pages.ranked.count[3])
    assert sheets[0].name == f"{digits_pack.classes[3]}: right, {count} of the first {count}"
    assert sheets[1].name.startswith(f"{digits_pack.classes[chosen[1]]}: right"), "no wrong one among them"
    assert len(sheets[0].images) == 12
    assert "probability 100 %" in sheets[0].keys[0]
    assert digits_pack.classes[3] in sheets[0].keys[0]
    (asked, wrong) = (b for b in pages.sheets((digits_pack.classes[5],)).blocks if isinstance(b, Sheet))
    assert asked.name.startswith(f"{digits_pack.classes[5]}: right")
    assert wrong.name.endswith(f"of the first {pages.ranked.count[5]}"), "as many as the class has"


def test_thresholds_count_images_and_who_is_right(pages: RankPages) -> None:
    picture, table = pages.imbalance(None, np.zeros(10)).blocks
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    everything, *_, strict = table.rows
    assert everything[:2] == ("0", "445")
    right = (pages.guess == pages.tested.label).mean()
    assert everything[2] == f"{100 * right:.1f} %"
    assert strict[:3] == ("0.95", str(pages.ranked.count[3]), "100.0 %")
    assert strict[3] == "9", "classes that no image is surely of"
    assert strict[5] == pages.classes[3]


def test_accuracy_over_labels_is_drawn_where_classes_differ(pages: RankPages) -> None:
    assert len(pages.imbalance(np.arange(10), np.full(10, 0.5)).blocks) == 3
    assert len(pages.imbalance(np.full(10, 4), np.full(10, 0.5)).blocks) == 2


def test_precision_falls_with_the_rank(pages: RankPages) -> None:
    picture, table = pages.precision().blocks
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    assert table.columns[-1] == "at own size"
    assert table.rows[3][-1] == "100.0 %"
    assert len(table.rows) == 10


def test_the_caption_gives_the_rank_at_which_lines_end(digits_pack: Pack) -> None:
    labels = digits_pack.split("test").labels()
    labels = np.where(np.arange(len(labels)) % 4 == 0, labels, -1)
    pages = RankPages(digits_pack, said_of(digits_pack, labels), digits_pack.classes)
    picture = pages.precision().blocks[0]
    assert isinstance(picture, Picture)
    assert np.median(pages.ranked.reach) > 3 * np.median(pages.ranked.count)
    assert f"{int(np.median(pages.ranked.reach))} here (median)" in picture.caption


def test_images_without_labels_are_shown_and_not_judged(digits_pack: Pack) -> None:
    pages = RankPages(digits_pack, said_of(digits_pack, np.full(40, -1)), digits_pack.classes)
    names = [block.name for block in pages.sheets().blocks if isinstance(block, Sheet)]
    assert names
    assert all("without a label, 40 of the first 40" in name for name in names)
    assert pages.precision().blocks == []
    table = pages.imbalance(None, np.full(10, np.nan)).blocks[1]
    assert isinstance(table, Table)
    assert {row[2] for row in table.rows} == {"-"}


def test_ranks_of_classes_are_whole_numbers(pages: RankPages, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure((8.6, 2.8))
    monkeypatch.setattr(rank_sections, "draw_picture", lambda draw, *_, **__: draw(figure, LIGHT))
    monkeypatch.setattr(pages, "classes", pages.classes[:3])
    monkeypatch.setattr(pages, "guess", pages.guess % 3)
    monkeypatch.setattr(pages, "has_labels", False)
    pages.imbalance(None, np.zeros(3))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert [text.get_text() for text in axes.get_xticklabels() if 1 <= text.get_position()[0] <= 3] == [
        *"123"
    ]
