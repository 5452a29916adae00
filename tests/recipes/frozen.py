"""Measure the quality of a run's frozen features quickly."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from engine.evaluate.knn import knn_scores
from engine.evaluate.representations import extract_features, topk_accuracy
from engine.nets.backbones import load_backbone
from loaders import LoaderOptions, build_loader
from loaders.packs import Pack
from loaders.views import presets
from tests.recipes.short_runs import RESOLUTION


def knn_top1(backbone: nn.Module, pack: Pack, out: Path, resolution: int = RESOLUTION) -> float:
    """Return the accuracy on the split `test` by the nearest neighbours in `train`."""
    features = []
    for split in ("train", "test"):
        policy = presets.evaluation(resolution)
        with build_loader(
            pack.split(split),
            (policy,),
            256,
            options=LoaderOptions(num_threads=1, channels_last=True),
            mode="eval",
        ) as loader:
            features.append(extract_features(backbone, loader, "cpu", out))
    train, test = features
    return topk_accuracy(knn_scores(train.h, train.labels, test.h, len(pack.classes)), test.labels)


def knn_top1_of_run(out: Path, pack: Pack, resolution: int = RESOLUTION) -> float:
    return knn_top1(load_backbone(out), pack, out, resolution)
