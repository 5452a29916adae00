"""The floors that trainings in tests are held to, in one place.

Each floor is at least three standard deviations below the mean of its figure over seeds, under every
code path of the processors it was measured on, and at least three above the mean of the same training with
its objective broken (`tests/recipes/broken.py`). `docs/floors.md` is the table of these figures,
`tests/floors/test_floors.py` holds the floors against it, `tests/floors/measure.py` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floor:
    """What a figure of a training has to come to.

    Attributes:
        training: a name of `TRAININGS`.
        figure: one of its figures.
        least: which the figure has to exceed; for a figure that has to be small, `most`.
        most: which the figure has to stay below.
        breaks: names of `BREAKS` under which the figure must not come to this.
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


# What the neighbours of frozen features vote for (knn) is no floor: on digits, features of a network whose
# objective was broken are nearly as good. So is what true labels put right again after wrong pseudo-labels.
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
    # What one stage gains over the stage before differs from seed to seed by as much as itself.
    _above("chain", "top1_pseudo", 0.6, "pipeline rounds"),
    _above("chain", "top1_fixmatch", 0.6, "pipeline"),
    _above("chain", "top1_active", 0.65, "pipeline"),
)


def check(training: str, figures: dict[str, float]) -> None:
    """Hold the figures of a training to its floors.

    Raises:
        AssertionError: one does not come to its floor.
    """
    floors = [floor for floor in FLOORS if floor.training == training]
    assert floors, f"no floor for {training}"
    for floor in floors:
        value = figures[floor.figure]
        wanted = f"{'above' if floor.sign > 0 else 'below'} {floor.limit:g}"
        assert floor.sign * (value - floor.limit) > 0, f"{training}: {floor.figure} {value:.4f}, not {wanted}"
