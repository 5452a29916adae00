"""An error of a command becomes one line and exit code 2, whatever text the message quotes."""

import pytest

from loaders.common.errors import LoaderError, UserError, brief, run_command


@pytest.mark.parametrize("kind", [UserError, LoaderError])
def test_an_error_is_one_line_and_exit_code_2(kind, capsys):
    def main():
        raise kind("row 3 (a\nb) cannot be read")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: row 3 (a\\nb) cannot be read\n"


@pytest.mark.parametrize(("local_rank", "waits"), [("0", []), ("1", [5.0])])
def test_the_first_rank_tells_before_the_others(local_rank, waits, monkeypatch, capsys):
    def main():
        raise UserError("device: expected a GPU, found none")

    waited = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("time.sleep", waited.append)  # a wait that a launcher ends by a signal
    with pytest.raises(SystemExit, match="2"):
        run_command(main)
    assert waited == waits
    assert capsys.readouterr().err == "error: device: expected a GPU, found none\n"


def test_ctrl_c_while_a_rank_waits_is_one_line(monkeypatch, capsys):
    def main():
        raise UserError("device: expected a GPU, found none")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", interrupted)
    with pytest.raises(SystemExit, match="130"):
        run_command(main)
    assert capsys.readouterr().err.startswith("interrupted: finished work is kept")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (ValueError("many words that do not fit"), "many words t ..."),
        (ValueError("x" * 30), "x" * 12 + " ..."),
        (KeyError(), "KeyError"),
        (OSError(" "), "OSError"),
    ],
)
def test_a_reason_is_one_line_of_at_most_a_width(reason, expected):
    assert brief(reason, 16) == expected
