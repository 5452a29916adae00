"""The memory benchmark counts memory correctly."""

from pathlib import Path

import numpy as np
import pytest

from loaders.common.errors import UserError
from loaders.packs import Pack
from tools.bench_memory import Config, measure, peak


def test_memory_that_comes_and_goes_is_seen() -> None:
    with peak() as found:
        before, held = found[0], []
        # Several arrays may be needed if earlier code frees memory in the meantime.
        while found[0] - before <= 30 * 2**20 and len(held) < 20:
            held.append(np.ones(40 * 2**20, np.uint8))
            for _ in range(100):
                held[-1] += 1
    assert 30 * 2**20 < found[0] - before < 40 * 2**20 * (len(held) + 1)


def test_a_pack_is_looked_for_unless_it_lies_in_a_store(tmp_path: Path) -> None:
    Config(Path("s3://bucket/packs/mine")).check_places()
    with pytest.raises(UserError, match="pack"):
        Config(tmp_path).check_places()


def test_a_loader_is_measured(digits_pack: Pack) -> None:
    memory = measure(
        Config(digits_pack.path, resolution=16, batch_size=32, epochs=3, num_threads=1), "float32"
    )
    assert 0 < memory.before <= memory.early
    assert memory.late > 0
    with pytest.raises(UserError, match="expected at most"):
        measure(Config(Path(digits_pack.path), batch_size=10**6), "float32")
