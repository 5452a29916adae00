"""What a recipe's command line says of damaged images, and how its run reports them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from engine.bad_rows import read_bad_rows
from engine.classifier_recipe import print_classifier
from engine.metrics import read_metrics
from engine.run_config import Loading
from loaders.errors import LoaderError
from loaders.packs import open_pack
from recipes import barlow, supervised
from tests.recipes.labelled import FEW


def test_damaged_images_of_training_and_test_are_reported(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(few_digits, tmp_path / "pack")
    pack = open_pack(tmp_path / "pack")
    trained, tested = int(pack.split("train").row_ranges[0][0]), int(pack.split("unlabeled").row_ranges[0][0])
    for row in (trained, tested):
        shard = pack.shard_path(int(pack.columns.shard[row]))
        content = bytearray(shard.read_bytes())
        content[int(pack.columns.offset[row]) + int(pack.columns.size[row]) - 3] ^= 1  # still decodes
        shard.write_bytes(content)
    few = FEW | {"batch_size": 32, "epochs": 2, "labels_per_class": None, "test_split": "unlabeled"}
    config = supervised.Config(pack=pack.path, out=tmp_path / "unseen", **few)
    assert supervised.run(config).train.num_bad_rows == 0
    config = replace(config, out=tmp_path / "run", loading=Loading(verify=True))
    summary = supervised.run(config)
    assert sorted(read_bad_rows(config.out)) == sorted((trained, tested))
    assert all("CRC-32" in reason for reason in read_bad_rows(config.out).values())
    assert read_metrics(config.out / "metrics.jsonl")[-1]["num_bad_rows"] == 1
    print_classifier("supervised", summary)
    assert f"2 bad rows in {config.out / 'bad_rows.jsonl'} -> " in capsys.readouterr().out
    strict = replace(config, out=tmp_path / "strict", loading=Loading(verify=True, bad_images="raise"))
    with pytest.raises(LoaderError, match="CRC-32"):
        supervised.run(strict)


def test_the_options_stand_on_the_command_line() -> None:
    options = ["--pack", "p", "--out", "o", "--verify", "--bad-images", "raise", "--timeout-s", "9"]
    config = tyro.cli(barlow.Config, args=[*options, "--window", "3", "--on-non-finite", "skip"])
    assert config.loading == Loading(verify=True, bad_images="raise", timeout_s=9.0, window=3)
    assert config.loop_config().on_non_finite == "skip"
