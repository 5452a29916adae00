"""The grid of learning rates: the report's pairs, the choice of the best cell, and the written files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.evaluate.few_labels import FewLabelResult
from engine.evaluate.grid import RATES, WEIGHT_DECAYS, Cell, Setting, best_of, settings, sum_up, write_grid
from loaders.common.errors import UserError

TABLE_5 = """0.03 0.05, 0.01 0.03, 0.01 0.05, 0.005 0.01, 0.005 0.03, 0.005 0.05, 0.003 0.005, 0.003 0.01,
0.003 0.03, 0.003 0.05, 0.001 0.003, 0.001 0.005, 0.001 0.01, 0.001 0.03, 0.001 0.05"""


def test_the_pairs_are_those_of_the_reports_table_and_the_one_it_chose() -> None:
    expected = {tuple(map(float, pair.split())) for pair in TABLE_5.split(",")} | {(0.05, 0.05)}
    found = settings(RATES, WEIGHT_DECAYS)
    assert len(found) == 32
    for decay in WEIGHT_DECAYS:
        assert {(s.lr_backbone, s.lr_classifier) for s in found if s.weight_decay == decay} == expected


def test_a_cell_is_the_mean_of_its_seeds() -> None:
    runs = [FewLabelResult("run", 4, s, 0.5 + s / 10, 10, 5, validation_top1=0.6 + s / 5) for s in (0, 1)]
    cell = sum_up(Setting(0.0, 0.01, 0.05), runs)
    assert (cell.mean, cell.test_mean, cell.num_seeds) == (pytest.approx(0.7), pytest.approx(0.55), 2)
    assert cell.spread == pytest.approx(np.std([0.6, 0.8], ddof=1))


def test_table_and_picture(tmp_path: Path) -> None:
    wanted = settings((0.01, 0.03, 0.05), (0.0, 0.1))
    cells = [Cell(s, 0.5 + s.lr_backbone - s.weight_decay / 10, 0.0, 0.4, 1) for s in wanted]
    write_grid(tmp_path, cells, {"note": 1})
    best = json.loads((tmp_path / "grid.json").read_text())["best"]
    assert best == {"weight_decay": 0.0, "lr_backbone": 0.05, "lr_classifier": 0.05}
    assert best_of(cells).mean == pytest.approx(0.55)
    assert (tmp_path / "grid.csv").read_text().splitlines()[:3] == [
        "lr_backbone,lr_classifier,top1_percent_decay_0,top1_percent_decay_0.1",
        "0.05,0.05,55.00,54.00",
        "0.03,0.05,53.00,52.00",
    ]
    light, dark = ((tmp_path / name).read_bytes() for name in ("grid.png", "grid-dark.png"))
    assert light != dark
    with Image.open(io.BytesIO(light)) as picture:
        assert picture.width > 1000


def test_mistakes_are_named() -> None:
    for rates in ((), (0.1, 0.1), (-1.0, 0.1)):
        with pytest.raises(UserError, match="grid_rates"):
            settings(rates, (0.0,))
    with pytest.raises(UserError, match="grid_weight_decays"):
        settings((0.1,), ())
