"""Fault tests: `-m "not short"` runs one form of each test, and the record file covers one run only."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the short form of tests that also have a long one, so that `-m "not short"` runs only the long."""
    own = [item for item in items if HERE in item.path.parents]
    long = {(item.path, function_of(item)) for item in own if item.get_closest_marker("slow")}
    for item in own:
        if (item.path, function_of(item)) in long and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.short)


def function_of(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Delete the old record file, so that no table mixes several runs."""
    path = os.environ.get("SLUICE_FAULT_RECORDS")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).unlink(missing_ok=True)
