"""The floors that the results of trainings in tests must exceed, in one place.

Each floor is at least three standard deviations below the mean of its figure over seeds, on every code path
of the processor it was measured on, and at least three above the mean of the same training with its objective
broken (`tests/recipes/broken.py`). `tests/floors/measure.py` measures these figures, `docs/floors.md` lists
them, and `tests/floors/test_floors.py` checks the floors against them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floor:
    """A limit for one figure of a training: either `least` or `most` is set.

    Attributes:
        training: a name of `TRAININGS`.
        figure: name of one of its figures.
        least: the figure must exceed this number.
        most: the figure must stay below this number.
        breaks: names of `BREAKS` under which the figure must miss the limit.
    """

    training: str
    figure: str
    breaks: tuple[str, ...]
    least: float | None = None
    most: float | None = None

    @property
    def limit(self) -> float:
        """The floor or the ceiling."""
        limit = self.most if self.least is None else self.least
        assert limit is not None
        return limit

    @property
    def sign(self) -> int:
        """1 where the figure has to be large, -1 where it has to be small."""
        return -1 if self.least is None else 1


def _above(training: str, figure: str, least: float, *breaks: str) -> Floor:
    return Floor(training, figure, breaks, least=least)


def _below(training: str, figure: str, most: float, *breaks: str) -> Floor:
    return Floor(training, figure, breaks, most=most)


# There is no floor for the kNN accuracy of frozen features: on digits, features of a network with a broken
# objective are nearly as good. Nor is there one for accuracies after true labels have corrected the effect of
# wrong pseudo-labels.
FLOORS = (
    _below("barlow_twins", "invariance", 12.0, "barlow"),
    _above("simclr", "contrast_top1", 0.15, "simclr"),
    _below("vicreg", "variance_left", 0.72, "vicreg"),
    _above("rotnet", "rotation_top1", 0.5, "rotnet"),
    _above("jigsaw", "permutation_top1", 0.7, "jigsaw"),
    _above("patches", "position_top1", 0.3, "patches"),
    _below("vae", "reconstruction", 342.0, "vae"),
    _below("autoencoder", "reconstruction", 332.0, "vae"),
    _above("siamese_vae", "triplets_ordered", 0.8, "siamese_vae"),
    _below("siamese_vae", "triplet", 0.22, "siamese_vae"),
    _above("deepcluster", "cluster_top1", 0.1, "deepcluster"),
    _above("supervised_digits", "top1", 0.8, "supervised"),
    _above("fine_tuning", "top1", 0.35, "transfer"),
    _above("votes", "top1", 0.2),
    _above("frozen_probe", "linear_top1", 0.8),
    _above("mean_teacher_digits", "top1", 0.4, "mean_teacher labels"),
    _below("mean_teacher_clusters", "labels_alone", 0.95),
    _above("mean_teacher_clusters", "top1", 0.96, "mean_teacher", "mean_teacher sign"),
    _above("fixmatch_digits", "top1", 0.3, "fixmatch labels"),
    _below("fixmatch_clusters", "labels_alone", 0.95),
    _above("fixmatch_clusters", "top1", 0.96, "fixmatch", "fixmatch sign", "fixmatch mask"),
    _above("pseudo_label_classical", "top1", 0.2, "pseudo_label labels"),
    _below("pseudo_label_clusters", "labels_alone", 0.95),
    _above("pseudo_label_clusters", "top1", 0.96, "pseudo_label classical"),
    _above("pseudo_label_local", "least_top1", 0.7, "pseudo_label local"),
    _above("pseudo_label_local", "right_guesses", 0.9, "pseudo_label local"),
    _above("self_training_round", "pseudo_top1", 0.5, "self_training"),
    _above("self_training_round", "right_guesses", 0.65, "self_training"),
    _above("gan", "top1", 0.5, "ssl_gan"),
    _below("active_choice", "margin_to_average", 0.6, "active"),
    _above("active_choice", "wrong_guesses", 0.31, "active random"),
    # No floor for the gain of a stage over the stage before: it varies over seeds as much as its own size.
    _above("chain", "top1_pseudo", 0.6, "pipeline rounds"),
    _above("chain", "top1_fixmatch", 0.6, "pipeline"),
    _above("chain", "top1_active", 0.65, "pipeline"),
)


def check(training: str, figures: dict[str, float]) -> None:
    """Check the figures of a training against its floors.

    Raises:
        AssertionError: a figure misses its floor.
    """
    floors = [floor for floor in FLOORS if floor.training == training]
    assert floors, f"no floor for {training}"
    for floor in floors:
        value = figures[floor.figure]
        wanted = f"{'above' if floor.sign > 0 else 'below'} {floor.limit:g}"
        assert floor.sign * (value - floor.limit) > 0, f"{training}: {floor.figure} {value:.4f}, not {wanted}"
