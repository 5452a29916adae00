"""Ranks that would compute different things refuse to start, and say what differs."""

import pytest
import torch
from torch import Tensor

from engine.train.agreement import check_agreement, run_facts
from loaders.common.errors import UserError
from tests.engine.ranks import run_ranks
from tests.engine.synthetic import SyntheticLoader

DIFFERENCES = ("config width", "pack", "global batch size", "torch version")


def disagreeing(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Return the outcome for each difference: 1 = refused with the right words, 2 = exited, 0 = started."""
    found = {}
    for name in ("none", *DIFFERENCES):
        facts = run_facts("small", {"width": 1}, SyntheticLoader())
        if name in DIFFERENCES:
            assert name in facts
            facts[name] += f" of rank {rank}"
        outcome = 0
        try:
            check_agreement(facts)
        except UserError as error:
            outcome = 1 if f"expected the same {name} on every rank" in str(error) else -1
        except SystemExit:
            outcome = 2
        found[name] = torch.tensor(outcome)
    return found


def test_ranks_that_disagree_refuse_to_start() -> None:
    first, second = run_ranks(disagreeing, 2)
    assert first["none"] == second["none"] == 0
    for name in DIFFERENCES:
        assert (int(first[name]), int(second[name])) == (1, 2)


def test_one_rank_agrees_with_itself() -> None:
    check_agreement({"anything": "at all"})
    with pytest.raises(TypeError):
        run_facts("small", {"odd": object()}, SyntheticLoader())
