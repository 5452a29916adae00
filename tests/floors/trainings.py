"""The trainings whose results have floors: each takes packs, a folder and a seed, and returns its figures.

The tests run each training once, with seed 0; `tests/floors/measure.py` runs them over seeds and code
paths of the processor. Both read the floors in `tests/floors/table.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.nets.backbones import build_backbone
from engine.train.classifier_recipe import read_accuracy
from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from engine.train.run_folder import opened_run, save_backbone
from loaders import LoaderOptions
from loaders.packs import LabelTable, Pack
from recipes import (
    active,
    barlow,
    fixmatch,
    mean_teacher,
    pipeline,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    transfer,
)
from tests.floors.data import Data
from tests.recipes.clusters import NUM_LABELED, NUM_UNLABELED, accuracy_on_clusters
from tests.recipes.frozen import knn_top1_of_run
from tests.recipes.labelled import FEW
from tests.recipes.short_runs import SMALL, run_short
from tools import probe

Figures = dict[str, float]


def _mean_of_last(out: Path, name: str, steps: int = 8) -> float:
    last = read_metrics(out / "metrics.jsonl")[-steps:]
    return sum(record[name] for record in last) / len(last)


def _short(name: str, data: Data, out: Path, seed: int, **changes: Any) -> float:
    """Run a self-supervised recipe; return the kNN accuracy of its features."""
    default = "tiny_resnet" if name in _NEEDS_WIDTH else "test_resnet"
    backbone = SMALL[name].get("backbone", default)
    run_short(name, data.digits.path, out, **{"backbone": backbone, "seed": seed, **changes})
    return knn_top1_of_run(out, data.digits, changes.get("resolution", _RESOLUTION.get(name, 16)))


_NEEDS_WIDTH = ("simclr", "deepcluster", "vae")  # to learn much in few steps
_RESOLUTION = {"jigsaw": 24, "patches": 24}


def barlow_twins(data: Data, out: Path, seed: int) -> Figures:
    config = barlow.Config(
        pack=data.digits.path,
        out=out,
        backbone="test_resnet",
        resolution=16,
        epochs=2,
        batch_size=64,
        projector=(64, 64),
        warmup_epochs=0.5,
        min_crop=0.5,
        flip_p=0.0,
        max_sigma=0.5,
        lr_weights=4.0,
        lr_vectors=0.1,
        seed=seed,
        loader=LoaderOptions(num_threads=1),
        precision="no",
        log_every=1,
        trackers=(),
        progress=False,
    )
    barlow.run(config)
    # For comparison: the invariance term between views of different images is 64.
    return {"invariance": _mean_of_last(out, "invariance"), "knn": knn_top1_of_run(out, data.digits)}


def simclr(data: Data, out: Path, seed: int) -> Figures:
    changes = {"projector": (64, 32), "min_crop": 0.5, "warmup_epochs": 0.3, "lr": 4.0, "color_strength": 0.3}
    knn = _short("simclr", data, out, seed, epochs=2, batch_size=64, **changes)
    return {"contrast_top1": _mean_of_last(out, "contrast_top1"), "knn": knn}


def vicreg(data: Data, out: Path, seed: int) -> Figures:
    changes = {"projector": (64, 64), "min_crop": 0.5, "warmup_epochs": 0.3, "lr": 4.0, "max_sigma": 0.5}
    knn = _short("vicreg", data, out, seed, epochs=2, batch_size=64, **changes)
    records = read_metrics(out / "metrics.jsonl")
    return {"variance_left": records[-1]["variance"] / records[0]["variance"], "knn": knn}


def rotnet(data: Data, out: Path, seed: int) -> Figures:
    changes = {"hidden": (), "probe_every_epochs": 0, "batch_size": 64, "min_crop": 0.5, "lr": 0.03}
    knn = _short("rotnet", data, out, seed, epochs=2, **changes)
    return {"rotation_top1": _mean_of_last(out, "rotation_top1"), "knn": knn}


def jigsaw(data: Data, out: Path, seed: int) -> Figures:
    changes = {"tile_size": 8, "tile_features": 16, "hidden": (64,), "min_crop": 0.8, "lr": 0.02}
    knn = _short("jigsaw", data, out, seed, epochs=1, **changes)
    return {"permutation_top1": _mean_of_last(out, "permutation_top1"), "knn": knn}


def patches(data: Data, out: Path, seed: int) -> Figures:
    changes = {"tile_size": 8, "hidden": (64,), "lr": 0.03, "min_crop": 0.8}
    knn = _short("patches", data, out, seed, epochs=2, **changes)
    return {"position_top1": _mean_of_last(out, "position_top1"), "knn": knn}


def _vae(data: Data, out: Path, seed: int, beta: float) -> Figures:
    changes = {"num_latent": 32, "decoder_width": 8, "beta": beta, "lr": 0.003}
    knn = _short("vae", data, out, seed, epochs=2, **changes)
    # For comparison: above 500 in the first step; 359 if every image is reconstructed as the mean image.
    return {"reconstruction": _mean_of_last(out, "reconstruction"), "knn": knn}


def vae(data: Data, out: Path, seed: int) -> Figures:
    return _vae(data, out, seed, beta=1.0)


def autoencoder(data: Data, out: Path, seed: int) -> Figures:
    return _vae(data, out, seed, beta=0.0)


def siamese_vae(data: Data, out: Path, seed: int) -> Figures:
    changes = {"num_latent": 32, "decoder_width": 8, "min_crop": 0.5}
    knn = _short("siamese_vae", data, out, seed, epochs=2, **changes)
    # At first 0.75 of the triplets are ordered and the triplet loss is 0.3; with collapsed means it is 0.5.
    names = ("triplets_ordered", "triplet")
    return {name: _mean_of_last(out, name) for name in names} | {"knn": knn}


def deepcluster(data: Data, out: Path, seed: int) -> Figures:
    changes = {"hidden": (), "num_clusters": 40, "pca_components": 32, "min_crop": 0.5}
    knn = _short("deepcluster", data, out, seed, epochs=2, **changes)
    return {"cluster_top1": _mean_of_last(out, "cluster_top1"), "knn": knn}  # 0.025 by chance


def supervised_digits(data: Data, out: Path, seed: int) -> Figures:
    few = FEW | {"min_crop": 0.6, "labels_per_class": 10, "epochs": 25, "seed": seed}
    return {"top1": _top1(supervised.run(supervised.Config(pack=data.digits.path, out=out, **few)))}


def _top1(summary: Any) -> float:
    return float(summary.accuracy.top1)


def untrained_run(folder: Path, resolution: int, seed: int, backbone: str = "test_resnet") -> Path:
    """Write the run folder of an untrained network."""
    fields = {"backbone": backbone, "resolution": resolution}
    with opened_run(folder, "barlow", fields, (), resume=False):
        pass
    seed_everything(seed)
    network = build_backbone(backbone, resolution)
    save_backbone(folder, network, {name: str(value) for name, value in fields.items()})
    return folder


def _transfer(data: Data, out: Path, seed: int, **changes: Any) -> transfer.FewLabelResult:
    init = untrained_run(out / "untrained", 32, 7 + seed)
    few = {"labels_per_class": (10,), "seeds": (seed,), "beside_scratch": False, "flip_p": 0.0}
    fixed: dict[str, Any] = {"precision": "no", "loader": LoaderOptions(num_threads=1)}
    config = transfer.Config(pack=data.digits.path, init=init, out=out / "runs", **few, **fixed, **changes)
    (result,) = transfer.run(config)
    return result


def fine_tuning(data: Data, out: Path, seed: int) -> Figures:
    rates = {"lr_backbone": 0.05, "lr_classifier": 0.05, "batchnorm": "batch"}
    tuning = transfer.FineTuning(**rates, steps=40, min_crop=0.6)
    return {"top1": _transfer(data, out, seed, pretrained=tuning).top1}


def votes(data: Data, out: Path, seed: int) -> Figures:
    result = _transfer(data, out, seed, method="knn")
    assert result.top5 is not None
    return {"top1": result.top1, "top5": result.top5}  # by chance: 0.1 and 0.5


def frozen_probe(data: Data, out: Path, seed: int) -> Figures:
    run = untrained_run(out, 32, 3 + seed)
    rows = probe.evaluate(
        probe.Config(run=run, pack=data.digits.path, loader=LoaderOptions(num_threads=1))
    ).rows
    return {"linear_top1": rows[0].linear_top1}


def mean_teacher_config(data: Data, out: Path, seed: int = 0) -> mean_teacher.Config:
    return mean_teacher.Config(
        pack=data.digits.path,
        out=out,
        unlabeled_splits=("train",),
        ramp_epochs=1.0,
        ema_decay_early=0.8,
        ema_decay=0.9,
        consistency_weight=30.0,
        min_crop=0.6,
        **(FEW | {"seed": seed}),
    )


def mean_teacher_digits(data: Data, out: Path, seed: int) -> Figures:
    return {"top1": _top1(mean_teacher.run(replace(mean_teacher_config(data, out, seed), epochs=2)))}


def mean_teacher_clusters(data: Data, out: Path, seed: int) -> Figures:
    """Views keep the coordinate that separates the clusters and redraw all others, so agreement is easy."""

    def redrawn(x: torch.Tensor) -> torch.Tensor:
        view = torch.randn_like(x)
        view[:, 0] = x[:, 0]
        return view

    rows_per_label = 1 + NUM_UNLABELED / NUM_LABELED  # as the class loss is divided by all rows

    def accuracy(weight: float) -> float:
        changed = replace(mean_teacher_config(data, out), consistency_weight=weight / rows_per_label)
        return accuracy_on_clusters(
            lambda: mean_teacher.MeanTeacher(changed, "ab"),
            lambda x: (x, x),
            lambda x: (redrawn(x), redrawn(x)),
            seed,
            lr=0.05 * rows_per_label,
        )

    return {"labels_alone": accuracy(0.0), "top1": accuracy(10.0)}


def fixmatch_config(data: Data, out: Path, seed: int = 0) -> fixmatch.Config:
    return fixmatch.Config(
        pack=data.digits.path,
        out=out,
        unlabeled_splits=("train",),
        mu=3,
        ema_decay=0.9,
        strong="gentle",
        **(FEW | {"seed": seed}),
    )


def fixmatch_digits(data: Data, out: Path, seed: int) -> Figures:
    top1 = _top1(fixmatch.run(replace(fixmatch_config(data, out, seed), epochs=2)))
    records = read_metrics(out / "metrics.jsonl")
    return {"top1": top1, "mask_rate_gain": records[-1]["mask_rate"] - records[0]["mask_rate"]}


def fixmatch_clusters(data: Data, out: Path, seed: int) -> Figures:
    def accuracy(weight: float) -> float:
        changed = replace(fixmatch_config(data, out), threshold=0.8, unlabeled_weight=weight)
        return accuracy_on_clusters(
            lambda: fixmatch.FixMatch(changed, "ab"),
            lambda x: (x,),
            lambda x: (x, x * torch.randint(2, x.shape)),
            seed,
        )

    return {"labels_alone": accuracy(0.0), "top1": accuracy(3.0)}


def pseudo_label_config(data: Data, out: Path, seed: int = 0) -> pseudo_label.Config:
    few = FEW | {"lr": 0.01, "labels_per_class": 10, "batch_size": 50, "epochs": 2, "seed": seed}
    return pseudo_label.Config(
        pack=data.digits.path, out=out, threshold=0.9, cycles=2, first_epochs=50, **few
    )


def pseudo_label_classical(data: Data, out: Path, seed: int) -> Figures:
    config = replace(pseudo_label_config(data, out, seed), mu=3, batch_size=20, epochs=2, ramp_end=1.0)
    config = replace(config, backbone="tiny_resnet")
    top1 = _top1(pseudo_label.run_classical(config, data.digits))
    records = read_metrics(out / "metrics.jsonl")
    return {"top1": top1, "mask_rate_gain": records[-1]["mask_rate"] - records[0]["mask_rate"]}


def pseudo_label_clusters(data: Data, out: Path, seed: int) -> Figures:
    guessing = replace(pseudo_label_config(data, out), unlabeled_weight=3.0, ramp_end=5.0)

    def accuracy(weight: float) -> float:
        config = replace(guessing, unlabeled_weight=weight)
        return accuracy_on_clusters(
            lambda: pseudo_label.Classical(config, "ab"), lambda x: (x,), lambda x: (x,), seed
        )

    return {"labels_alone": accuracy(0.0), "top1": accuracy(3.0)}


def pseudo_label_local(data: Data, out: Path, seed: int) -> Figures:
    """Start from a classifier of the same labels, since the first guesses must be good enough to learn."""
    begun = {"mode": "local", "cycles": 1, "init": data.trained(seed), "keep_head": True, "batch_size": 25}
    config = replace(pseudo_label_config(data, out, seed), **begun, first_epochs=10, epochs=3)
    done = pseudo_label.run_cycles(config, data.digits)
    table = LabelTable.read(next((out / "labels").iterdir()))
    return {
        "least_top1": min(phase.accuracy.top1 for phase in done[1:] if phase.accuracy),
        "right_guesses": _share_of_right(table, data.digits),
    }


def _share_of_right(table: LabelTable, pack: Pack) -> float:
    return float((table.label == pack.labels.dense(len(pack))[table.row]).mean())


def self_training_config(data: Data, out: Path, seed: int = 0) -> self_training.Config:
    few = FEW | {"lr": 0.05, "labels_per_class": 10, "batch_size": 50, "epochs": 2, "seed": seed}
    return self_training.Config(
        pack=data.digits.path,
        out=out,
        top_k=3,
        per_class=(40, 120),
        first_epochs=30,
        true_epochs=15,
        min_crop=0.6,
        **few,
    )


def self_training_round(data: Data, out: Path, seed: int) -> Figures:
    """Run one round of self-training, from five labels per class."""
    config = replace(self_training_config(data, out, seed), labels_per_class=5, per_class=(120,))
    start, pseudo, last = (_top1(phase) for phase in self_training.run(config))
    table = LabelTable.read(out / "labels" / "round-1.parquet")
    right = _share_of_right(table, data.digits)
    return {"pseudo_top1": pseudo, "top1": last, "gain": last - start, "right_guesses": right}


def ssl_gan_config(data: Data, out: Path, seed: int = 0) -> ssl_gan.Config:
    few = {"backbone": "gan_discriminator_16", "lr": 3e-3, "labels_per_class": 10, "epochs": 2, "seed": seed}
    return ssl_gan.Config(
        pack=data.digits.path,
        out=out,
        unlabeled_splits=("train",),
        mu=2,
        noise_size=16,
        generator_width=8,
        dropout=0.1,
        lr_generator=1e-3,
        ema_decay=0.9,
        **(FEW | few),
    )


def gan(data: Data, out: Path, seed: int) -> Figures:
    top1 = _top1(ssl_gan.run(ssl_gan_config(data, out, seed)))
    last = read_metrics(out / "metrics.jsonl")[-1]
    return {"top1": top1, "told_apart": last["p_real"] - last["p_generated"]}


def active_config(data: Data, out: Path, seed: int = 0) -> active.Config:
    return active.Config(
        pack=data.digits.path,
        out=out,
        run=data.trained(seed),
        unlabeled_splits=("train",),
        labels_per_class=10,
        clusters=8,
        per_cluster=5,
        loader=LoaderOptions(num_threads=1),
    )


def active_choice(data: Data, out: Path, seed: int) -> Figures:
    config, pack = active_config(data, out, seed), data.digits
    margin = active.choose(config, pack).margin.mean()
    average = active.choose(replace(config, strategy="random", per_cluster=40), pack).margin.mean()
    least = active.choose(replace(config, strategy="margin"), pack)
    wrong = pack.labels.dense(len(pack))[least.row] != least.guess
    return {"margin_to_average": float(margin / average), "wrong_guesses": float(np.mean(wrong))}


def small_chain(data: Data, out: Path, seed: int = 0) -> pipeline.Config:
    return pipeline.Config(
        pack=data.small(),
        out=out,
        backbone="test_resnet",
        resolution=16,
        labels_per_class=5,
        flip_p=0.0,
        oracle=True,
        sizes=(16, 24),
        pretrain=pipeline.Pretrain(1, batch_size=100, projector=(64, 64), min_crop=0.4, warmup_epochs=0.2),
        fine_tune=pipeline.FineTune(epochs=16, batch_size=25, min_crop=0.6, classifier_start="random"),
        rounds=pipeline.Rounds(per_class=(15,), top_k=3, epochs=4, true_epochs=5),
        fixmatch=pipeline.SemiSupervised(
            epochs=3, lr=0.01, batch_size=25, mu=3, ema_decay=0.5, strong="gentle", pseudo_per_class=5
        ),
        ask=pipeline.Ask(clusters=10, per_cluster=3),
        seed=seed,
        precision="no",
        loader=LoaderOptions(num_threads=1),
        progress=False,
    )


def chain(data: Data, out: Path, seed: int) -> Figures:
    return chain_figures(out, pipeline.run(small_chain(data, out, seed)))


def chain_figures(out: Path, measured: list[pipeline.Measured]) -> Figures:
    """Return the accuracy of each stage, and that of the round before fine-tuning on true labels."""
    top1 = {row.stage: row.top1 for row in measured}
    figures = {f"top1_{stage}": value for stage, value in top1.items()}
    figures["top1_pseudo"] = read_accuracy(out / "rounds" / "round-1-pseudo")["raw"].top1
    return figures


TRAININGS: dict[str, Callable[[Data, Path, int], Figures]] = {
    function.__name__: function
    for function in (
        *(
            chain,
            self_training_round,
            barlow_twins,
            simclr,
            vicreg,
            rotnet,
            jigsaw,
            patches,
            vae,
            autoencoder,
        ),
        *(siamese_vae, deepcluster, supervised_digits, fine_tuning, votes, frozen_probe),
        *(mean_teacher_digits, mean_teacher_clusters, fixmatch_digits, fixmatch_clusters),
        *(pseudo_label_classical, pseudo_label_clusters, pseudo_label_local, gan, active_choice),
    )
}
"""All trainings, by the name that the table of floors uses."""
