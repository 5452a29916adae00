"""The accuracies of frozen features, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.files import to_json, write_atomic
from loaders.common.json_text import parse_json

EVALUATION_NAME = "evaluation.json"


@dataclass(frozen=True)
class FrozenAccuracy:
    """Test accuracies of one frozen network, in [0, 1].

    Attributes:
        network: recipe that trained the network, third-party weights as the user named them, or "untrained".
        knn_top1: accuracy of weighted nearest neighbours.
        linear_top1: accuracy of the linear probe.
        linear_top5: accuracy of the linear probe with five guesses per image (fewer for fewer classes).
        probe_converged: False if the probe's solver stopped at its iteration limit.
        num_train: labelled images among which neighbours are searched, and from which the probe learns.
        num_test: labelled test images.
    """

    network: str
    knn_top1: float
    linear_top1: float
    linear_top5: float
    probe_converged: bool
    num_train: int
    num_test: int


@dataclass(frozen=True)
class Evaluation:
    """The accuracies of the network to evaluate and perhaps of an untrained one, and the configuration."""

    rows: tuple[FrozenAccuracy, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json into a folder, atomically."""
    content = {"config": dict(evaluation.config), "rows": [asdict(row) for row in evaluation.rows]}
    write_atomic(out / EVALUATION_NAME, to_json(content))


def read_evaluation(out: Path) -> Evaluation | None:
    """Read evaluation.json of a folder; None if the folder has none.

    Raises:
        UserError: the file is not an evaluation.
    """
    path = out / EVALUATION_NAME
    if not path.exists():
        return None
    try:
        content = parse_json(path.read_bytes())
        rows = tuple(FrozenAccuracy(**row) for row in content["rows"])
        if not rows:
            raise ValueError("no networks")
        return Evaluation(rows, content["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"evaluation: {path} is not an evaluation ({error}); evaluate the run again"
        ) from error
