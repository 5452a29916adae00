"""What a run of the long forms is: each fault once, and a file of records that holds this run alone."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as short what has a long form: `-m "not short"` leaves one form of every test."""
    own = [item for item in items if HERE in item.path.parents]
    long = {(item.path, function_of(item)) for item in own if item.get_closest_marker("slow")}
    for item in own:
        if (item.path, function_of(item)) in long and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.short)


def function_of(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the file of records anew, so that no table is pieced together from several runs."""
    path = os.environ.get("SLUICE_FAULT_RECORDS")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).unlink(missing_ok=True)
