"""Precision chosen by the hardware, with a simulated processor, since the real one may lack bfloat16."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from engine.train import autocast
from engine.train.distributed import make_accelerator
from loaders.common.errors import UserError
from loaders.options import LoaderOptions

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")


@pytest.fixture
def processor(monkeypatch):
    """Return a function that gives the simulated processor capabilities by name."""

    def has(*names):
        found = dict.fromkeys(autocast.IN_HARDWARE, False) | dict.fromkeys(names, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)

    return has


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), "no"), (("avx512_f", "avx2"), "no"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16")],
)
def test_auto_takes_bfloat16_where_the_processor_has_it(processor, names, expected):
    processor(*names)
    assert autocast.of_hardware() == expected
    assert autocast.taken("auto", None) == expected
    assert autocast.taken("no", None) == "no"


def test_no_gpu_emulates_bfloat16(monkeypatch):
    """GPUs before Ampere get float16; by default torch would report their emulated bfloat16 as supported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kind: asked.append(kind) or False)
    assert autocast.of_hardware() == "fp16"
    assert asked == [{"including_emulation": False}]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_processor_refuses_float16(tmp_path, recorded):
    """accelerate would train in float32, while a run of a GPU has views in float16."""
    if recorded:
        (tmp_path / "config.json").write_text(json.dumps({"recipe": "b", "config": {"autocast": "fp16"}}))
    with pytest.raises(UserError, match="precision: expected bf16 or no on a processor, found fp16"):
        make_accelerator("auto" if recorded else "fp16", tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"autocast": "bf16"}, "bf16"),
        ({"autocast": "no"}, "no"),
        ({"precision": "auto"}, "no"),  # an older run without this entry
        ({"autocast": "fp8"}, "no"),
    ],
)
def test_a_run_goes_on_as_it_began(processor, tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "barlow", "config": config}))
    for names in ((), ("avx512_bf16",)):
        processor(*names)
        assert autocast.taken("auto", tmp_path) == expected


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("bf16", "cuda:1", "bfloat16"),
        ("fp16", "cuda", "float16"),
        ("no", "cuda", "float32"),
        ("bf16", "cpu", "float32"),
    ],
)
def test_views_of_a_new_run_have_the_dtype_of_autocast_on_a_gpu(tmp_path, precision, device, expected):
    assert autocast.dtype_of_views(precision, device, tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"autocast": "bf16", "views": "bfloat16"}, "bfloat16"),
        ({"autocast": "bf16"}, "float32"),  # an older run without this entry
        ({"views": "int3"}, "float32"),
    ],
)
def test_views_of_a_run_stay_as_they_were(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "barlow", "config": config}))
    for device in ("cpu", "cuda"):
        assert autocast.dtype_of_views("fp16", device, tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"taken_backend": "stream"}, "auto", "stream"),
        ({"taken_backend": "stream"}, "cpu", "cpu"),
        ({"loader": {"backend": "resident"}}, "auto", "auto"),  # an older run without this entry
        ({"taken_backend": "tape"}, "auto", "auto"),
        (None, "auto", "auto"),
        (None, "hybrid", "hybrid"),
    ],
)
def test_the_backend_of_a_run_is_what_auto_stands_for(tmp_path, config, asked, expected):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps({"recipe": "barlow", "config": config}))
    assert autocast.backend_of(asked, Path("pack"), tmp_path / "none", tmp_path) == expected
    assert autocast.backend_of(asked, Path("s3:/bucket/pack"), tmp_path) == asked  # for a store


@pytest.mark.parametrize("text", ["", "[]", '{"config": 3}', "{}"])
def test_what_is_no_run_decides_nothing(processor, tmp_path, text):
    processor("amx_bf16")
    (tmp_path / "config.json").write_text(text)
    assert autocast.taken("auto", tmp_path) == "bf16"


@dataclass
class _Command:
    out: Path
    precision: str = "auto"
    device: str = "cpu"
    pack: Path = Path("pack")
    loader: LoaderOptions = field(default_factory=LoaderOptions)


def test_a_command_of_several_runs_goes_on_as_they_began(processor, tmp_path):
    processor()
    new = _Command(tmp_path)
    assert autocast.as_begun(new) == new
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))  # belongs to the command, not to a run
    assert autocast.as_begun(new) == new
    run = tmp_path / "grid" / "setting" / "seed-0"
    run.mkdir(parents=True)
    begun = {"autocast": "bf16", "taken_backend": "dali"}
    (run / "config.json").write_text(json.dumps({"config": begun}))
    expected = _Command(tmp_path, "bf16", loader=LoaderOptions(backend="dali"))
    assert autocast.as_begun(new) == expected
    assert autocast.as_begun(expected) == expected
    with pytest.raises(UserError, match=r"expected bf16, with which the runs in .*; give --precision bf16"):
        autocast.as_begun(_Command(tmp_path, "no"))
    assert autocast.as_begun(_Command(tmp_path / "other", "no")).precision == "no"
