"""Names in any script in pictures: drawn if a font has their characters, else numbered and explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.evaluate.classification_report import draw_confusion
from engine.report import names as module
from engine.report.figures import Series, draw_label_efficiency, draw_steps
from engine.report.names import drawn_names, names_of


@pytest.fixture
def only_own_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restrict matplotlib to its own font, whatever fonts the machine has."""
    from matplotlib import font_manager

    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    module._family_of.cache_clear()
    yield
    module._family_of.cache_clear()


@pytest.mark.parametrize("name", ["cat", "Größe", "кот", "γάτα", "😀", "1/2 px"])
def test_letters_of_matplotlibs_own_font_are_drawn(name: str) -> None:
    shown = drawn_names([name])
    assert (shown.texts, shown.families, shown.note) == ((name,), ("DejaVu Sans",), "")


@pytest.mark.usefixtures("only_own_font")
@pytest.mark.parametrize("name", ["猫", "قط", "חתול", "बिल्ली", "👩‍🚀", "e\u20dd"])
def test_what_no_font_draws_is_a_number_that_the_caption_explains(name: str) -> None:
    shown = drawn_names(["dog", name])
    assert shown.texts == ("dog", "#1")
    assert shown.note == f"No font here draws these names: #1 {name}."


def test_a_font_of_the_machine_that_has_the_letters_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_family_of", lambda letters: "Some CJK")
    assert drawn_names(["猫"]) == module.DrawnNames(("猫",), ("DejaVu Sans", "Some CJK"), "")


def test_marks_of_formulas_long_names_and_line_ends_do_no_harm() -> None:
    assert drawn_names(["a$b$c", "a\nb", "x" * 30 + "y" * 10]).texts == (
        r"a\$b\$c",
        "a\\nb",
        "x" * 15 + "…" + "x" * 6 + "y" * 10,
    )


@pytest.mark.usefixtures("only_own_font")
def test_pictures_of_any_names_are_drawn_without_a_warning() -> None:
    names = ["猫", "قط", "a$b$c", "\\frac{", "_hidden"]  # a warning fails a test
    confusion = draw_confusion(np.eye(5, dtype=np.int64), names, "Taken for.")
    assert confusion.caption == "Taken for. No font here draws these names: #0 猫, #1 قط."
    assert draw_steps(names, [1.0] * 5, "top-1").caption == "No font here draws these names: #0 猫, #1 قط."
    lines = [Series(name, (1, 2), (0.1, 0.2), (0.0, 0.0)) for name in names]
    assert "#0 猫" in draw_label_efficiency(lines).caption


def test_places_of_one_name_are_told_apart() -> None:
    places = (Path("a/run"), Path("b/run"), Path("timm:resnet18"), Path())
    assert names_of(places) == ["a/run", "b/run", "timm:resnet18", Path.cwd().name]
