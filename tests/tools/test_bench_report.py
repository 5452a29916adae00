import json
from pathlib import Path

import pytest
from rich.console import Console

from loaders.common.errors import UserError
from tools.bench.table import notes, reference_of, render, summarise
from tools.plot_bench import deal, draw, last_benchmarks, read_records

WORK = {"views": "barlow", "resolution": 96, "batch_size": 64, "threads": 2, "interpolation": "bicubic"}


def record(contender: str, kind: str, rate: float, **changes: object) -> dict[str, object]:
    return {
        "contender": contender, "kind": kind, "status": "ok", "reason": "", "images_per_s": rate,
        "cpu_s_per_1000": 2000 / rate, "peak_rss_bytes": 2**30, "peak_anonymous_bytes": 2**29,
        "first_batch_s": 1.0, "workload": WORK, "pack": "p", "epoch_images": 1000, "page_cache": "warm",
        "differences": "", "benchmark": "2026-01-01T00:00:00Z", "commit": "abc",
        "machine": {"cpu": "x", "cores": 2},
        **changes,
    }  # fmt: skip


def records() -> list[dict[str, object]]:
    rates = {"cpu": (900, 1000, 1100), "dali": (100, 250, 200), "decode_only": (4000, 4000, 4000)}
    kinds = {"cpu": "backend", "dali": "peer", "decode_only": "limit"}
    found = [record(name, kinds[name], rate) for name, three in rates.items() for rate in three]
    refused = record("ffcv", "peer", 1, status="refused", reason="no hue")
    del refused["images_per_s"]
    return [*found, refused]


def test_rows_are_medians_with_their_range() -> None:
    rows = summarise(records())
    assert [(row.contender, row.images_per_s) for row in rows] == [
        ("decode_only", 4000),
        ("cpu", 1000),
        ("dali", 200),
    ]
    assert (rows[2].low, rows[2].high, rows[2].runs) == (100, 250, 3)
    assert rows[1].spread == pytest.approx(0.1)
    reference = reference_of(rows)
    assert reference is not None
    assert reference.contender == "cpu"
    peers_only = reference_of([row for row in rows if row.kind == "peer"])
    assert peers_only is not None
    assert peers_only.contender == "dali"


def test_the_table_gives_ratios_and_absences() -> None:
    console = Console(width=160, record=True)
    console.print(render(records()))
    text = console.export_text()
    assert "cpu faster by" in text
    dali = next(line for line in text.splitlines() if "dali" in line)
    assert "5.00x" in dali
    assert "5.0%" in dali
    assert notes(records()) == ["ffcv refused: no hue"]


def test_a_panel_is_the_last_benchmark_of_its_workload_images_and_machine() -> None:
    newer = [record("cpu", "backend", rate, benchmark="2026-01-02T00:00:00Z") for rate in (5, 6)]
    views = record("cpu", "backend", 7, workload={**WORK, "views": "crop_flip"})
    images = record("cpu", "backend", 8, epoch_images=2000)
    machine = record("cpu", "backend", 9, machine={"cpu": "y", "cores": 2})
    panels = last_benchmarks("file", [*newer, *records(), views, images, machine])
    found = [[r["images_per_s"] for r in panel.records] for panel in panels]
    assert found == [[5, 6], [7], [8], [9]]
    assert last_benchmarks("file", records()[-1:]) == []


def test_the_chart_names_what_ran_and_what_did_not(tmp_path: Path) -> None:
    raw = record("cpu", "backend", 7, workload={**WORK, "views": "crop_flip", "encoding": "raw"})
    panels = last_benchmarks("some-file", [*records(), raw])
    draw(panels, tmp_path / "chart.png")
    texts = []
    for name in ("a.svg", "b.svg"):
        draw(panels, tmp_path / name)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert texts[0].count(">Sluice cpu<") == 2
    assert texts[0].count(">ffcv<") == texts[0].count(">refused<") == 1
    assert ">200 (5.0x)<" in texts[0]
    assert "96 px, from pixels<" in texts[0]
    assert texts[0].count("some-file<") == 2


def test_many_panels_are_dealt_in_order_to_columns_of_about_one_height() -> None:
    tall = last_benchmarks("tall", records())
    short = [record("cpu", "backend", 1, epoch_images=number) for number in range(8)]
    columns = deal([*tall, *last_benchmarks("short", short)])
    assert [panel.file for column in columns for panel in column] == ["tall"] + 8 * ["short"]
    heights = [sum(panel.height for panel in column) for column in columns]
    assert len(columns) == 3
    assert max(heights) < 1.5 * min(heights)
    assert [len(column) for column in deal(tall)] == [1]


def test_broken_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with pytest.raises(UserError, match="expected a file of records"):
        read_records(path)
    path.write_text(json.dumps(record("cpu", "backend", 1)) + "\n{}\n")
    with pytest.raises(UserError, match="line 2"):
        read_records(path)
