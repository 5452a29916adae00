"""Runs of all recipes for a few steps; as a program, run by each process of a launcher.

`two_processes.py "with labels" PACK OUT` and `two_processes.py "without labels" PACK OUT` train every recipe
of that kind into OUT/<name>, in one process group.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from engine.nets.backbones import build_backbone
from engine.train.distributed import on_main, seed_everything
from engine.train.run_folder import save_backbone
from loaders import LoaderOptions, open_pack
from recipes import (
    barlow,
    fixmatch,
    mean_teacher,
    pseudo_label,
    self_training,
    ssl_gan,
    supervised,
    temporal_ensembling,
    transfer,
)
from tests.recipes.labelled import FEW
from tests.recipes.short_runs import SMALL, run_short

ROOT = Path(__file__).parents[2]


def small_runs(pack: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Return short runs of every recipe with labels, by folder name, which begins with the recipe's name."""

    def options(name: str, **more: Any) -> dict[str, Any]:
        return {**FEW, "pack": pack, "out": out / name, "max_steps": 3, **more}

    def phases(name: str, **more: Any) -> dict[str, Any]:
        return {**FEW, "pack": pack, "out": out / name, "lr": 0.001, "epochs": 1, "first_epochs": 1, **more}

    paired: dict[str, Any] = {"unlabeled_splits": ("train",), "mu": 3}
    tiny = {"backbone": "tiny_resnet"}  # no guess of this network depends on the order of sums
    cycle: dict[str, Any] = {"cycles": 1, "batch_size": 100, "threshold": 0.0}
    return {
        "fixmatch": lambda: fixmatch.run(
            fixmatch.Config(**options("fixmatch", threshold=0.1, **tiny, **paired))
        ),
        "fixmatch_adaptive": lambda: fixmatch.run(
            fixmatch.Config(
                **options("fixmatch_adaptive", guesses="average", adaptive_threshold=True, **tiny, **paired),
            )
        ),
        "fixmatch_apart": lambda: fixmatch.run(
            fixmatch.Config(
                **options("fixmatch_apart", threshold=0.1, guesses="apart", align=True, **tiny, **paired),
            )
        ),
        "mean_teacher": lambda: mean_teacher.run(
            mean_teacher.Config(**options("mean_teacher", **paired, ramp_epochs=0.0))
        ),
        "temporal_ensembling": lambda: temporal_ensembling.run(
            temporal_ensembling.Config(
                **(
                    options("temporal_ensembling", **paired)
                    | {"ramp_epochs": 0.0, "lr": 1e-3, "max_steps": 5}
                )
            )
        ),
        "pseudo_label_classical": lambda: pseudo_label.run_classical(
            pseudo_label.Config(**options("pseudo_label_classical", threshold=0.1, mu=3)),
            open_pack(pack),
        ),
        "pseudo_label_permanent": lambda: pseudo_label.run_cycles(
            pseudo_label.Config(**phases("pseudo_label_permanent", mode="permanent", **cycle)),
            open_pack(pack),
        ),
        "pseudo_label_local": lambda: pseudo_label.run_cycles(
            pseudo_label.Config(**phases("pseudo_label_local", mode="local", steps=2, **cycle)),
            open_pack(pack),
        ),
        "self_training": lambda: self_training.run(
            self_training.Config(**phases("self_training", per_class=(9,), true_epochs=2))
        ),
        # No dropout, which draws other numbers on another number of ranks.
        "ssl_gan": lambda: ssl_gan.run(
            ssl_gan.Config(
                **options(
                    "ssl_gan",
                    backbone="gan_discriminator_8",
                    lr=1e-3,
                    generator_width=4,
                    dropout=0.0,
                    **paired,
                )
            )
        ),
        "transfer": lambda: transfer_two_ways(pack, out),
        "supervised_mixup": lambda: supervised.run(
            supervised.Config(**options("supervised_mixup", mixing="mixup"))
        ),
        "supervised_validated": lambda: supervised.run(
            supervised.Config(
                **options("supervised_validated", balanced=True, validate_every=3),
                validation_share=0.5,
                keep="best",
                ema_decay=0.9,
            )
        ),
        "supervised_cutmix": lambda: supervised.run(
            supervised.Config(**options("supervised_cutmix", mixing="cutmix"))
        ),
    }


def transfer_two_ways(pack: Path, out: Path) -> None:
    """Run transfer in two stages with early stopping, and by neighbours, from untrained weights."""
    init = out / "start"

    def start() -> None:
        if not init.is_dir():
            seed_everything(7)
            init.mkdir(parents=True)
            backbone = build_backbone("test_resnet", 16)
            save_backbone(init, backbone, {"backbone": "test_resnet", "resolution": "16"})

    on_main(start)
    tuning = transfer.FineTuning(0.01, 0.1, "batch", steps=4)
    options: dict[str, Any] = {"pack": pack, "init": init, "labels_per_class": (4,), "seeds": (0,)}
    options |= {
        "flip_p": 0.0,
        "precision": "no",
        "loader": LoaderOptions(num_threads=1),
        "beside_scratch": False,
        "pretrained": tuning,
    }
    early: dict[str, Any] = {"validation_share": 0.1, "patience": 2, "validate_every": 2, "head_steps": 2}
    stages = transfer.Config(out=out / "transfer", method="two_stage", hidden=(8,), **early, **options)
    transfer.run(stages)
    transfer.run(transfer.Config(out=out / "transfer" / "neighbours", method="knn", **options))


def barlow_config(pack: Path, out: Path) -> barlow.Config:
    """Return the configuration of a run of two epochs with a few steps."""
    return barlow.Config(
        pack=pack, out=out, backbone="test_resnet", resolution=32, epochs=2, batch_size=16,
        projector=(32, 32, 16), warmup_epochs=0.5, loader=LoaderOptions(num_threads=1), log_every=1,
        trackers=(), progress=False, precision="no",
    )  # fmt: skip


def barlow_command(config: barlow.Config, *more: str) -> list[str]:
    """Return the command line of a configuration, starting with the script."""
    defaults = vars(barlow.Config(pack=Path(), out=Path()))
    fields = {name: value for name, value in vars(config).items() if value != defaults.get(name)}
    for name in ("progress", "trackers", "loader"):
        fields.pop(name)
    arguments = [str(ROOT / "recipes/barlow.py"), "--trackers", "--no-progress", "--num-threads", "1"]
    for name, value in fields.items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*arguments, *more]


def main() -> None:
    """Train all runs in one process group, which the first run creates."""
    gc.freeze()  # see tests/conftest.py
    Accelerator.end_training = lambda self: None  # type: ignore[method-assign]
    torch.set_num_threads(1)
    pack, out = map(Path, sys.argv[2:])
    if sys.argv[1] == "with labels":
        for run in small_runs(pack, out).values():
            run()
    else:
        for name in SMALL:
            run_short(name, pack, out / name)
        barlow.run(barlow_config(pack, out / "barlow"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
