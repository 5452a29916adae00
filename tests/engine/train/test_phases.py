"""Commands of several phases close what they have opened."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.train.classifier_config import PhasesConfig
from engine.train.phases import Phases
from loaders.packs import LabelTable
from loaders.packs.labels.validation import Division


class Opened:
    """A stand-in for a loader."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_shared_loaders_are_closed_however_a_command_ends(tmp_path: Path) -> None:
    config = PhasesConfig(
        pack=tmp_path,
        out=tmp_path / "run",
        backbone="test_resnet",
        resolution=16,
        epochs=1,
        batch_size=8,
        trackers=(),
        test_split="",
    )
    pack: Any = SimpleNamespace(classes=("a", "b", "c"))
    none = LabelTable.of(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
    division = Division(none, None, False, "none")
    loader, command = Opened(), Phases("rounds", config, pack, division, "a pack")
    assert command.keep(loader) is loader
    assert command.keep(None) is None
    with pytest.raises(KeyError), command:
        raise KeyError
    assert loader.closed
