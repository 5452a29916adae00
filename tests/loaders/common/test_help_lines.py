"""The help of an option is one paragraph."""

from __future__ import annotations

from dataclasses import dataclass

import docstring_parser
import pytest
import tyro

from loaders.common.help_lines import join_help_lines


@dataclass(frozen=True)
class Config:
    """Options whose docstrings take several lines."""

    rate: float = 0.5
    """The first line ends here, the second
    one begins with a letter, and the third with
    --another-option; 4 lines in
    all.

    Another paragraph.
    """


def test_an_option_is_shown_as_one_paragraph(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(docstring_parser, "parse_from_object", docstring_parser.parse_from_object)
    join_help_lines()
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    shown = capsys.readouterr().out
    whole = (
        "ends here, the second one begins with a letter, and the third with --another-option; 4 lines in all."
    )
    assert whole in shown
    assert "all. Another" not in shown
