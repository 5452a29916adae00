"""The page is one file, shows the text that it is given, and never runs that text as code."""

from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from engine.report import figures
from engine.report.classifier_sections import headline
from engine.report.figures import Curve, Series, draw_curves, draw_label_efficiency
from engine.report.page import (
    Command,
    Facts,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Table,
    Tile,
    Tiles,
    render_page,
)
from engine.report.sections import configuration_section, curves_of, curves_section
from engine.report.theme import LIGHT, Palette

HOSTILE = '<script>alert("x")</script>&\'"'
PNG = b"\x89PNG\r\n\x1a\n-picture"


class Collector(HTMLParser):
    """Collects every tag, every attribute value and all text of a page; fails on tags left open."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(page: str) -> Collector:
    collector = Collector()
    collector.feed(page)
    assert collector.open == []
    return collector


def test_all_text_is_escaped() -> None:
    blocks = [
        Paragraph(HOSTILE),
        Command([HOSTILE]),
        Tiles([Tile(HOSTILE, HOSTILE, HOSTILE)]),
        Table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], caption=HOSTILE),
        Facts([(HOSTILE, HOSTILE)]),
        Picture(PNG, PNG, alt=HOSTILE, caption=HOSTILE),
        Gallery([HOSTILE], [[PNG]], caption=HOSTILE),
    ]
    found = parse(render_page(HOSTILE, HOSTILE, [Section(HOSTILE, blocks)], footer=HOSTILE))
    assert found.tags.count("script") == 1  # the page's own, which sorts and zooms
    assert found.text.count(HOSTILE) == 20


def test_nothing_is_loaded_from_elsewhere() -> None:
    picture = draw_curves([Curve("loss", [1, 2], [3.0, 2.0])])
    page = render_page("A run", "", [Section("Curves", [picture, Gallery(["image"], [[PNG]])])])
    found = parse(page)
    assert len(found.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert "http" not in page
    assert "@import" not in page


def test_a_section_without_blocks_is_left_out() -> None:
    assert "Empty" not in render_page("A run", "", [Section("Empty", [])])


@pytest.mark.parametrize("num_curves", [1, 3, 4])
def test_curves_are_drawn_for_light_and_dark_pages(num_curves: int) -> None:
    curves = [Curve(f"curve {i}", [1, 2, 3], [0.5, 0.2, 0.1], from_zero=i == 0) for i in range(num_curves)]
    picture = draw_curves(curves)
    assert picture.light.startswith(b"\x89PNG")
    assert picture.dark.startswith(b"\x89PNG")
    assert picture.light != picture.dark
    assert all(curve.name in picture.alt for curve in curves)


def test_each_of_several_runs_has_its_own_colour_in_all_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure()
    monkeypatch.setattr(figures, "draw_picture", lambda draw, *_, **__: draw(figure, LIGHT))
    records = [{"step": step, "loss": 1.0, "lr": 0.1, "top1": 0.5} for step in (1, 2)]
    held = [{"step": step, "validation_loss": 2.0, "validation_top1": 0.4} for step in (1, 2)]
    draw_curves([*curves_of([*records, *held], "first"), *curves_of(records, "second")])
    colours: dict[str, set[str]] = {}
    for axes in figure.axes:
        for line in axes.lines:
            colours.setdefault(line.get_label().partition(",")[0], set()).add(line.get_color())
    assert colours == {"first": {LIGHT.accent}, "second": {LIGHT.second}}
    training, held_line, _ = figure.axes[0].lines
    assert training.get_linewidth() > held_line.get_linewidth()


def test_the_legend_of_curves_stands_above_all_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, object] = {}

    def draw(draw: Callable[[Figure, Palette], None], size: tuple[float, float], *_: object, **__: object):
        drawn["figure"] = figure = Figure(figsize=size)
        draw(figure, LIGHT)

    monkeypatch.setattr(figures, "draw_picture", draw)
    records = [{"step": step, "loss": 1.0, "top1": 0.5, "lr": 0.1} for step in (1, 2)]
    held = [{"step": 2, "validation_loss": 2.0, "validation_top1": 0.4, "validation_mean_class_top1": 0.3}]
    draw_curves([*curves_of([*records, *held], "_first"), *curves_of([*records, *held], "second")])
    figure = drawn["figure"]
    assert isinstance(figure, Figure)
    assert all(axes.get_legend() is None for axes in figure.axes)
    (legend,) = figure.legends
    kinds = ("training", "validation", "validation, class mean")
    expected = [f"{run}, {kind}" for run in ("_first", "second") for kind in kinds]
    assert sorted(text.get_text().strip() for text in legend.get_texts()) == sorted(expected)
    figure.draw_without_rendering()
    assert legend.get_window_extent().y0 > max(axes.get_tightbbox().y1 for axes in figure.axes)
    assert legend.get_window_extent().x1 <= figure.bbox.width


def test_a_line_that_another_hides_is_not_drawn() -> None:
    def shown(mean: float) -> list[str]:
        held = {"validation_top1": 0.5, "validation_mean_class_top1": mean}
        return [curve.label for curve in curves_of([{"step": 1, **held}, {"step": 2, **held}])]

    assert shown(0.5 + 1e-9) == ["validation"], "classes of equal size"
    assert shown(0.51) == ["validation", "validation, class mean"]
    (tiles,) = headline(0.5, 10, None, 0.5 + 1e-9).blocks
    assert isinstance(tiles, Tiles)
    assert len(tiles.tiles) == 1


def test_an_option_of_a_run_and_of_its_loader_is_shown_once() -> None:
    config = {"seed": 7, "device": "auto", "loader": {"seed": 0, "device": "cpu", "window": 16}}
    described = {"recipe": "supervised", "config": config, "versions": {}}
    facts = next(block for block in configuration_section(described, []).blocks if isinstance(block, Facts))
    assert facts.pairs == [("seed", "7"), ("device", "auto"), ("window", "16")]


def test_label_efficiency_is_drawn() -> None:
    series = [
        Series("pre-trained", [1, 5], [0.7, 0.9], [0.05, 0.0]),
        Series("from scratch", [1], [0.4], [0.1]),
    ]
    assert draw_label_efficiency(series).light.startswith(b"\x89PNG")


def test_validation_is_drawn_beside_training() -> None:
    training = [{"step": step, "loss": 1.0 / step, "top1": 0.1 * step} for step in (1, 2, 3)]
    held = [{"step": step, "validation_loss": 2.0 / step, "validation_top1": 0.05 * step} for step in (1, 3)]
    plain, both = curves_section(training), curves_section([*training, *held])
    (without,), (picture,) = plain.blocks, both.blocks
    assert isinstance(without, Picture)
    assert isinstance(picture, Picture)
    assert picture.alt == "Curves over step: loss (training, validation), accuracy (training, validation)"
    assert picture.light != without.light, "the second line"
