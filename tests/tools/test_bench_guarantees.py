"""The cost of the guarantees: resuming at any step of a large pack is quick, and its order is cheap."""

from pathlib import Path

import numpy as np
import pytest

from loaders.packs import open_pack
from tests.loaders.packs.inputs import class_tree, pack, write_tree
from tools.bench.same_work import agreement_times
from tools.bench_guarantees import Config, cost, order_cost, repeat_pack, resume_times


@pytest.mark.parametrize(
    ("rows", "most_s"), [(5_000, 10.0), pytest.param(512_000, 1.0, marks=pytest.mark.slow)]
)
def test_the_first_batch_comes_soon_at_any_step(tmp_path: Path, rows: int, most_s: float) -> None:
    write_tree(tmp_path / "in", class_tree(2, 50))
    small = pack(tmp_path / "pack", f"train={tmp_path / 'in'}", shard_size_mb=0.1)
    repeated = repeat_pack(small, small.split("train"), rows, tmp_path / "repeated")
    assert len(repeated) >= rows
    assert repeated.read(rows - 1) in {small.read(row) for row in range(len(small))}
    config = Config(small.path, resolution=24, batch_size=64)
    resume_times(repeated.path, config)  # compiles kernels or loads them
    found = resume_times(repeated.path, config)
    assert list(found) == ["first", "middle", "last"]
    assert max(found.values()) < most_s
    assert open_pack(repeated.path).manifest.num_images == len(repeated)


@pytest.mark.slow
def test_the_order_of_many_rows() -> None:
    seconds, size_bytes = order_cost(100_000_000)
    assert seconds < 10  # 1.6 on two idle cores
    assert size_bytes < 1 << 30


def test_the_agreement_of_ranks_is_timed() -> None:
    seconds = agreement_times(2, 30)
    assert seconds.shape == (30,)
    assert (seconds > 1e-6).all(), "a message to another process takes longer"


def test_a_cost_is_the_share_of_throughput_that_is_lost() -> None:
    plain = np.array([1.0, 2.0, 1.0, 2.0])
    lost, error = cost(plain / 0.9, plain)
    assert lost == pytest.approx(10)
    assert error == {"standard_error": pytest.approx(0, abs=1e-9)}
    assert cost(plain, plain / 0.9)[0] == pytest.approx(-100 / 9)
    assert cost(plain[:1], plain[:1]) == (0, {}), "one run has no error"
