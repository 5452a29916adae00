"""The fields of every recipe that trains on labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from engine.choices import ClassifierStart, ClassWeights, Flips, Mixing
from engine.train.options import ValidationOptions
from engine.train.run_config import StartConfig, is_usual
from loaders.common.checks import Count, Positive
from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.views.policy import Augmentation

if TYPE_CHECKING:
    from engine.labels.shared_images import Account
    from loaders.options import LoaderOptions
    from loaders.packs import Pack
    from loaders.packs.labels.validation import Division


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(StartConfig, ValidationOptions):
    """Fields of every recipe that trains on labels; a recipe declares anew those that its paper sets."""

    labeled_split: str = "train"
    """Split of the pack whose true labels are used; where it is "" or has none, --extra-labels are all."""
    labels_per_class: Count | None = None
    """Use only so many of those labels per class, or of --extra-labels where these are all; else all."""
    label_seed: int = 0
    """Seed of that choice; a larger number of labels contains the smaller ones."""
    extra_labels: tuple[Path, ...] = ()
    """Label tables to train on besides: pseudo-labels, bought labels. The first label of a row counts."""
    test_split: str = "test"
    """Labelled split to measure the end of the run on; "" for none."""
    balanced: bool = False
    """Draw every class of the labelled images equally often."""
    class_weights: ClassWeights = "none"
    """Weight of a label in the loss: none; inverse to the labels of its class; or effective, inverse to
    (1 - b^n) / (1 - b) of its n labels with b = 0.999 (Cui et al. 2019). The mean over all labels is 1."""
    keep_head: bool = False
    """Start with the classifier layer of --init as well; else it is new."""
    classifier_start: ClassifierStart | None = None
    """How a new classifier layer on --init begins. probe: as the linear probe of the frozen features; it is
    measured before the first step, and the best weights are kept, so that the run does not end below it.
    random: anew. By default probe in supervised.py and for the first training of self_training.py, else
    random, as papers have it."""
    lr: float = 0.03
    """Peak learning rate of the backbone."""
    lr_head: float | None = None
    """Peak learning rate of the classifier layer; that of the backbone by default."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay; biases and BatchNorm have none."""
    freeze_backbone: bool = False
    """Train the classifier layer alone; the backbone stays in evaluation mode: BatchNorm keeps its
    statistics, and nothing is dropped."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; 0 where left and right carry meaning."""
    flips: Flips = "random"
    """random: every view is drawn anew; in_turns: a share --flip-p of the images is mirrored in even epochs
    and the others in odd ones (Jordan 2024)."""
    test_flip: bool = False
    """Test the mean of the probabilities of each image and its mirror image, at twice the time."""
    lr_vectors: Positive = 1.0
    """Learning rate of biases and BatchNorm as a multiple of that of the weights. Jordan 2024: 64 for
    BatchNorm's biases, whose scales it leaves at 1."""
    augment: tuple[Augmentation, ...] = ()
    """Further changes of the labelled views: rotation, translation, jitter, randaugment. INF473V report: all
    were tried, none helped."""
    mixing: Mixing = "none"
    """Mix labelled images with their neighbours: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""
    mixing_alpha: Positive = 1.0
    """Alpha of the Beta distribution that shares are drawn from. CutMix: 1; mixup on ImageNet: 0.2."""

    usual_start: ClassVar[ClassifierStart] = "random"
    """Of the classifier layer, where the run does not say."""

    def __post_init__(self) -> None:
        """Refuse options that make no training."""
        super().__post_init__()
        self.check_validation()
        if self.test_flip and self.flip_p == 0.0:
            raise UserError(
                "test_flip: expected --flip-p above 0, mirror images are tested only where they are learned "
                "from, found 0; leave out one"
            )
        if self.balanced and self.class_weights != "none":
            raise UserError(
                "class_weights: expected none beside --balanced, which evens the classes out already, found "
                f"{self.class_weights}; leave out one"
            )
        if self.classifier_start == "probe" and (self.init is None or self.keep_head):
            found = "none" if self.init is None else "--keep-head beside it"
            raise UserError(
                f"classifier_start: expected --init, on whose features a new classifier begins, found {found}"
            )
        if self.freeze_backbone and self.init is None:
            raise UserError("freeze_backbone: expected --init, whose weights to keep, found none")
        if self.probe_every_epochs:
            raise UserError(
                "probe_every_epochs: expected 0, a recipe with labels measures its classifier instead, found "
                f"{self.probe_every_epochs}"
            )

    def check_sizes(self) -> None:
        """Also refuse to mix an odd number of images, each with its neighbour."""
        super().check_sizes()
        for option in ("batch_size", "micro_batch"):
            found = getattr(self, option)
            if self.mixing != "none" and found is not None and found % 2:
                raise UserError(
                    f"{option}: expected an even number beside --mixing {self.mixing}, which mixes images "
                    f"with their neighbours, found {found}; change it"
                )

    def training_options(self) -> LoaderOptions:
        """Also refuse mixing where each process would get an odd number of images; nothing is written yet."""
        options = super().training_options()
        if self.mixing != "none" and self.batch_size // options.num_ranks % 2:
            raise UserError(
                f"batch_size: expected an even number for each of {options.num_ranks} processes beside "
                f"--mixing {self.mixing}, found {self.batch_size // options.num_ranks}; change it"
            )
        return options

    @property
    def asked_start(self) -> ClassifierStart:
        """How a new classifier layer on --init begins."""
        return self.classifier_start or self.usual_start

    @property
    def begins_at_probe(self) -> bool:
        """Whether the classifier layer begins as the linear probe of the start's features."""
        return self.asked_start == "probe" and self.init is not None and not self.keep_head

    def account(self, division: Division | None = None) -> Account:
        """Compare the run's training images with its test split and its validation images.

        Args:
            division: how the run's labels are divided.

        Raises:
            UserError: they share labels, here or in the run that it starts from, and that is not allowed.
        """
        from engine.labels.shared_images import account

        if division is not None and division.validation is None:
            self.require_validation(division.said)
        return account(self, division)


@dataclass(frozen=True, kw_only=True)
class SemiConfig(ClassifierConfig):
    """Fields of recipes that train on images with and without labels together."""

    unlabeled_splits: tuple[str, ...] = ("train", "unlabeled")
    """Splits whose images are used without their labels, the labelled images among them. By default those of
    these two that the pack has."""

    def on_pack(self, pack: Pack) -> Self:
        """Leave out those default splits that a pack lacks; given ones are all expected."""
        present = tuple(name for name in self.unlabeled_splits if name in pack.splits)
        if present in ((), self.unlabeled_splits) or not is_usual(self, "unlabeled_splits"):
            return self
        tell(f"unlabeled_splits: {', '.join(present)}, since {pack.path} lacks the other usual one")
        return replace(self, unlabeled_splits=present)


@dataclass(frozen=True, kw_only=True)
class PhasesConfig(ClassifierConfig):
    """Fields of recipes of several trainings, which label images for each other."""

    unlabeled_splits: tuple[str, ...] = ("unlabeled",)
    """Splits whose images get pseudo-labels."""
    stored_views: int = 0
    """With --freeze-backbone: train on features of so many training views of each image, which are computed
    once and kept in --out; they take turns by epochs. 0 computes new views in every epoch. What a frozen
    backbone makes of images to label or to measure on is kept either way."""

    def __post_init__(self) -> None:
        """Refuse stored views where backbone or views change."""
        super().__post_init__()
        if self.stored_views and not self.freeze_backbone:
            raise UserError(
                "stored_views: expected --freeze-backbone, whose features stay the same, found none; add it"
            )
        for name in ("start_resolution", "flips", "classifier_start"):
            if self.stored_views and getattr(self, name) not in (None, "random"):
                raise UserError(
                    f"{name}: expected the usual beside --stored-views, whose views are drawn once, found "
                    f"{getattr(self, name)}; leave out one"
                )
        if self.stored_views and self.mixing != "none":
            raise UserError(
                f"mixing: expected none beside --stored-views, which are not mixed, found {self.mixing}; "
                "leave out one"
            )
