"""Random streams across a change of device; test_loop.py tests resumes on the same device."""

from __future__ import annotations

import pytest
import torch

from engine.train import rng
from tests.engine.ranks import run_ranks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_run_of_a_processor_gives_each_rank_its_own_stream_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    states = {f"{rank}.{name}": value for rank in (0, 1) for name, value in rng.rng_state(CPU).items()}
    for rank in (0, 1):
        assert rng.restore_rank(states, rank, CPU, 0, 9) == []
    assert seeds == []
    for rank in (0, 1):
        (note,) = rng.restore_rank(states, rank, CUDA, 0, 9)
        assert "new numbers" in note
    assert len(set(seeds)) == 2


def test_a_state_of_the_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: taken.append(state))
    states = {f"0.{name}": value for name, value in rng.rng_state(CPU).items()} | {"0.cuda": torch.ones(1)}
    assert rng.restore_rank(states, 0, CUDA, 0, 9) == []
    assert len(taken) == 1


def states_case(rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    rng.seed_rank(0, rank, 9)
    return {**rng.gather_rng_states(CPU), "own": torch.get_rng_state()}


def test_rank_0_has_the_state_of_every_rank() -> None:
    main, other = run_ranks(states_case)
    for number, found in enumerate((main, other)):
        assert torch.equal(main[f"{number}.torch"], found["own"])
    assert not torch.equal(main["0.torch"], main["1.torch"])
    assert set(other) == {"own"}
