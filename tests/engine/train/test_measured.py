"""The loader for speed measurements yields new and repeated batches in alternating log windows."""

from __future__ import annotations

from types import SimpleNamespace

from engine.train.measured import TakingTurns


def test_windows_of_fresh_batches_and_of_the_last_one_take_turns() -> None:
    asked: list[int] = []

    def epoch(number: int) -> object:
        asked.append(number)
        return iter(range(10 * number, 10 * number + 5))

    loader = SimpleNamespace(epoch=epoch, steps_per_epoch=5, batch_size=4, fingerprint="f", bad_rows={3: "?"})
    turns = TakingTurns(loader, window=3)  # type: ignore[arg-type]
    assert [*turns.epoch(0), *turns.epoch(1)] == [0, 1, 2, 2, 2, 2, 10, 11, 12, 12]
    assert asked == [0, 1]
    assert (turns.steps_per_epoch, turns.batch_size, turns.bad_rows) == (5, 4, {3: "?"})
