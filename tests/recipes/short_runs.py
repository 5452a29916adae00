"""Short runs of every self-supervised recipe, with the same configurations for one process and several."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from engine.train.loop import TrainSummary
from loaders import LoaderOptions

RESOLUTION = 16
SMALL: dict[str, dict[str, Any]] = {
    "rotnet": {
        "hidden": (16,),
        "flip_p": 0.0,
        "probe_every_epochs": 1,
        "probe_splits": ("train", "unlabeled"),
        "allow_leak": True,
    },
    "deepcluster": {"hidden": (16,), "num_clusters": 6, "pca_components": 8, "flip_p": 0.0},
    "jigsaw": {
        "resolution": 24,
        "tile_size": 7,
        "num_permutations": 6,
        "tile_features": 8,
        "hidden": (16,),
    },
    "patches": {"resolution": 24, "tile_size": 7, "hidden": (16,)},
    "simclr": {"projector": (16, 8), "flip_p": 0.0},
    "vicreg": {"projector": (16, 8), "flip_p": 0.0},
    "vae": {"num_latent": 8, "decoder_width": 4, "flip_p": 0.0},
    "colorization": {"head_width": 8, "lr": 1e-3},
    "dcgan": {
        "backbone": "gan_discriminator_8",
        "generator_width": 4,
        "noise_size": 16,
        "lr": 1e-3,
        "lr_generator": 1e-3,
        "flip_p": 0.0,
    },
    "siamese_vae": {"num_latent": 8, "decoder_width": 4, "flip_p": 0.0},
}
"""Options that make each recipe's run short: two epochs of two steps on 64 images."""


def run_short(name: str, pack: Path, out: Path, **changes: Any) -> TrainSummary:
    """Run a recipe for a few seconds; `changes` are fields of its Config."""
    recipe = import_module(f"recipes.{name}")
    shared = {
        "backbone": "test_resnet",
        "resolution": RESOLUTION,
        "epochs": 2,
        "batch_size": 32,
        "loader": LoaderOptions(num_threads=1),
        "precision": "no",
        "log_every": 1,
        "trackers": (),
        "progress": False,
    }
    config = recipe.Config(pack=pack, out=out, **{**shared, **SMALL[name], **changes})
    summary: TrainSummary = recipe.run(config)
    return summary
