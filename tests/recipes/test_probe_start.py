"""Fine-tuning does not end below the linear probe of its start: on digits, CIFAR-10 and a drawn set."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.choices import Keep
from engine.evaluate.few_labels import FewLabelResult, say_next_step
from engine.evaluate.linear_probe import fit_linear_probe
from engine.evaluate.representations import extract_features, topk_accuracy
from engine.nets.backbones import load_backbone
from engine.nets.classifier import find_classifier
from engine.train.metrics import read_metrics
from engine.train.probe_start import PENALTY
from engine.train.run import plan_validation
from engine.train.run_config import described
from loaders import LoaderOptions, build_loader
from loaders.classification import SemiLoaders
from loaders.common.errors import UserError
from loaders.packs import Pack, Split, open_pack
from loaders.packs.labels.subsample import subsample_per_class
from loaders.packs.labels.validation import apart
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views import presets
from loaders.views.evaluation import EvaluationView
from recipes import fixmatch, supervised, transfer
from tests.floors.trainings import untrained_run
from tests.recipes.labelled import FEW

CIFAR = [file for up in (2, 3) for file in Path(__file__).parents[up].glob("shared/data/cifar10.tar")]
RESOLUTION = 16
RUINOUS = {"lr_backbone": 20.0, "lr_classifier": 20.0, "steps": 4}
GENTLE = {"steps": 8}
EVERY = 4  # steps between validations


def pack_of(folder: Path, train: Path, test: Path) -> Pack:
    splits = parse_splits([f"train={train}", f"test={test}"])
    pack_dataset(PackOptions(splits, folder / "pack", workers=1))
    return open_pack(folder / "pack")


def cifar(folder: Path, little_pack: Pack) -> Pack:
    """Pack 900 training and 100 test images of each class, 10,000 in all."""
    if not CIFAR:
        pytest.skip("no shared/data/cifar10.tar here")
    wanted, taken = {"train": 900, "test": 100}, Counter[tuple[str, str]]()
    with ExitStack() as opened:
        whole = opened.enter_context(tarfile.open(CIFAR[0]))
        parts = {name: opened.enter_context(tarfile.open(folder / f"{name}.tar", "w")) for name in wanted}
        for member in whole:
            names = Path(member.name).parts
            if len(names) < 4 or taken[names[1], names[2]] >= wanted.get(names[1], 0):
                continue
            taken[names[1], names[2]] += 1
            member.name = "/".join(names[2:])
            parts[names[1]].addfile(member, whole.extractfile(member))
    pack = pack_of(folder, folder / "train.tar", folder / "test.tar")
    assert len(pack) == 10_000
    return pack


def drawn(folder: Path, little_pack: Pack) -> Pack:
    """Draw and pack images of 100 classes, each a pattern of 4 x 4 colours with noise."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 6), ("test", 3)):
        with tarfile.open(folder / f"{split}.tar", "w") as out:
            for label in range(100):
                pattern = np.random.default_rng(label).uniform(60, 196, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
                for place in range(number):
                    pixels = np.clip(pattern + generator.normal(0, 40, pattern.shape), 0, 255)
                    data = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
                    member = tarfile.TarInfo(f"class-{label:02d}/{place}.png")
                    member.size = data.tell()
                    data.seek(0)
                    out.addfile(member, data)
    return pack_of(folder, folder / "train.tar", folder / "test.tar")


SETS: dict[str, Callable[[Path, Pack], Pack]] = {
    "digits": lambda folder, little_pack: little_pack,
    "cifar10": cifar,
    "drawn": drawn,
}


@pytest.fixture(scope="module", params=SETS)
def config(request: Any, little_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> transfer.Config:
    """Default settings, with five labels per class of a data set, and an untrained network as start."""
    folder = tmp_path_factory.mktemp(request.param)
    pack = SETS[request.param](folder, little_pack)
    return transfer.Config(
        pack=pack.path,
        init=untrained_run(folder / "start", RESOLUTION, 3, "tiny_resnet"),
        out=folder / "transfer",
        labels_per_class=(5,),
        seeds=(0,),
        validate_every=EVERY,
        beside_scratch=False,
        flip_p=0.0,
        precision="no",
        loader=LoaderOptions(num_threads=1),
    )


def ended(config: transfer.Config, name: str, tuning: dict[str, Any], **changes: Any) -> FewLabelResult:
    tuned = replace(config.pretrained, min_crop=0.6, **tuning)
    (result,) = transfer.run(replace(config, out=config.out / name, pretrained=tuned, **changes))
    assert result.start_top1 is not None
    return result


def probe_of(config: transfer.Config) -> float:
    """Compute, independently, the accuracy of the linear probe on the frozen features of the start."""
    pack, backbone = open_pack(config.pack), load_backbone(config.init)

    def features(images: Split) -> Any:
        view = EvaluationView.usual(RESOLUTION).policy()
        with build_loader(images, (view,), 100, options=LoaderOptions(num_threads=1), mode="eval") as loader:
            return extract_features(backbone, loader, "cpu", config.out / "probe")

    train = pack.split("train")
    bank = features(train.take(subsample_per_class(train.labels(), 5, 0)))
    query = features(pack.split("test"))
    probe = fit_linear_probe(bank.h, bank.labels, len(pack.classes), PENALTY)
    return topk_accuracy(probe.logits(query.h), query.labels)


def test_a_training_that_ruins_the_network_ends_at_its_probe(config: transfer.Config) -> None:
    alone = ended(config, "rehearsed", RUINOUS)
    assert (alone.top1, alone.steps) == (alone.start_top1, 0)
    assert alone.start_top1 == pytest.approx(probe_of(config), abs=0.02)  # features are stored as float16
    rehearsal = config.out / "rehearsed" / f"{alone.folder}-rehearsal"
    measured = {
        r["step"]: r["validation_top1"]
        for r in read_metrics(rehearsal / "metrics.jsonl")
        if "validation_top1" in r
    }
    assert list(measured) == [0, RUINOUS["steps"]], "measured at the start and at the end alone"
    assert measured[0] > measured[RUINOUS["steps"]]
    kept = find_classifier(config.out / "rehearsed" / alone.folder, open_pack(config.pack).classes)
    assert kept.resolution == RESOLUTION
    chosen = ended(config, "validated", RUINOUS, validation_share=0.1)
    assert (chosen.top1, chosen.steps) == (chosen.start_top1, 0)


def test_the_settings_by_default_do_not_end_below_the_probe(
    config: transfer.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ended(config, "alone", GENTLE)
    assert alone.top1 >= alone.start_top1
    assert ended(config, "alone", GENTLE) == alone, "taken from disk"
    say_next_step(config.out / "alone", [alone])
    assert f"--network {config.out / 'alone' / alone.folder} " in capsys.readouterr().out
    beside = ended(config, "beside", GENTLE, validation_share=0.1)
    assert beside.top1 >= beside.start_top1


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_supervised_does_not_end_below_the_probe_of_its_start(
    little_pack: Pack, tmp_path: Path, share: float
) -> None:
    """A rehearsal ensures this without validation images; with them, the best weights are kept."""
    start = untrained_run(tmp_path / "start", RESOLUTION, 3)
    few = FEW | {"labels_per_class": 5, "epochs": 4, "lr": 20.0, "ema_decay": 0.5}
    config = supervised.Config(
        pack=little_pack.path, init=start, out=tmp_path / "run", validation_share=share, **few
    )
    summary = supervised.run(config)
    kept = find_classifier(config.out, little_pack.classes, "raw")
    begun = load_backbone(start).state_dict()
    assert all(torch.equal(kept.backbone.state_dict()[name], begun[name]) for name in begun)
    assert summary.accuracy is not None
    assert summary.accuracy.top1 > 0.3, "the probe's; by chance: 0.1"
    assert (config.out / "rehearsal").is_dir() == (not share)
    assert summary.step == (0 if not share else summary.total_steps)
    assert not (config.out / "features").exists()
    again = supervised.run(replace(config, resume=True))
    assert again.accuracy == summary.accuracy
    if not share:  # the micro-batch does not divide the rehearsal's labels; mistakes leave no files
        odd = replace(config, out=tmp_path / "odd", batch_size=50, micro_batch=25)
        assert supervised.run(odd).accuracy == summary.accuracy
        mixed = replace(config, out=tmp_path / "mixed", labels_per_class=4, batch_size=40, micro_batch=4)
        supervised.run(replace(mixed, mixing="mixup"))  # neither 4 nor 3 can cut the 30 rows
        mistaken = replace(config, out=tmp_path / "mistaken", optimizer="adamw")
        with pytest.raises(UserError, match="optimizer"):
            supervised.run(mistaken)
        assert [path.name for path in mistaken.out.iterdir()] == ["lock"], "the folder is free again"
    refused = {"classifier_start": "probe", "init": None}
    with pytest.raises(UserError, match="classifier_start: expected --init without --keep-head"):
        replace(config, **refused)


def test_a_rehearsal_trains_on_no_image_that_it_is_measured_on(little_pack: Pack, tmp_path: Path) -> None:
    """The rehearsal does not use such an image without its label either, nor copies of it."""
    few = {"labels_per_class": 6, "unlabeled_splits": ("train",), "batch_size": 8, "mu": 1}
    config = fixmatch.Config(pack=little_pack.path, out=tmp_path, resolution=16, **few)  # type: ignore[arg-type]
    view = (presets.weak(16, 0.5),)
    loaders = SemiLoaders(little_pack, config, view, view)
    labels = loaders.labels
    held, rest = labels.of_rows(labels.row[:9]), labels.of_rows(labels.row[9:])
    whole, part = (
        images.rows(np.arange(len(images)))
        for images in (loaders.unlabeled, loaders.with_labels(rest).unlabeled)
    )
    assert np.isin(held.row, whole).all()
    assert np.array_equal(part, apart(little_pack, whole, held))
    assert len(part) <= len(whole) - 9
    loaders.fields = loaders.semi_fields = replace(config, batch_size=len(whole), mu=1)
    again = loaders.with_labels(rest).unlabeled  # if a step needs more images than there are, they repeat
    assert np.array_equal(again.rows(np.arange(len(again))), part.repeat(2))
    assert np.array_equal(loaders.with_labels(labels).unlabeled.rows(np.arange(len(whole))), whole)


@pytest.mark.parametrize(("asked", "kept"), [(None, "best"), ("last", "last"), ("best", "best")])
def test_weights_that_are_asked_for_are_kept(asked: Keep | None, kept: Keep, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pack": tmp_path, "out": tmp_path / "out", "keep": asked}
    probed = supervised.Config(**options, init=tmp_path)
    plan = plan_validation(probed, object(), None)  # type: ignore[arg-type]
    assert (plan.keep, plan.from_start) == (kept, True)
    plain = supervised.Config(**options)
    assert plan_validation(plain, object(), None).keep == (asked or "last")  # type: ignore[arg-type]
    assert "init_weights" not in described(plain)
    assert described(plain)["keep"] == (asked or "last"), "so that older runs are gone on with"
