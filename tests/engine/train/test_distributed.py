"""N ranks equal one rank on the global batch: collectives, BatchNorm, and all of Barlow Twins."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.train import distributed
from engine.train.distributed import make_accelerator
from tests.engine.objective_cases import OBJECTIVES
from tests.engine.rank_cases import (
    ROWS,
    all_cases,
    autocast_case,
    barlow_case,
    batchnorm_case,
    draws_case,
    own_rows_case,
    parts_case,
    patience_case,
    triplet_case,
    two_view_case,
    views_case,
)
from tests.engine.ranks import run_ranks

LONG = [pytest.mark.slow, pytest.mark.timeout(900)]
OBJECTIVES_FOLDER = Path(__file__).parents[3] / "engine" / "objectives"
NOT_OBJECTIVES = {"__init__", "precision", "cross_entropy"}  # the last serves jigsaw and patches


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=LONG)])
def by_rank(request: pytest.FixtureRequest) -> list[dict[str, Tensor]]:
    return run_ranks(all_cases, request.param)


def test_every_objective_has_a_case() -> None:
    coupled = {"barlow", "simclr", "vicreg", "triplet"}
    files = {path.stem for path in OBJECTIVES_FOLDER.glob("*.py")}
    assert coupled | set(OBJECTIVES) == files - NOT_OBJECTIVES


def test_means_over_own_rows_equal_one_process(by_rank) -> None:
    one = own_rows_case(0, 1)
    assert len(one) == 5 * len(OBJECTIVES)
    assert all(value.abs().max() > 1e-6 for value in one.values()), "a case that teaches nothing"
    for rank in by_rank:
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected, rtol=1e-6, atol=1e-9, msg=name)


def test_barlow_value_gradients_and_statistics_equal_one_process(by_rank) -> None:
    one = barlow_case(0, 1)
    assert sum(".grad." in name for name in one) == 5
    for rank in by_rank:
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected.detach(), rtol=1e-9, atol=1e-12, msg=name)


def test_triplets_take_their_negatives_from_all_ranks(by_rank) -> None:
    one = triplet_case(0, 1)
    assert len(one) == 3
    for rank in by_rank:
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_contrast_and_covariance_span_all_ranks(by_rank) -> None:
    one = two_view_case(0, 1)
    assert len(one) == 6
    for rank in by_rank:
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_parts_of_a_batch_on_several_ranks_equal_the_whole_on_one(by_rank) -> None:
    one = parts_case(0, 1)
    assert len(one) == 5
    for rank in by_rank:
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_draws_of_a_step_do_not_depend_on_the_ranks(by_rank) -> None:
    for name, expected in draws_case(0, 1).items():
        assert torch.equal(torch.cat([r[name] for r in by_rank]), expected)


def test_global_batchnorm_equals_one_process(by_rank) -> None:
    one = batchnorm_case(0, 1)
    for name, expected in one.items():
        found = torch.cat([r[name] for r in by_rank]) if ".rows." in name else by_rank[0][name]
        # With a mean of 100, both computations have float32 rounding errors of about 1e-5.
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4, msg=name)


def test_views_in_one_pass_keep_statistics_of_their_own(by_rank) -> None:
    one = views_case(0, 1)
    assert len(one) == 19
    for name, expected in one.items():
        found = torch.cat([r[name] for r in by_rank]) if ".rows." in name else by_rank[0][name]
        if name == "messages":
            assert expected.tolist() == [0, 0]
            assert found.tolist() == [3, 3], "one message a layer and direction, for both views"
        else:
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4, msg=name)


def test_global_batchnorm_takes_bfloat16(by_rank) -> None:
    one = autocast_case(0, 1)
    assert len(one) == 4
    for name, expected in one.items():
        found = torch.cat([r[name] for r in by_rank])
        torch.testing.assert_close(found, expected.detach(), rtol=0.02, atol=0.05, msg=name)


@pytest.mark.parametrize(
    ("local", "answer"), [("12", True), ("8", False), ("4", False), ("", True), ("0", False), ("x", True)]
)
def test_unequal_hosts_answer_alike(monkeypatch: pytest.MonkeyPatch, local: str, answer: bool) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setattr(distributed, "world_size", lambda: 12)
    assert distributed.is_one_host() is answer


def test_all_reduce_sum_and_its_gradient(by_rank) -> None:
    torch.manual_seed(2)
    joined = torch.randn(ROWS, 2, dtype=torch.float64)
    num_ranks = len(by_rank)
    weights = torch.randn(num_ranks, ROWS, 2, dtype=torch.float64)
    for rank in by_rank:
        torch.testing.assert_close(rank["sum"], joined.view(num_ranks, -1, 2).sum(0))
        torch.testing.assert_close(rank["sum.grad"], weights[:, : ROWS // num_ranks].sum(0))


def test_all_gather_and_its_gradient(by_rank) -> None:
    torch.manual_seed(2)
    joined = torch.randn(ROWS, 2, dtype=torch.float64)
    weights = torch.randn(len(by_rank), ROWS, 2, dtype=torch.float64)
    for rank, expected in zip(by_rank, weights.sum(0).chunk(len(by_rank)), strict=True):
        torch.testing.assert_close(rank["gather"], joined)
        torch.testing.assert_close(rank["gather.grad"], expected)


def test_ranks_wait_for_what_rank_0_computes(tmp_path: Path) -> None:
    """Collectives time out after minutes, but k-means or a probe on rank 0 may take longer."""
    found = run_ranks(partial(patience_case, f"file://{tmp_path}/again"), 2)
    assert [int(each["answer"]) for each in found] == [7, 7]


@pytest.mark.parametrize("gpu", [True, False])
def test_on_a_gpu_products_are_tf32_and_cudnn_chooses_once(
    monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: taken.update(products=name))
    monkeypatch.setattr(distributed, "Accelerator", lambda **options: taken.update(options))
    make_accelerator("auto" if gpu else "no")
    assert (taken.get("products"), torch.backends.cudnn.benchmark) == (
        ("high", True) if gpu else (None, False)
    )
    assert (taken["cpu"], taken["mixed_precision"]) == (not gpu, "bf16" if gpu else "no")
    assert taken["kwargs_handlers"][0].gradient_as_bucket_view


def test_nobody_is_warned_of_what_is_ours_to_change() -> None:
    make_accelerator("no")
    with warnings.catch_warnings(record=True) as seen:
        warnings.warn("`broadcast_buffers` is deprecated. Use another.", FutureWarning, stacklevel=1)
    assert not seen
