"""The choice of a loader's backend, and the message about it."""

import re
from typing import get_args

import pytest

from loaders import BackendName, LoaderOptions, build_loader, build_paired_loader
from loaders.backends import BACKENDS
from loaders.build import explain_backend
from loaders.common.errors import UserError
from loaders.views import presets
from tests.loaders import every_backend


@pytest.mark.parametrize(
    ("backend", "words"),
    [("auto", "cpu: the fused kernels"), ("cpu", "cpu: requested"), ("dali", "dali: requested")],
)
def test_the_choice_is_explained(backend, words):
    line = explain_backend(LoaderOptions(backend=backend))
    assert re.match(words, line)
    assert "\n" not in line


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_loader_says_what_was_chosen_and_why(backend, photo_pack):
    split, views, options = photo_pack.split("train"), (presets.weak(16),), LoaderOptions(backend=backend)
    with build_loader(split, views, 8, options=options) as loader:
        assert loader.backend == explain_backend(options)
    with build_paired_loader(split, split, views, views, 4, 1, options=options) as pairs:
        assert pairs.backend == explain_backend(options)


def test_every_name_of_a_backend_is_one_in_the_tuple():
    assert {backend.name for backend in BACKENDS} | {"auto"} == set(get_args(BackendName))


def test_every_backend_has_a_case_of_the_contract_suite_or_a_reason_for_none():
    cases = {case.name for case in every_backend.BACKENDS.values()}
    assert {backend.name for backend in BACKENDS} - cases == every_backend.WITHOUT_CASE.keys()


def test_an_unknown_backend_is_refused_with_the_known_ones(photo_pack):
    with pytest.raises(UserError, match=f"one of {', '.join(get_args(BackendName))}, found 'gpu'"):
        build_loader(photo_pack.split("train"), (presets.weak(16),), 8, options=LoaderOptions(backend="gpu"))


def test_what_a_backend_refuses_is_refused_before_anything_else_is_asked(photo_pack, monkeypatch):
    class Missing:
        name = "missing"

        def refusal(self, work):
            return UserError("backend missing: its library is not installed; pip install it")

    monkeypatch.setattr("loaders.build.choose_backend", lambda *_: (Missing(), "as asked"))
    split, views = photo_pack.split("train"), (presets.weak(16),)
    with pytest.raises(UserError, match="its library is not installed"):
        build_loader(split, views, 8)
    with pytest.raises(UserError, match="its library is not installed"):
        build_paired_loader(split, split, views, views, 4, 1)
