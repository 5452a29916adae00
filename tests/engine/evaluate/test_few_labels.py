"""Few-label results are written, read back, and summarised as NumPy does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.evaluate.few_labels import (
    SCRATCH,
    FewLabelResult,
    read_results,
    say_next_step,
    summarise,
    write_results,
)
from loaders.common.errors import UserError

TOP1 = {"runs/a": (0.90, 0.80, 0.85), SCRATCH: (0.5, 0.4, 0.6)}
RESULTS = [
    FewLabelResult(init, 5, seed, top1, num_test=20, steps=3)
    for init, values in TOP1.items()
    for seed, top1 in enumerate(values)
]


def test_mean_and_sample_deviation_over_seeds() -> None:
    summaries = summarise([FewLabelResult(SCRATCH, 1, 0, 0.25, 20, 3), *reversed(RESULTS)])
    assert [(s.init, s.labels_per_class, s.num_seeds) for s in summaries] == [
        ("runs/a", 5, 3),
        (SCRATCH, 1, 1),
        (SCRATCH, 5, 3),
    ]
    assert summaries[0].mean == pytest.approx(np.mean(TOP1["runs/a"]))
    assert summaries[0].spread == pytest.approx(np.std(TOP1["runs/a"], ddof=1))
    assert summaries[0].text == "85.0 ± 5.0"
    assert (summaries[1].spread, summaries[1].text) == (0.0, "25.0")


def test_results_are_read_back_as_written(tmp_path: Path) -> None:
    write_results(tmp_path, RESULTS, {"pack": Path("packs/x"), "seeds": (0, 1)})
    results, config = read_results(tmp_path)
    assert results == RESULTS
    assert config == {"pack": "packs/x", "seeds": [0, 1]}


@pytest.mark.parametrize("content", ["[]", "{", '{"config": {}, "results": [{"top1": 1}]}'])
def test_damaged_results_are_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"run recipes/transfer\.py first"):
        read_results(tmp_path)
    (tmp_path / "few_labels.json").write_text(content)
    with pytest.raises(UserError, match="not a list of results"):
        read_results(tmp_path)


def test_the_next_command_predicts_by_the_classifier_of_most_labels_that_validation_chose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def row(folder: str, labels: int, test: float, held: float | None) -> FewLabelResult:
        found = FewLabelResult("runs/a", labels, 0, test, 20, 3, validation_top1=held)
        return replace(found, folder=folder)

    rows = [row("few", 1, 0.9, 0.9), row("first", 5, 0.5, 0.6), row("best", 5, 0.4, 0.7)]

    def said(rows: list[FewLabelResult]) -> str:
        say_next_step(Path("out"), rows)
        return capsys.readouterr().out

    assert "classifiers: 3" in said(rows)
    assert "--network out/best " in said(rows)
    blind = [replace(one, validation_top1=None) for one in rows]
    assert "--network out/first " in said(blind), "the test images choose nothing"
    assert "tools/report.py" in said([replace(rows[0], folder="")])
