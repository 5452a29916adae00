"""Tables from records: means over seeds, the best value of a column, and gaps for missing measurements."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.common.errors import UserError
from tools.comparison.tables import markdown, selfsup_table, semisup_table, write_page

SEMISUP = [
    {"kind": "start_up", "cpu_s": 1.0},
    *(
        {"kind": "trained", "method": name, "title": title, "labels_per_class": count, "seed": seed}
        | {"cpu_s": 60.0, "steps": 100, "top1": top1}
        for name, title, count, seed, top1 in (
            ("fixmatch", "FixMatch", 4, 0, 0.30),
            ("supervised", "Supervised", 4, 0, 0.20),
            ("supervised", "Supervised", 4, 1, 0.24),
            ("supervised", "Supervised", 25, 0, 0.40),
        )
    ),
]
SELFSUP = [
    {"kind": "pretraining", "method": "barlow", "title": "Barlow Twins", "cpu_s": 59.6, "images": 12800}
    | {"metric": 123.4, "metric_name": "loss", "seed": 0},
    {"kind": "frozen", "method": "barlow", "knn_top1": 0.35, "linear_top1": 0.41, "seed": 0},
    {"kind": "frozen", "method": "untrained", "knn_top1": 0.31, "linear_top1": 0.42, "seed": 0},
    {"kind": "fine_tuned", "method": "barlow", "results": [{"labels_per_class": 1, "top1": 0.15}], "seed": 0},
    {
        "kind": "fine_tuned",
        "method": "scratch",
        "results": [{"labels_per_class": 1, "top1": 0.14}],
        "seed": 0,
    },
]
SECOND_SEED = [
    {"kind": "pretraining", "method": "barlow", "title": "Barlow Twins", "cpu_s": 62.4, "images": 12800}
    | {"metric": 133.4, "metric_name": "loss", "seed": 1},
    {"kind": "frozen", "method": "barlow", "knn_top1": 0.37, "linear_top1": 0.45, "seed": 1},
    {"kind": "fine_tuned", "method": "barlow", "results": [{"labels_per_class": 1, "top1": 0.17}], "seed": 1},
    {
        "kind": "fine_tuned",
        "method": "scratch",
        "results": [{"labels_per_class": 1, "top1": 0.12}],
        "seed": 1,
    },
]


def test_methods_with_labels() -> None:
    assert markdown(semisup_table(SEMISUP)).splitlines() == [
        "| method | CPU s | steps | 4 per class | 25 per class |",
        "| --- | --: | --: | --: | --: |",
        "| Supervised | 60 | 100 | 22.0 ± 2.8 | **40.0** (1 of 2) |",
        "| FixMatch | 60 | 100 | **30.0** (1 of 2) | - |",
    ]


def test_self_supervised_methods() -> None:
    assert markdown(selfsup_table(SELFSUP)).splitlines() == [
        "| method | CPU s | images seen | pretext task | kNN | linear | 1 per class |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| Barlow Twins | 60 | 12,800 | loss 123 | **35.0** | 41.0 | **15.0** |",
        "| untrained / from scratch | 0 | 0 |  | 31.0 | **42.0** | 14.0 |",
    ]


def test_self_supervised_methods_of_two_seeds() -> None:
    assert markdown(selfsup_table([*SECOND_SEED, *SELFSUP])).splitlines()[2:] == [
        "| Barlow Twins | 61 | 12,800 | loss 128 | **36.0 ± 1.4** | **43.0 ± 2.8** | **16.0 ± 1.4** |",
        "| untrained / from scratch | 0 | 0 |  | 31.0 (1 of 2) | 42.0 (1 of 2) | 13.0 ± 1.4 |",
    ]


def test_table_and_plot_lie_beside_the_records(tmp_path: Path) -> None:
    for name, table in (("selfsup", selfsup_table(SELFSUP)), ("semisup", semisup_table(SEMISUP))):
        write_page(tmp_path / f"{name}.jsonl", table)
        assert "| method |" in (tmp_path / f"{name}.md").read_text()
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}-dark.png").exists()
    with pytest.raises(UserError, match=r"expected measured methods for x\.jsonl, found none"):
        write_page(tmp_path / "x.jsonl", semisup_table([{"kind": "start_up", "cpu_s": 1.0}]))
