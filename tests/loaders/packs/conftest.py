"""What makes the tests of packs quick without making them weaker."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing guards against power cuts alone, which no test can cause, and costs most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
