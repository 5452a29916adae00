"""A run's evaluation is read back as it was written."""

from pathlib import Path

import pytest

from engine.evaluate.results import Evaluation, FrozenAccuracy, read_evaluation, write_evaluation
from loaders.common.errors import UserError


def test_round_trip(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    row = FrozenAccuracy("barlow", 0.9, 0.95, 1.0, probe_converged=True, num_train=10, num_test=5)
    write_evaluation(tmp_path, Evaluation((row,), {"neighbours": 20}))
    assert read_evaluation(tmp_path) == Evaluation((row,), {"neighbours": 20})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"rows": [{}]}')
    with pytest.raises(UserError, match="evaluate the run again"):
        read_evaluation(tmp_path)
