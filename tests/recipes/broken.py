"""Objectives broken on purpose, each in a way that still runs, to check that floors detect broken training.

A pytest plugin, controlled by the environment: SLUICE_BREAK=rotnet python -m pytest -p tests.recipes.broken
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from loaders.views import presets

Function = Callable[..., Any]


@dataclass(frozen=True)
class Break:
    """What is broken, how, and the test that has to fail.

    Attributes:
        target: the function to break, as module:attribute.
        how: description of the break.
        make: turns the intact function into the broken one.
        test: file, and the words that select the test in it.
    """

    target: str
    how: str
    make: Callable[[Any], Any]
    test: tuple[str, str]


def _other_images_view(loss: Function) -> Function:
    return lambda z_a, z_b, *rest, **named: loss(z_a, z_b.roll(1, 0), *rest, **named)


def _shuffled(place: int) -> Callable[[Function], Function]:
    """Shuffle the rows of one argument."""

    def make(loss: Function) -> Function:
        def broken(*args: Any, **named: Any) -> Any:
            mixed = list(args)
            mixed[place] = mixed[place][torch.randperm(len(mixed[place]))]
            return loss(*mixed, **named)

        return broken

    return make


def _never_unlabelled(place: int) -> Callable[[Function], Function]:
    """Set the weight of the unlabelled images to 0."""

    def make(loss: Function) -> Function:
        return lambda *args, **named: loss(*args[:place], 0.0, *args[place + 1 :], **named)

    return make


def _against(place: int) -> Callable[[Function], Function]:
    """Reverse the sign of the weight of the unlabelled images."""

    def make(loss: Function) -> Function:
        return lambda *args, **named: loss(*args[:place], -args[place], *args[place + 1 :], **named)

    return make


def _views_swapped(loss: Function) -> Function:
    return lambda labeled, labels, weak, strong, *rest, **named: loss(
        labeled, labels, strong, weak, *rest, **named
    )


def _never_sure(guesses: Function) -> Function:
    def broken(*args: Any, **named: Any) -> Any:
        guess, sure = guesses(*args, **named)
        return guess, sure & False

    return broken


def _mixed_up(loss: Function) -> Function:
    def broken(real: torch.Tensor, generated: torch.Tensor, rival: torch.Tensor) -> Any:
        both = torch.cat([real, generated])
        both = both[torch.randperm(len(both))]
        return loss(both[: len(real)], both[len(real) :], rival)

    return broken


def _nothing(method: Function) -> Function:
    return lambda *args, **named: None


def _none_of_it(loss: Function) -> Function:
    return lambda *args, **named: 0.0 * loss(*args, **named)


def _turned_round(loss: Function) -> Function:
    return lambda *args, **named: -loss(*args, **named)


def _first_alone(join: Function) -> Function:
    return lambda own, other: own


def _other_rows(update: Function) -> Function:
    return lambda self, scores, rows: update(self, scores, np.roll(rows, 1))


def _not_smoothed(loss: Function) -> Function:
    return lambda logits, mixed, _, *rest, **named: loss(logits, mixed, 0.0, *rest, **named)


def _at_random(margins: Function) -> Function:
    def broken(probabilities: Any) -> Any:
        return torch.rand(len(probabilities), generator=torch.Generator().manual_seed(0)).numpy()

    return broken


def _not_mirrored(mirrored: Function) -> Function:
    return presets.evaluation


def _forgets_start(check: Function) -> Function:
    def broken(config: Any) -> None:
        object.__setattr__(config, "init", None)

    return broken


def _new_weights(load: Function) -> Function:
    return lambda start: start.build().eval()


def _next_class(guess: Function) -> Function:
    def broken(*args: Any, **named: Any) -> Any:
        found = guess(*args, **named)
        return replace(found, label=(found.label + 1) % 10)

    return broken


def _newest_label(table: Function) -> Function:
    return lambda own, other: table(other, own)


def _mixed_table(as_table: Function) -> Function:
    """Shuffle the labels; merely permuting classes would be undone by later fine-tuning on true labels."""
    generator = np.random.default_rng(0)
    return lambda kept, cycle: as_table(replace(kept, label=generator.permutation(kept.label)), cycle)


def _wrong_table(as_table: Function) -> Function:
    return lambda kept, cycle: as_table(replace(kept, label=(kept.label + 1) % kept.num_classes), cycle)


def _surest(choose: Function) -> Function:
    return lambda margin, *rest, **named: choose(-margin, *rest, **named)


def _last_view(mean: Any) -> Any:
    return property(lambda evaluated: evaluated.by_view[-1])


def _rolled_labels(loss: Function) -> Function:
    return lambda logits, mixed, *rest, **named: loss(
        logits, replace(mixed, labels=mixed.labels.roll(1)), *rest, **named
    )


OTHER, SHUFFLED = "the second view is of another image", "targets are those of other images"
NO_UNLABELLED = "unlabelled images have the weight 0"


def _recipe(name: str, function: str, how: str, make: Any, words: str = "learns", file: str = "") -> Break:
    test = (f"tests/recipes/test_{file or name}.py", words)
    return Break(f"recipes.{name}:{function}", how, make, test)


BREAKS = {
    "barlow": _recipe("barlow", "barlow_twins_loss", OTHER, _other_images_view),
    "simclr": _recipe("simclr", "simclr_loss", OTHER, _other_images_view),
    "vicreg": _recipe("vicreg", "vicreg_loss", OTHER, _other_images_view),
    "rotnet": _recipe("rotnet", "rotnet_loss", SHUFFLED, _shuffled(0)),
    "jigsaw": _recipe("jigsaw", "pretext_loss", SHUFFLED, _shuffled(1)),
    "patches": _recipe("patches", "pretext_loss", SHUFFLED, _shuffled(1)),
    "vae": _recipe("vae", "vae_loss", "the target is another image", _shuffled(1)),
    "colorization": _recipe("colorization", "colorization_loss", SHUFFLED, _shuffled(1)),
    "dcgan": _recipe("dcgan", "dcgan_loss", "real and generated are mixed up", _mixed_up),
    "siamese_vae": _recipe(
        "siamese_vae", "triplet_loss", "the positive is another image", _other_images_view
    ),
    "deepcluster": _recipe("deepcluster", "deepcluster_loss", SHUFFLED, _shuffled(1)),
    "supervised": _recipe("supervised", "mixed_cross_entropy", SHUFFLED, _rolled_labels),
    "transfer": Break(
        *("engine.train.fine_tuning:mix", SHUFFLED, _shuffled(1)),
        ("tests/recipes/test_transfer.py", "it_learns"),
    ),
    "mean_teacher": _recipe(
        "mean_teacher", "consistency_loss", "the consistency is 0", _none_of_it, "digits or zero"
    ),
    "mean_teacher labels": _recipe("mean_teacher", "class_loss", SHUFFLED, _shuffled(1), "learns_the_digits"),
    "mean_teacher sign": _recipe(
        "mean_teacher", "consistency_loss", "the consistency is maximised", _turned_round, "teaches_what"
    ),
    "mean_teacher average": _recipe(
        "mean_teacher", "MeanTeacher.after_step", "the teacher never moves", _nothing, "remembers"
    ),
    "supervised smoothing": _recipe(
        "supervised", "mixed_cross_entropy", "labels are not smoothed", _not_smoothed, "smooths"
    ),
    "transfer start": Break(
        *("engine.nets.starts:Start.load", "the trained weights are not loaded", _new_weights),
        ("tests/recipes/test_transfer.py", "rate_zero"),
    ),
    "pseudo_label classical": _recipe(
        "pseudo_label", "fixmatch_loss", NO_UNLABELLED, _never_unlabelled(5), "guesses_teach"
    ),
    "pseudo_label labels": _recipe(
        "pseudo_label", "fixmatch_loss", SHUFFLED, _shuffled(1), "classical_learns"
    ),
    "pseudo_label local": _recipe(
        "pseudo_label", "guess_labels", "pseudo-labels name the next class", _next_class, "local"
    ),
    "pseudo_label permanent": Break(
        *("loaders.packs.labels.tables:LabelTable.join", "a new guess replaces the label", _newest_label),
        ("tests/recipes/test_pseudo_label.py", "permanent"),
    ),
    "temporal_ensembling": _recipe(
        "temporal_ensembling",
        "TemporalEnsembling.after_step",
        "no prediction is remembered",
        _nothing,
        "teach_what",
    ),
    "fixmatch": _recipe("fixmatch", "fixmatch_loss", NO_UNLABELLED, _never_unlabelled(5), "teach_what"),
    "fixmatch labels": _recipe("fixmatch", "fixmatch_loss", SHUFFLED, _shuffled(1)),
    "fixmatch sign": _recipe("fixmatch", "fixmatch_loss", "the weight is below 0", _against(5), "teach_what"),
    "fixmatch views": _recipe(
        "fixmatch", "fixmatch_loss", "strong views guess, weak ones learn", _views_swapped, "weak_view"
    ),
    "fixmatch mask": Break(
        *("engine.objectives.fixmatch:confident_guesses", "no prediction passes the threshold", _never_sure),
        ("tests/recipes/test_fixmatch.py", "teach_what"),
    ),
    "self_training": _recipe(
        "self_training", "as_table", "pseudo-labels name the next class", _wrong_table, "help"
    ),
    "self_training selection": Break(
        *("engine.labels.select:BalancedSelector.update", "scores are those of other images", _other_rows),
        ("tests/recipes/test_self_training.py", "surest"),
    ),
    "self_training rounds": Break(
        *("loaders.packs.labels.tables:LabelTable.join", "pseudo-labels are left out", _first_alone),
        ("tests/recipes/test_self_training.py", "goes_on_from"),
    ),
    "active random": _recipe("active", "margins", "margins are drawn at random", _at_random, "brute_force"),
    "active": _recipe(
        *("active", "smallest_per_cluster", "labels are requested for the most confident images", _surest),
        "unsure",
    ),
    "ssl_gan": _recipe("ssl_gan", "discriminator_loss", SHUFFLED, _shuffled(1)),
    "ssl_gan sign": _recipe(
        "ssl_gan", "feature_matching_loss", "features are kept apart", _turned_round, "own_network"
    ),
    "ssl_gan matching": _recipe(
        "ssl_gan", "feature_matching_loss", "the generator learns nothing", _none_of_it, "own_network"
    ),
    "evaluate flips": Break(
        *("loaders.views.presets:mirrored", "flipped views are not flipped", _not_mirrored),
        ("tests/recipes/test_evaluate.py", "shows_what"),
    ),
    "evaluate": Break(
        *("recipes.evaluate:Evaluated.probabilities", "the last view alone counts", _last_view),
        ("tests/recipes/test_evaluate.py", "averaged"),
    ),
    "pipeline start": Break(
        *(
            "engine.train.classifier_config:ClassifierConfig.__post_init__",
            "no stage has a start",
            _forgets_start,
        ),
        ("tests/recipes/test_pipeline.py", "goes_on_from"),
    ),
    "pipeline rounds": _recipe(
        "pipeline", "self_training.as_table", "pseudo-labels are those of other images", _mixed_table, "helps"
    ),
    "pipeline": Break(
        *("recipes.fixmatch:fixmatch_loss", SHUFFLED, _shuffled(1)),
        ("tests/recipes/test_pipeline.py", "helps"),
    ),
}


def place_of(chosen: Break) -> tuple[Any, str]:
    """Return the module or class that holds the target, and the target's name in it."""
    module, path = chosen.target.split(":")
    *owners, attribute = path.split(".")
    owner: Any = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, attribute


def apply(name: str) -> Callable[[], None]:
    """Apply the break `BREAKS[name]`; return a function that undoes it."""
    chosen = BREAKS[name]
    owner, attribute = place_of(chosen)
    sound = owner.__dict__[attribute]
    setattr(owner, attribute, chosen.make(sound))
    return lambda: setattr(owner, attribute, sound)


def pytest_configure() -> None:
    """Apply the break that the environment names."""
    apply(os.environ["SLUICE_BREAK"])
