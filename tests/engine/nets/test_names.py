"""Names of networks are checked against timm's files, without importing timm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm

from engine.nets.names import OURS, check_mentioned, check_start
from loaders.common.errors import UserError

OLD = "tv_resnet34"  # timm still accepts this name but no longer lists it


def test_every_name_of_timm_passes() -> None:
    assert timm.is_model(OLD)
    assert OLD not in timm.list_models()
    for name in [*OURS, "gan_discriminator_8", OLD, *timm.list_models(), *timm.list_pretrained()]:
        check_mentioned(name)


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnt50", "resnet50"), ("resnt50.a1_in1k", "resnet50"), ("tiny_resnt", "tiny_resnet")],
)
def test_another_is_refused_with_the_closest(name: str, close: str) -> None:
    with pytest.raises(UserError, match=f"backbone: expected .*, found '{name}'; close matches: .*{close}"):
        check_mentioned(name)


def test_nothing_close_and_no_name() -> None:
    for name in ("", "???", ".a1_in1k"):
        with pytest.raises(UserError, match="list_models"):
            check_mentioned(name)


def test_a_start_of_timm_is_a_name_too() -> None:
    with pytest.raises(
        UserError, match="init: expected a timm name, found 'resnt18'; close matches: resnet18"
    ):
        check_start(Path("timm:resnt18"), "init")
    check_start(Path("timm:resnet18.a1_in1k"), "init")


def test_a_backbone_alone_is_no_classifier(tmp_path: Path) -> None:
    (tmp_path / "backbone.safetensors").touch()
    check_start(tmp_path, "run")
    with pytest.raises(
        UserError, match=r"classifier: expected one in .*, found none; train with labels first"
    ):
        check_start(tmp_path, "run", classifier=True)
    (tmp_path / "classifier-ema.safetensors").touch()
    check_start(tmp_path, "run", classifier=True)


def test_neither_torch_nor_timm_is_imported() -> None:
    code = (
        "import sys; from engine.nets.names import check_mentioned; check_mentioned('resnet50'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
