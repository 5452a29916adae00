"""The loader for speed measurements yields new and repeated batches in alternating log windows."""

from __future__ import annotations

from types import SimpleNamespace

from engine.train.measured import Idle, TakingTurns


def in_turns(asked: list[int]) -> TakingTurns:
    """Windows of 3 steps over epochs of 5 batches; `asked` gets the numbers of the epochs."""

    def epoch(number: int, start_step: int = 0) -> object:
        asked.append(number)
        return iter(range(10 * number + start_step, 10 * number + 5))

    loader = SimpleNamespace(epoch=epoch, steps_per_epoch=5, batch_size=4, fingerprint="f", bad_rows={3: "?"})
    return TakingTurns(loader, window=3)  # type: ignore[arg-type]


def test_windows_of_fresh_batches_and_of_the_last_one_take_turns() -> None:
    asked: list[int] = []
    turns = in_turns(asked)
    assert [*turns.epoch(0), *turns.epoch(1)] == [0, 1, 2, 2, 2, 2, 10, 11, 12, 12]
    assert asked == [0, 1]
    assert (turns.steps_per_epoch, turns.batch_size, turns.bad_rows) == (5, 4, {3: "?"})


def test_a_run_resumed_inside_an_epoch_gets_its_later_batches() -> None:
    assert [*in_turns([]).epoch(0, start_step=1)] == [1, 2, 2, 2]
    assert [*in_turns([]).epoch(1, start_step=2)] == [12, 13, 13]


def test_a_recipe_without_a_schedule_of_its_own_keeps_its_learning_rate() -> None:
    factor = Idle().make_schedule(10, 100)
    assert [factor(step) for step in (0, 50, 99)] == [1.0, 1.0, 1.0]
