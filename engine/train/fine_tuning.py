"""What transfer trains: a pre-trained backbone, cut at a layer, under a new classifier."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.evaluate.knn import knn_scores
from engine.evaluate.predict import Accuracy
from engine.evaluate.representations import Features, extract_features, topk_accuracy
from engine.nets.layers import Layer, measure_layer, read_layer
from engine.train.distributed import gather_on_main, on_main
from engine.train.early_stopping import Stopping, train_until_worse
from engine.train.loop import LoopConfig, train
from engine.train.recipe import Recipe, StepOutput
from engine.train.run_folder import save_backbone
from engine.train.schedule import Schedule, warmup_cosine
from engine.train.tuning_config import FineTuning
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError

WHOLE = Layer()


def build_head(num_features: int, hidden: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a linear classifier, or fully connected layers with BatchNorm and ReLU between them.

    Args:
        num_features: F.
        hidden: sizes of the layers before the last; () for a linear classifier.
        num_classes: C.

    Source: the non-linear classifiers of Gidaris et al. 2018 (RotNet), section 4, whose three layers the
        reports take over.
    """
    if any(size < 1 for size in hidden):
        raise UserError(f"hidden: expected positive sizes, found {list(hidden)}; change them")
    layers: list[nn.Module] = []
    for size_in, size_out in zip((num_features, *hidden), hidden, strict=False):
        layers += [nn.Linear(size_in, size_out, bias=False), nn.BatchNorm1d(size_out), nn.ReLU(inplace=True)]
    last = nn.Linear((num_features, *hidden)[-1], num_classes)
    return nn.Sequential(*layers, last) if layers else last


class Transfer(Recipe):
    """A backbone up to a layer and a new classifier under one cross-entropy."""

    name = "transfer"

    def __init__(
        self,
        backbone: nn.Module,
        backbone_name: str,
        num_classes: int,
        tuning: FineTuning,
        layer: Layer = WHOLE,
        hidden: tuple[int, ...] = (),
        frozen: bool = False,
        resolution: int = 32,
    ) -> None:
        """Put a classifier on a backbone.

        Args:
            backbone: maps [B, 3, H, W] to h [B, num_features].
            backbone_name: as `build_backbone` takes it.
            num_classes: C.
            tuning: rates, steps and BatchNorm mode.
            layer: where the features are read.
            hidden: layers of the classifier before the last.
            frozen: train the classifier alone; so does a rate of 0.
            resolution: side of the views; needed where `layer` names one.
        """
        super().__init__()
        self.backbone, self.backbone_name = backbone, backbone_name
        self.layer, self.num_classes = layer, num_classes
        num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self._behind: list[nn.Parameter] = []
        if layer.name:
            num_features, self._behind = measure_layer(backbone, resolution, layer)
        self.classifier = build_head(num_features, hidden, num_classes)
        self.begin_stage(tuning, frozen)

    def begin_stage(self, tuning: FineTuning, frozen: bool) -> None:
        """Say how the next training goes; the weights stay as they are."""
        self.tuning, self.frozen = tuning, frozen or tuning.lr_backbone == 0.0
        self.backbone.requires_grad_(not self.frozen)
        for parameter in self._behind:
            parameter.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to features [B, F]; a frozen backbone keeps nothing for backward."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return read_layer(self.backbone, x, self.layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def train(self, mode: bool = True) -> Transfer:
        """Set the mode; BatchNorm of a backbone that keeps its statistics stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.tuning.batchnorm == "running":
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Classify one view of each image."""
        assert batch.labels is not None
        logits = self(batch.views[0])
        loss = F.cross_entropy(logits.float(), batch.labels)
        top1 = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepOutput(loss, {"top1": top1})

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD with a learning rate for the backbone and one for the classifier."""
        tuning = self.tuning
        backbone = [p for p in self.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.classifier.parameters()), "lr": tuning.lr_classifier},
            {"params": backbone, "lr": tuning.lr_backbone},
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=tuning.lr_classifier,
            momentum=0.9,
            weight_decay=tuning.weight_decay,
        )

    def make_schedule(self, steps_per_epoch: int, total_steps: int) -> Schedule:
        """Return a cosine over the steps asked for; the last epoch may be cut short."""
        return warmup_cosine(self.tuning.steps, self.tuning.warmup_steps)


def train_stage(
    recipe: Transfer,
    loader: Loader[Batch],
    validation: Loader[Batch] | None,
    accelerator: Accelerator,
    config: LoopConfig,
    stopping: Stopping | None,
) -> int:
    """Train as the recipe's present stage says; return the steps that its weights have seen.

    Args:
        recipe: ends with the last weights, or with the best where training may stop early.
        loader: of the training.
        validation: this rank's part of the validation images; needed for `stopping`.
        accelerator: of the process.
        config: of the loop.
        stopping: when to stop early; None trains to the end.
    """
    if stopping is None:
        done = train(recipe, loader, accelerator, config).step
        accelerator.free_memory()
        return done
    assert validation is not None
    best = train_until_worse(recipe, loader, validation, accelerator, config, stopping)
    described = {"recipe": recipe.name, "backbone": recipe.backbone_name, **config.backbone_metadata}
    on_main(lambda: save_backbone(config.out, recipe.backbone, described))
    return best.step


def vote(
    network: nn.Module,
    labelled: Loader[Batch],
    asked: Loader[Batch],
    num_classes: int,
    device: torch.device,
    out: Path,
    k: int = 20,
) -> Accuracy:
    """Classify images by their nearest labelled neighbours; every rank gets the whole result.

    Args:
        network: maps views to features, on `device`.
        labelled: this rank's part of the images that vote.
        asked: this rank's part of the images to classify.
        num_classes: C.
        device: where the network is.
        out: folder whose `bad_rows.jsonl` names the images that could not be read.
        k: neighbours; all where there are fewer.
    """

    def gather(loader: Loader[Batch]) -> list[Features]:
        return gather_on_main(extract_features(network, loader, device, out).labelled())

    def measure(bank: list[Features], query: list[Features]) -> Accuracy:
        h, labels = torch.cat([f.h for f in bank]), torch.cat([f.labels for f in bank])
        truth = torch.cat([f.labels for f in query])
        votes = knn_scores(h, labels, torch.cat([f.h for f in query]), num_classes, min(k, len(h)))
        top5 = topk_accuracy(votes, truth, min(5, num_classes))
        return Accuracy(topk_accuracy(votes, truth), len(truth), top5)

    bank, query = gather(labelled), gather(asked)
    return on_main(lambda: measure(bank, query))
