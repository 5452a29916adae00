"""Build a loader: check the arguments, choose a backend, and say why it was chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.backends import choose_backend
from loaders.backends.work import LABELED, MAX_VIEWS, Backend, Crew, Renderer, Work
from loaders.common.checks import check_batch, check_flag, check_one_of, check_whole
from loaders.common.errors import UserError
from loaders.epochs import Draws, EpochLoader, LabeledStream, PairedLoader
from loaders.options import LoaderOptions, Mode
from loaders.order.balanced import balanced_positions, group_by_class
from loaders.order.fingerprint import fingerprint
from loaders.order.permutation import num_steps, permute_stream
from loaders.order.weighted import cumulative_shares, weighted_positions
from loaders.packs import LabelTable, Split
from loaders.packs.pack import LabelTables
from loaders.placing import place_on
from loaders.transform import BatchTransform, Transforming, transform_facts, unnormalized
from loaders.views.policy import AlternatingFlip, ViewPolicy

_DEFAULT = LoaderOptions()
Sampler = Literal["balanced"] | Sequence[float] | NDArray[np.floating[Any]] | Tensor


def build_loader(
    split: Split,
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    *,
    options: LoaderOptions = _DEFAULT,
    mode: Mode = "train",
    labels: LabelTables = None,
    sampler: Sampler | None = None,
    batch_transform: BatchTransform | None = None,
) -> EpochLoader:
    """Build the loader of one split.

    Args:
        split: `open_pack(path).split(name)`.
        views: one policy per view; each image is decoded once for all of them.
        batch_size: global, a multiple of `options.num_ranks`.
        options: how the loader works: seed, backend, device, ranks, threads and so on.
        mode: "train" shuffles and drops the last partial batch; "eval" keeps the order, pads the last batch
            and marks the padding in `Batch.valid`.
        labels: label table, such as `LabelTable.read(path)`; the true labels by default. Pass several tables
            for a split that holds each row once per label; see `Split.labeled_by`.
        sampler: how training draws rows; by default, each row once. "balanced" draws every class equally
            often, as many rows as have a label; weights [len(split)] draw len(split) rows in proportion.
        batch_transform: `transform(views, generator)`, a callable but no lambda, which returns the new views.
            Its arguments are the views [B, 3, H, W] on the device, in [0, 1] before normalisation, and a
            generator seeded by (seed, epoch, step, rank). A callable of the views alone, such as one of
            torchvision's v2 transforms, may use torch's global generators, which are seeded likewise.

    Returns:
        A loader; see `loaders.batch.Loader`. Each `for batch in loader` yields the next epoch's `Batch`es,
        from epoch 0 on; `epoch(epoch, start_step)` any epoch's; `close()` or a `with` block ends the threads.

    Raises:
        UserError: an argument cannot be used; the message names the remedy.
        LoaderError: backend resident could not decode the split: a thread hangs, or another rank failed.
    """
    _check_split("split", split)
    check_views("views", views)
    check_one_of("mode", mode, get_args(Mode))
    _check_options(options)
    _check_sampler(sampler, mode)
    backend, choice = choose_backend(options.backend, split)
    kept = split.labeled_by(labels) if isinstance(sampler, str) else split
    check_batch(len(kept), batch_size, options.num_ranks, drop_last=mode == "train")
    rendered = views if batch_transform is None else unnormalized(views)
    per_rank, known = batch_size // options.num_ranks, kept.labels(labels)
    tables = labels if isinstance(labels, tuple) else (labels,)
    work = _accepted(backend, Work(kept, rendered, options, per_rank, Crew(options), known, mode))
    transforming = None if batch_transform is None else Transforming(batch_transform, views, options)
    draws, drawn = _draws(sampler, work)
    mark = fingerprint(
        (split,), tables, views, batch_size=batch_size, seed=options.seed, mode=mode,
        **backend.identity(work), dtype=options.dtype, **drawn, **transform_facts(batch_transform, options),
    )  # fmt: skip
    renderer = backend.renderer(work)
    if draws is not None:
        _check_any_order(backend, renderer, work)
    place = place_on(torch.device(options.device))
    return EpochLoader(renderer, work, batch_size, place, choice, mark, draws, transforming)


def _check_sampler(sampler: object, mode: Mode) -> None:
    """Refuse an unknown sampler name, and any sampler in evaluation, which takes every row once."""
    if sampler is None:
        return
    if isinstance(sampler, str) and sampler != "balanced":
        raise UserError(f"sampler: expected 'balanced' or a weight per row, found {sampler!r}; give one")
    if mode != "train":
        raise UserError(
            "sampler: expected mode='train', found 'eval', which takes every row once; leave the sampler out"
        )


def _check_any_order(backend: Backend, renderer: Renderer, work: Work) -> None:
    """Refuse a sampler with a backend that reads rows in blocks of shards."""
    if renderer.shuffle is permute_stream:
        return
    work.crew.close()
    raise UserError(
        f"sampler: expected a backend that reads rows in any order, found {backend.name}, which goes "
        "through blocks of shards; use backend='cpu', or the class weights of a loss"
    )


def _draws(sampler: Sampler | None, work: Work) -> tuple[Draws | None, dict[str, str]]:
    """Return the function by which a sampler draws rows and its fingerprint entries; (None, {}) for None."""
    if sampler is None:
        return None, {}
    seed, num_rows = work.options.seed, len(work.split)
    if isinstance(sampler, str):
        assert work.labels is not None
        groups = group_by_class(work.labels)
        # Rounds of one draw per class continue across epochs, so positions count from the start of training.
        per_epoch = num_steps(num_rows, work.batch_size * work.options.num_ranks)
        length = per_epoch * work.batch_size * work.options.num_ranks
        return lambda epoch, places: balanced_positions(epoch * length + places, groups, seed), {
            "sampler": "balanced"
        }
    ends = cumulative_shares(sampler, num_rows)
    digest = hashlib.sha256(ends.tobytes()).hexdigest()[:16]
    in_turns = any(isinstance(one, AlternatingFlip) for view in work.views for one in view.operations)
    return lambda epoch, places: weighted_positions(epoch, places, ends, seed, in_turns), {
        "sampler": f"weights {digest}{', sides in turns' if in_turns else ''}"
    }


def build_paired_loader(
    labeled: Split,
    unlabeled: Split,
    labeled_views: tuple[ViewPolicy, ...],
    unlabeled_views: tuple[ViewPolicy, ...],
    batch_size: int,
    mu: int,
    *,
    options: LoaderOptions = _DEFAULT,
    labels: LabelTable | None = None,
    balanced: bool = False,
) -> PairedLoader:
    """Build a loader of exactly `batch_size` labelled and `mu * batch_size` unlabelled rows per step.

    Args:
        labeled: a split, or a `Pack.pool` of splits; only its rows with a label are used.
        unlabeled: split of the unlabelled rows; labels in it are ignored.
        unlabeled_views: policies of the unlabelled images, such as (weak, strong).
        batch_size: global number of labelled rows per step.
        mu: number of unlabelled rows per labelled row.
        options: see `build_loader`.
        labels: label table of the labelled rows; by default the true labels. Rows without a label in the
            table are left out. `loader.set_labels` sets another table for later epochs.
        balanced: draw every class of the labelled rows equally often, instead of every row.

    Returns:
        A loader of `PairedBatch`es, iterated and closed like that of `build_loader`. An epoch is one pass
        over the unlabelled rows.

    Raises:
        UserError, LoaderError: see `build_loader`.
    """
    views = (labeled_views, unlabeled_views)
    for name, split, own in zip(("labeled", "unlabeled"), (labeled, unlabeled), views, strict=True):
        _check_split(name, split)
        check_views(f"{name}_views", own)
    check_whole("mu", mu, 1, remedy="give the number of unlabelled rows per labelled row")
    check_flag("balanced", balanced)
    _check_options(options)
    labeled.pack.checked_labels(labels)
    ranks = options.num_ranks
    check_batch(len(labeled), batch_size, ranks, drop_last=False)
    what = f"unlabelled batch size (mu = {mu} times batch_size = {batch_size})"
    check_batch(len(unlabeled), mu * batch_size, ranks, what=what)
    backend, choice = choose_backend(options.backend, labeled, unlabeled)
    per_rank = mu * batch_size // ranks
    other = _accepted(backend, Work(unlabeled, unlabeled_views, options, per_rank, Crew(options)))

    def labeled_stream(table: LabelTable | None) -> LabeledStream:
        known = (rows := labeled.labeled_by(table)).labels(table)
        work = Work(rows, labeled_views, options, batch_size // ranks, other.crew, known, stream=LABELED)
        mark = fingerprint(
            (labeled, unlabeled), (table,), views, batch_size=batch_size, mu=mu,
            seed=options.seed, balanced=balanced, **backend.identity(other), dtype=options.dtype,
        )  # fmt: skip
        groups = group_by_class(known) if balanced else None
        return LabeledStream(backend.renderer(_accepted(backend, work)), len(rows), mark, groups)

    first, place = labeled_stream(labels), place_on(torch.device(options.device))
    return PairedLoader(labeled_stream, first, backend.renderer(other), other, batch_size, mu, place, choice)


def explain_backend(options: LoaderOptions = _DEFAULT, *splits: Split) -> str:
    """Return one line that names the backend of a loader of these splits, and says why it is chosen."""
    return choose_backend(options.backend, *splits)[1]


def check_views(what: str, views: object) -> None:
    """Refuse anything but a tuple of 1 to `MAX_VIEWS` policies that share only draws of earlier views.

    Raises:
        UserError: another type, no view or too many, or `shares_draws_of` reaches before the first view.
    """
    if not isinstance(views, tuple) or not all(isinstance(view, ViewPolicy) for view in views):
        found = [type(view).__name__ for view in views] if isinstance(views, tuple) else type(views).__name__
        raise UserError(
            f"{what}: expected a tuple of view policies, found {found}; give presets of loaders.views, a "
            "single one as (policy,)"
        )
    if not 1 <= len(views) <= MAX_VIEWS:
        raise UserError(
            f"{what}: expected 1 to {MAX_VIEWS} view policies, found {len(views)}; give presets of "
            "loaders.views"
        )
    for number, view in enumerate(views):
        if view.shares_draws_of > number:
            raise UserError(
                f"{what}: expected {view.name!r} to share the draws of a view at most {number} places before "
                f"it, found {view.shares_draws_of}; put it after that view"
            )


def _check_split(what: str, split: object) -> None:
    """Refuse anything but a split; a whole pack is a common mistake."""
    if not isinstance(split, Split):
        raise UserError(
            f"{what}: expected a split, found {type(split).__name__}; give open_pack(path).split(name)"
        )


def _check_options(options: object) -> None:
    """Refuse anything but `LoaderOptions`, and a device that this machine lacks."""
    if not isinstance(options, LoaderOptions):
        raise UserError(
            f"options: expected LoaderOptions, found {type(options).__name__}; give LoaderOptions(...)"
        )
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise UserError(
            f"device: expected a name such as 'cpu' or 'cuda:0', found {options.device!r}; correct it"
        ) from None
    if device.type == "cpu":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"device: expected one that this machine has, found {device} ({reason}); use device='cpu', or "
            "fix the driver ('nvidia-smi' shows what it sees)"
        ) from None


def _accepted(backend: Backend, work: Work) -> Work:
    """Return `work`, or raise the error with which the backend refuses it."""
    refusal = backend.refusal(work)
    if refusal is not None:
        raise refusal
    return work
