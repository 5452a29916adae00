"""What a command line does with an error: one line and exit code 2, whatever the message quotes."""

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
