"""Features of a start, computed once and stored, for the commands that compare images by features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from engine.evaluate.feature_store import FOLDER, features_of
from engine.evaluate.representations import Features
from engine.train.run_config import FrozenConfig, on_this_rank
from loaders import build_loader
from loaders.common.next_step import say_next
from loaders.epochs import EpochLoader
from loaders.packs import Split
from loaders.views.evaluation import EvaluationView


def frozen_features(
    config: FrozenConfig, network: nn.Module, view: EvaluationView, split: Split, folder: Path, out: Path
) -> Features:
    """Return the features of a split's images; every rank computes a part of them.

    Args:
        network: maps views to representations; on the device of this process.
        folder: folder whose subfolder `features` stores the features.
        out: folder for the list of images that could not be read.
    """
    options = on_this_rank(config.loader)

    def make(part: Split) -> EpochLoader:
        size = config.batch_size * options.num_ranks
        return build_loader(part, (view.policy(),), size, options=options, mode="eval")

    return features_of(network, split, make, torch.device(options.device), folder / FOLDER, out)


def say_next_of_start(config: FrozenConfig, start: Path, train_split: str, test_split: str) -> None:
    """Print the command that fine-tunes a measured start on the same pack, splits and resolution."""
    words: list[object] = ["--pack", config.pack, "--init", start]
    for option, value, usual in (
        ("--backbone", config.backbone, None),
        ("--resolution", config.resolution, None),
        ("--train-split", train_split, "train"),
        ("--test-split", test_split, "test"),
    ):
        words += [option, value] if value != usual else []
    say_next("recipes/transfer.py", *words, "--out", "runs/transfer")
