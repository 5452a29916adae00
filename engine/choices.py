"""The named choices of command-line options, in a module that imports neither torch nor numba."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "no", "bf16", "fp16"]
"""Precision of autocast; see `engine.train.distributed.make_accelerator`."""
Device = Literal["auto", "cpu", "cuda"]
"""Where networks compute; see `engine.device`."""
OnNonFinite = Literal["stop", "skip"]
"""Handling of a loss or gradient that is NaN or infinite; see `engine.train.finite`."""
Measure = Literal["training", "turns", "loader"]
"""Whether a run trains as usual or measures speed, and how; see `engine.train.measured`."""
Weights = Literal["ema", "raw"]
"""Weights of a classifier: their moving average ("ema"), or the trained weights themselves ("raw")."""
OptimizerName = Literal["paper", "sgd", "lars", "adamw", "muon"]
"""Optimizer of the weights; see `engine.train.optimizers`."""
ScheduleName = Literal["paper", "cosine", "one_cycle"]
"""Schedule of the learning rate; see `engine.train.schedule`."""
Flips = Literal["random", "in_turns"]
"""How images are flipped from epoch to epoch; see `loaders.views.presets.flipped_in_turns`."""
LabeledView = Literal["crop", "shift", "gentle", "strong"]
"""Training view of labelled images; see `loaders.views.presets`."""
Keep = Literal["last", "best"]
"""The weights that a run saves for later use; see `engine.train.validation`."""
ClassifierStart = Literal["probe", "random"]
"""How a new classifier is initialised; see `engine.train.probe_start`."""
Preset = Literal["paper", "cpu", "auto"]
"""Where the defaults of a recipe come from; see `engine.train.presets`."""
ClassWeights = Literal["none", "inverse", "effective"]
"""Weights of classes in a loss; see `engine.objectives.cross_entropy`."""
Distance = Literal["mse", "kl"]
"""Distance between class probabilities; see `engine.objectives.mean_teacher`."""
Mixing = Literal["none", "mixup", "cutmix"]
"""Mixing of images; see `engine.objectives.supervised`."""
TripletDistance = Literal["cosine", "euclidean"]
"""Distance between embeddings; see `engine.objectives.triplet`."""
TripletPositive = Literal["crop", "affine"]
"""The two views of an image in a triplet, anchor and positive; see `loaders.views.presets`."""
Reconstruction = Literal["bce", "mse"]
"""Loss of a decoded image; see `engine.objectives.vae`."""
Duplicates = Literal["best", "drop", "all"]
"""Handling of an image that was selected for several classes; see `engine.labels.select`."""
