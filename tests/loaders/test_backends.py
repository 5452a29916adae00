"""Which backend a loader takes, and how it says so."""

import re

import pytest

from loaders import build_loader, build_paired_loader
from loaders.build import explain_backend
from loaders.errors import UserError
from loaders.views import presets


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        ("auto", "cpu", "cpu: the fused kernels"),
        ("auto", "cuda", "cpu: .*bench_loaders.py"),
        ("cpu", "cpu", "cpu: asked for"),
        ("dali", "cpu", "dali: .*on the CPU"),
        ("dali", "cuda:1", "dali: .*on the GPU"),
        ("ffcv", "cpu", "ffcv: asked for"),
    ],
)
def test_the_choice_is_explained(backend, device, words):
    line = explain_backend(backend, device)
    assert re.match(words, line)
    assert "\n" not in line


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_loader_says_what_was_chosen_and_why(backend, photo_pack):
    split, views = photo_pack.split("train"), (presets.weak(16),)
    with build_loader(split, views, 8, backend=backend) as loader:
        assert loader.backend == explain_backend(backend)
    with build_paired_loader(split, split, views, views, 4, 1, backend=backend) as pairs:
        assert pairs.backend == explain_backend(backend)


def test_an_unknown_backend_is_refused_with_the_known_ones(photo_pack):
    with pytest.raises(UserError, match=r"one of auto, cpu, dali, ffcv, stream, found 'gpu'"):
        build_loader(photo_pack.split("train"), (presets.weak(16),), 8, backend="gpu")
