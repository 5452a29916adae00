"""The two functions that build a loader: validate, choose a backend, say why."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from loaders.backends import choose_backend
from loaders.backends.work import LABELED, MAX_VIEWS, Backend, Crew, Renderer, Work
from loaders.batch import Batch
from loaders.common.checks import check_flag, check_one_of, check_whole
from loaders.common.errors import UserError
from loaders.epochs import EpochLoader, LabeledStream, PairedLoader, Place
from loaders.options import LoaderOptions, Mode
from loaders.order.balanced import group_by_class
from loaders.order.fingerprint import fingerprint
from loaders.order.permutation import check_batch
from loaders.packs import LabelTable, Split
from loaders.views.policy import ViewPolicy

_DEFAULT = LoaderOptions()


def build_loader(
    split: Split,
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    *,
    options: LoaderOptions = _DEFAULT,
    mode: Mode = "train",
    labels: LabelTable | None = None,
) -> EpochLoader:
    """Build the loader of one split.

    Args:
        split: `open_pack(path).split(name)`.
        views: one policy per view; each image is decoded once for all of them.
        batch_size: global, a multiple of `options.num_ranks`.
        options: how the loader works: seed, backend, device, ranks, threads and so on.
        mode: "train" shuffles and drops the last partial batch; "eval" keeps the order, pads the last batch
            and marks the padding in `Batch.valid`.
        labels: label table to take the labels from, `LabelTable.read(path)` or `LabelTable.of(rows, labels,
            num_classes)` of loaders.packs; the true labels by default.

    Returns:
        A loader: `epoch(epoch, start_step)` yields `Batch`es, `steps_per_epoch` counts them, `backend` says
        which backend was taken and why, `close()` or a `with` block ends its threads; see
        `loaders.batch.Loader`.

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    _check_split("split", split)
    check_views("views", views)
    check_one_of("mode", mode, get_args(Mode))
    _check_options(options)
    check_batch(len(split), batch_size, options.num_ranks, drop_last=mode == "train")
    backend, choice = choose_backend(options.backend, split)
    work = Work(
        split, views, options, batch_size // options.num_ranks, Crew(options), split.labels(labels), mode
    )
    renderer = _renderer(backend, work)
    mark = fingerprint(
        (split,), (labels,), views, batch_size=batch_size, seed=options.seed, mode=mode,
        **backend.identity(work), dtype=options.dtype,
    )  # fmt: skip
    return EpochLoader(renderer, work, batch_size, _placer(options), choice, mark)


def build_paired_loader(
    labeled: Split,
    unlabeled: Split,
    views: tuple[tuple[ViewPolicy, ...], tuple[ViewPolicy, ...]],
    batch_size: int,
    mu: int,
    *,
    options: LoaderOptions = _DEFAULT,
    labels: LabelTable | None = None,
    balanced: bool = False,
) -> PairedLoader:
    """Build a loader of exactly `batch_size` labelled and `mu * batch_size` unlabelled rows per step.

    Args:
        labeled: split, or `Pack.pool` of splits, whose rows with a label are the labelled ones.
        unlabeled: split of the unlabelled rows.
        views: policies of the labelled images and of the unlabelled ones, such as ((weak,), (weak, strong)).
        batch_size: global number of labelled rows per step.
        mu: unlabelled rows per labelled row.
        options: see `build_loader`.
        labels: label table of the labelled rows; rows of `labeled` without a label in it are left out.
            The true labels by default; `loader.set_labels` gives another for the epochs to come.
        balanced: draw every class of the labelled rows equally often instead of every row.

    Returns:
        A loader as that of `build_loader`, whose `epoch` yields `PairedBatch`es; an epoch is a pass over the
        unlabelled rows.

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    _check_split("labeled", labeled)
    _check_split("unlabeled", unlabeled)
    labeled_views, unlabeled_views = _checked_pair(views)
    check_whole("mu", mu, 1, remedy="give the unlabelled rows per labelled row")
    check_flag("balanced", balanced)
    _check_options(options)
    labeled.pack.checked_labels(labels)
    ranks = options.num_ranks
    check_batch(len(labeled), batch_size, ranks, drop_last=False)
    unlabeled_batch = f"unlabelled batch size (mu = {mu} times batch_size = {batch_size})"
    check_batch(len(unlabeled), mu * batch_size, ranks, what=unlabeled_batch)
    backend, choice = choose_backend(options.backend, labeled, unlabeled)
    other = Work(unlabeled, unlabeled_views, options, mu * batch_size // ranks, Crew(options))

    def labeled_stream(table: LabelTable | None) -> LabeledStream:
        rows = labeled.labeled_by(table)
        known = rows.labels(table)
        work = Work(rows, labeled_views, options, batch_size // ranks, other.crew, known, stream=LABELED)
        mark = fingerprint(
            (labeled, unlabeled), (table,), views, batch_size=batch_size, mu=mu,
            seed=options.seed, balanced=balanced, **backend.identity(other), dtype=options.dtype,
        )  # fmt: skip
        groups = group_by_class(known) if balanced else None
        return LabeledStream(_renderer(backend, work), len(rows), mark, groups)

    first = labeled_stream(labels)
    renderer = _renderer(backend, other)
    return PairedLoader(labeled_stream, first, renderer, other, batch_size, mu, _placer(options), choice)


def explain_backend(options: LoaderOptions = _DEFAULT, *splits: Split) -> str:
    """Return one line: which backend a loader of these splits takes and why.

    Raises:
        UserError: there is no such backend.
    """
    return choose_backend(options.backend, *splits)[1]


def check_views(what: str, views: object) -> None:
    """Refuse what is no tuple of policies, or shares the draws of a view that is not there.

    Raises:
        UserError: another type, none or too many, or `shares_draws_of` beyond the first view.
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
                f"it, found {view.shares_draws_of}; put it behind that view"
            )


def _checked_pair(views: object) -> tuple[tuple[ViewPolicy, ...], tuple[ViewPolicy, ...]]:
    """Return the views of both streams; refuse what is no pair of tuples of policies."""
    if not isinstance(views, tuple) or len(views) != 2:
        raise UserError(
            f"views: expected a pair for labelled and unlabelled images, found {type(views).__name__}"
            "; give ((weak,), (weak, strong)), with presets of loaders.views"
        )
    check_views("views of the labelled images", views[0])
    check_views("views of the unlabelled images", views[1])
    return views


def _check_split(what: str, split: object) -> None:
    """Refuse what is no split, such as the pack it is in."""
    if not isinstance(split, Split):
        raise UserError(
            f"{what}: expected a split, found {type(split).__name__}; give open_pack(path).split(name)"
        )


def _check_options(options: object) -> None:
    """Refuse what are no options, and a device that this machine lacks, before the first batch goes there."""
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
            "mend the driver ('nvidia-smi' shows what it sees)"
        ) from None


def _renderer(backend: Backend, work: Work) -> Renderer:
    """Return what renders a work; refuse what the backend cannot do."""
    refusal = backend.refusal(work)
    if refusal is not None:
        raise refusal
    return backend.renderer(work)


def _placer(options: LoaderOptions) -> Place:
    """Return what moves a batch to the device."""
    target = torch.device(options.device)
    if target.type == "cpu":
        return lambda batch: batch

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(target)

    def place(batch: Batch) -> Batch:
        return replace(
            batch,
            views=tuple(move(view) for view in batch.views),
            labels=None if batch.labels is None else move(batch.labels),
            index=move(batch.index),
            valid=move(batch.valid),
        )

    return place
