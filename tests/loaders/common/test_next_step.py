"""The suggested next command has the form in which this command was called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loaders.common.next_step import IS_A_STEP, as_called, call_program, next_line, say_next


@pytest.fixture(autouse=True)
def by_its_file() -> Iterator[None]:
    call_program(None)
    yield
    call_program(None)


@pytest.mark.parametrize(
    ("script", "by_sluice"),
    [
        ("tools/predict.py", "sluice predict"),
        ("tools/verify_pack.py", "sluice verify"),
        ("recipes/transfer.py", "sluice train transfer"),
        ("recipes/active.py", "sluice active"),
    ],
)
def test_a_script_and_sluice(script: str, by_sluice: str) -> None:
    assert next_line(script, "--out", "a b") == f"next: python {script} --out 'a b'"
    call_program("sluice pack")
    assert next_line(script, "--out", 7) == f"next: {by_sluice} --out 7"


def test_one_process_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say_next("tools/report.py")
    monkeypatch.setenv("RANK", "1")
    say_next("tools/export.py")
    monkeypatch.delenv("RANK")
    monkeypatch.setenv(IS_A_STEP, "1")
    say_next("tools/export.py")
    assert capsys.readouterr().out == "next: python tools/report.py\n"


def test_a_message_names_commands_as_they_were_called() -> None:
    said = (
        "see `python tools/labels.py import`, tools/bench_loaders.py or mine/tools/labels.py; recipes/vae.py"
    )
    assert as_called(said) == said
    call_program("sluice pack")
    assert as_called(said) == (
        "see `sluice labels import`, sluice bench loaders or mine/tools/labels.py; sluice train vae"
    )
