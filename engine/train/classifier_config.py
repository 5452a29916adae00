"""The options that recipes with labels share."""

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
    """Options of recipes that train on labels; a recipe redeclares those that its paper sets."""

    labeled_split: str = "train"
    """Split whose true labels are used; if it is "" or has no labels, --extra-labels alone are used."""
    labels_per_class: Count | None = None
    """Number of labels per class to use, from --labeled-split or else from --extra-labels; default: all."""
    label_seed: int = 0
    """Seed for the choice of labels; with one seed, more labels per class include those of fewer."""
    extra_labels: tuple[Path, ...] = ()
    """More label tables to train on, such as pseudo-labels; of an image with several, the first counts."""
    test_split: str = "test"
    """Labelled split on which the finished run is measured; "" for none."""
    balanced: bool = False
    """Draw labelled images so that every class comes equally often."""
    class_weights: ClassWeights = "none"
    """Class weights in the loss. none: all equal; inverse: 1 / n for a class with n labels; effective:
    (1 - b) / (1 - b^n) with b = 0.999 (Cui et al. 2019). They are scaled to a mean of 1 over all labels."""
    keep_head: bool = False
    """Start with the classifier layer of --init too; by default that layer is new."""
    classifier_start: ClassifierStart | None = None
    """How a new classifier layer on --init is initialised. probe: as the linear probe of the frozen features;
    this start is measured too and, unless --keep is last, the run does not end below it. random: with random
    weights. Default: probe in supervised.py and, without --stored-views, for the first training of
    self_training.py; else random, as in the papers."""
    lr: float = 0.03
    """Peak learning rate of the backbone."""
    lr_head: float | None = None
    """Peak learning rate of the classifier layer; that of the backbone by default."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay; biases and BatchNorm have none."""
    freeze_backbone: bool = False
    """Train the classifier layer alone. The backbone stays in evaluation mode: its BatchNorm statistics do
    not change, and its dropout is off."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; set 0 where left and right carry meaning."""
    flips: Flips = "random"
    """random: every view is flipped at random; in_turns: a share --flip-p of the images is mirrored in even
    epochs and the other images in odd epochs (Jordan 2024)."""
    test_flip: bool = False
    """Test with the mean of the probabilities for each image and its mirror image; the test takes twice as
    long."""
    lr_vectors: Positive = 1.0
    """Learning rate of biases and BatchNorm as a multiple of the weights' learning rate. Jordan 2024: 64 for
    the biases of BatchNorm, whose scales stay at 1."""
    augment: tuple[Augmentation, ...] = ()
    """Further augmentations of the labelled views: rotation, translation, jitter, randaugment. INF473V
    report: all were tried, none helped."""
    mixing: Mixing = "none"
    """Mix labelled images with their neighbours: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""
    mixing_alpha: Positive = 1.0
    """Alpha of the Beta distribution that mixing shares are drawn from. CutMix: 1; mixup on ImageNet: 0.2."""

    usual_start: ClassVar[ClassifierStart] = "random"
    """The recipe's default of `classifier_start`."""

    def __post_init__(self) -> None:
        """Refuse options that do not fit together."""
        super().__post_init__()
        self.check_validation()
        if self.test_flip and self.flip_p == 0.0:
            raise UserError(
                "test_flip: expected --flip-p above 0, since mirror images are tested only if they are "
                "trained on, found 0; leave out one of them"
            )
        if self.balanced and self.class_weights != "none":
            raise UserError(
                "class_weights: expected none with --balanced, which already balances the classes, found "
                f"{self.class_weights}; leave out one of them"
            )
        if self.classifier_start == "probe" and (self.init is None or self.keep_head):
            found = "none" if self.init is None else "both"
            raise UserError(
                "classifier_start: expected --init without --keep-head, since probe trains a new classifier "
                f"on the features of --init, found {found}; change one of them"
            )
        if self.freeze_backbone and self.init is None:
            raise UserError("freeze_backbone: expected --init, whose weights are kept, found none; add it")
        if self.probe_every_epochs:
            raise UserError(
                "probe_every_epochs: expected 0, since a recipe with labels measures its classifier instead, "
                f"found {self.probe_every_epochs}; leave it out"
            )

    def check_sizes(self) -> None:
        """Also refuse an odd batch or micro-batch with mixing, which pairs neighbouring images."""
        super().check_sizes()
        for option in ("batch_size", "micro_batch"):
            found = getattr(self, option)
            if self.mixing != "none" and found is not None and found % 2:
                raise UserError(
                    f"{option}: expected an even number with --mixing {self.mixing}, which mixes images "
                    f"with their neighbours, found {found}; change it"
                )

    def training_options(self) -> LoaderOptions:
        """Also refuse mixing, before anything is written, if a process would get an odd number of images."""
        options = super().training_options()
        if self.mixing != "none" and self.batch_size // options.num_ranks % 2:
            raise UserError(
                f"batch_size: expected an even number for each of {options.num_ranks} processes with "
                f"--mixing {self.mixing}, found {self.batch_size // options.num_ranks}; change it"
            )
        return options

    @property
    def asked_start(self) -> ClassifierStart:
        """The given `classifier_start`, or else the recipe's default."""
        return self.classifier_start or self.usual_start

    @property
    def begins_at_probe(self) -> bool:
        """Whether the run starts with the linear probe of the features of --init as its classifier."""
        return self.asked_start == "probe" and self.init is not None and not self.keep_head

    def account(self, division: Division | None = None) -> Account:
        """Look for leaks of test or validation images; see `engine.labels.shared_images.account`.

        Raises:
            UserError: there is a leak that is not allowed, or an option needs validation images and there are
                none.
        """
        from engine.labels.shared_images import account

        if division is not None and division.validation is None:
            self.require_validation(division.said)
        return account(self, division)


@dataclass(frozen=True, kw_only=True)
class SemiConfig(ClassifierConfig):
    """Options of recipes that train on labelled and unlabelled images together."""

    unlabeled_splits: tuple[str, ...] = ("train", "unlabeled")
    """Splits whose images are used without their labels; labelled images are usually among them. By default,
    whichever of train and unlabeled the pack has."""

    def on_pack(self, pack: Pack) -> Self:
        """Drop default splits that the pack lacks, unless it lacks all; keep all that the user gave."""
        present = tuple(name for name in self.unlabeled_splits if name in pack.splits)
        if present in ((), self.unlabeled_splits) or not is_usual(self, "unlabeled_splits"):
            return self
        tell(f"unlabeled_splits: {', '.join(present)}, since {pack.path} lacks the other default split")
        return replace(self, unlabeled_splits=present)


@dataclass(frozen=True, kw_only=True)
class PhasesConfig(ClassifierConfig):
    """Options of recipes that train several times and let the networks label images in between."""

    unlabeled_splits: tuple[str, ...] = ("unlabeled",)
    """Splits whose images get pseudo-labels."""
    stored_views: int = 0
    """With --freeze-backbone: number of training views of each image whose features are computed once, kept
    in --out, and used in turn from epoch to epoch; 0 draws new views in every epoch. A frozen backbone's
    features of images to label or to measure on are kept either way."""

    def __post_init__(self) -> None:
        """Refuse options that do not fit together."""
        super().__post_init__()
        if self.stored_views and not self.freeze_backbone:
            raise UserError(
                "stored_views: expected --freeze-backbone, which keeps features the same, found none; add it"
            )
        for name in ("start_resolution", "flips", "classifier_start"):
            if self.stored_views and getattr(self, name) not in (None, "random"):
                raise UserError(
                    f"{name}: expected the default with --stored-views, whose views are drawn once, found "
                    f"{getattr(self, name)}; leave out one of them"
                )
        if self.stored_views and self.mixing != "none":
            raise UserError(
                f"mixing: expected none with --stored-views, which are not mixed, found {self.mixing}; "
                "leave out one of them"
            )
