"""Presets change only defaults; options that are given take precedence, and one line reports the result."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engine import device
from engine.train import presets
from engine.train.presets import CPU_IMAGES, describe
from engine.train.run_config import described
from loaders.common.errors import UserError
from loaders.common.program import command_line, with_defaults
from loaders.packs import Pack, open_pack

RECIPES = (
    *("barlow", "simclr", "vicreg", "rotnet", "jigsaw", "patches", "vae", "siamese_vae", "deepcluster"),
    *(
        "colorization",
        "dcgan",
        "temporal_ensembling",
        "supervised",
        "mean_teacher",
        "fixmatch",
        "pseudo_label",
        "self_training",
        "ssl_gan",
        "pipeline",
    ),
)


@pytest.fixture
def read(digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def parse(recipe: str, *words: str) -> Any:
        options = ["--pack", str(digits_pack.path), "--out", str(tmp_path / "run"), *words]
        monkeypatch.setattr("sys.argv", [recipe, *options])
        return command_line(import_module(f"recipes.{recipe}").Config, None)

    return parse


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_settings_for_a_processor(read: Any, recipe: str) -> None:
    paper, cpu = read(recipe), read(recipe, "--preset", "cpu")
    assert type(cpu) is type(paper), "of the recipe itself, whatever its defaults were"
    assert (paper.preset, cpu.preset) == ("paper", "cpu")
    assert cpu.backbone == ("gan_discriminator_32" if recipe in ("ssl_gan", "dcgan") else "tiny_resnet")
    assert cpu.resolution == (96 if recipe in ("jigsaw", "patches") else 32)
    for field in fields(cpu):
        if field.name in ("projector", "hidden"):
            assert max(getattr(cpu, field.name)) <= 512
        if field.name in ("warmup_epochs", "ramp_epochs", "ramp_down_epochs"):
            assert getattr(cpu, field.name) <= 0.3 * cpu.epochs + 1e-9
        if field.name in ("epochs", "batch_size"):
            assert getattr(cpu, field.name) <= getattr(paper, field.name)


def test_what_is_given_counts_and_the_line_says_so(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = read("barlow", "--preset", "cpu", "--epochs", "5", "--backbone", "resnet18")
    assert (given.backbone, given.epochs, given.resolution) == ("resnet18", 5, 32)
    assert given.warmup_epochs == 0.5, "it follows the length that was given"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "preset cpu: resolution 32, projector 512 512 512, batch_size 128, warmup_epochs 0.5"
    )
    assert line.endswith("; given: backbone resnet18, epochs 5")
    inside = read("pipeline", "--preset", "cpu", "--pretrain.epochs", "3")
    assert (inside.pretrain.epochs, inside.pretrain.projector) == (3, (512, 512, 512))
    assert inside.sizes[0] == inside.resolution == 32


@pytest.mark.parametrize("recipe", ["jigsaw", "patches"])
def test_tiles_of_a_preset_fit_a_resolution_that_is_given(read: Any, recipe: str) -> None:
    assert read(recipe, "--preset", "cpu", "--resolution", "96").tile_size == 28
    with pytest.raises(UserError, match=r"tile_size: expected 1 to 32, .*found 40"):
        read(recipe, "--preset", "cpu", "--resolution", "96", "--tile-size", "40").check_places()
    with pytest.raises(UserError, match="tile_size: expected 1 to 32"):
        read(recipe, "--resolution", "96", "--tile-size", "40")


def test_config_json_has_plain_values(read: Any) -> None:
    kept = described(read("supervised", "--preset", "cpu", "--epochs", "7"))
    shown = {name: kept[name] for name in ("preset", "backbone", "resolution", "batch_size", "epochs")}
    assert shown == {
        "preset": "cpu", "backbone": "tiny_resnet", "resolution": 32, "batch_size": 128, "epochs": 7,
    }  # fmt: skip


def test_the_length_follows_the_images(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read("barlow", "--preset", "cpu")
    images = len(open_pack(config.pack).split("unlabeled"))
    assert config.epochs == CPU_IMAGES // images
    assert read("supervised", "--preset", "cpu").epochs == 90, "not longer than the paper's"
    monkeypatch.setattr(presets, "CPU_IMAGES", 10 * images)
    assert read("supervised", "--preset", "cpu").epochs == 10
    assert read("supervised", "--preset", "cpu", "--labels-per-class", "4").epochs == min(90, images // 4)
    # An epoch of FixMatch is a pass over the unlabelled images, however few labels there are.
    for few in ((), ("--labels-per-class", "4")):
        for epochs in (
            read("fixmatch", "--preset", "cpu", *few).epochs,
            read("pipeline", "--preset", "cpu", *few).fixmatch.epochs,
        ):
            assert epochs == 2, "10 passes over a split are 2.1 over two splits, in 2 1/3 views an image"


@pytest.mark.parametrize("found", [True, False])
def test_auto_looks_for_a_gpu(
    read: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: bool
) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: found)
    config = read("vicreg", "--preset", "auto")
    assert (config.preset, config.backbone) == (("paper", "resnet50") if found else ("cpu", "tiny_resnet"))
    said = capsys.readouterr().err
    assert said.startswith(
        "preset paper, the machine's: the paper's settings" if found else "preset cpu, the"
    )
    assert read("simclr", "--preset", "auto", "--device", "cpu").preset == "cpu"


def test_a_resume_and_a_start_read_what_the_run_had(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    for name in ("run", "before"):
        (tmp_path / name).mkdir()
        content = {"recipe": "barlow", "config": {"preset": "cpu", "backbone": "wrn_28_2", "resolution": 24}}
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    assert read("barlow", "--preset", "auto", "--resume").preset == "cpu"
    begun = read("supervised", "--preset", "cpu", "--init", str(tmp_path / "before"))
    assert (begun.backbone, begun.resolution) == ("wrn_28_2", 24)
    foreign = read("supervised", "--preset", "cpu", "--init", "timm:resnet18", "--backbone", "resnet18")
    assert (foreign.backbone, foreign.resolution) == ("resnet18", 224), "the user names the network of others"


def test_the_paper_is_silent_and_the_default(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert read("simclr", "--preset", "paper") == read("simclr")
    assert capsys.readouterr().err == ""
    config = read("simclr")
    assert "epochs 100" in describe(config, "cpu", {"epochs": 100})
    changed = with_defaults(type(config), {"temperature": 0.5})
    assert changed(pack=config.pack, out=config.out).temperature == 0.5
