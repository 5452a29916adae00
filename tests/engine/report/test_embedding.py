"""The map of features keeps groups together, whichever features distinguish them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from engine.report import embedding
from engine.report import tested as predictions
from engine.report.embedding import embedding_section, place
from engine.report.theme import LIGHT


@pytest.mark.parametrize("width", [2, 6, 60])
def test_few_images_with_a_dead_feature_make_two_groups(width: int) -> None:
    random = np.random.default_rng(0)
    group = np.arange(40) % 2
    features = random.normal(0, 0.1, (40, width)).astype(np.float32)
    features[:, 0] = 0.0  # a constant feature, whose scale must not matter
    features[:, 1] += 4.0 * group
    places = place(features)
    assert places.shape == (40, 2)
    assert np.isfinite(places).all()
    assert np.abs(places).max() < 1000
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (group[apart.argmin(1)] == group).all()


def test_one_feature_or_none_that_differs_has_a_map_too() -> None:
    one = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    assert np.isfinite(place(one)).all()
    assert not place(np.full((40, 6), 0.3, np.float32)).any()


def test_the_legend_has_the_classes_in_natural_order(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, names = Figure(), ("10", "2", "1", "rare")
    monkeypatch.setattr(embedding, "draw_picture", lambda draw, *_, **__: draw(figure, LIGHT))
    monkeypatch.setattr(embedding, "_NAMED", 3)
    label = np.array([0] * 5 + [1] * 3 + [2] * 4 + [3])
    features = np.random.default_rng(0).normal(size=(13, 4)).astype(np.float32)
    given = predictions.Tested("test", 13, np.arange(13), label, None, np.arange(13), features)
    embedding_section(given, names)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1", "2", "10"]
