"""The two functions that build a loader: validate, choose a backend, say why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from loaders.arguments import (
    MAX_VIEWS,
    BadImages,
    LoaderOptions,
    Mode,
    check_split,
    check_views,
    parse_device,
)
from loaders.backends import BackendName, RendererFactory, explain_backend
from loaders.balanced import group_by_class
from loaders.batch import Batch
from loaders.checks import check_flag, check_one_of, check_whole
from loaders.cpu import DTypeName
from loaders.epochs import EpochLoader, LabeledStream, PairedLoader, Share
from loaders.ffcv_loader import FfcvLoader, check_one_stream, find_shard
from loaders.fingerprint import fingerprint
from loaders.order import check_batch
from loaders.packs import LabelTable, Split
from loaders.views.policy import ViewPolicy

__all__ = ["BackendName", "Mode", "build_loader", "build_paired_loader", "explain_backend"]


def build_loader(
    split: Split,
    views: tuple[ViewPolicy, ...],
    batch_size: int,
    seed: int = 0,
    *,
    mode: Mode = "train",
    backend: BackendName = "auto",
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    num_ranks: int = 1,
    labels: LabelTable | None = None,
    dtype: DTypeName = "float32",
    channels_last: bool = False,
    bad_images: BadImages = "replace",
    verify: bool = False,
    prefetch: int = 2,
    timeout_s: float = 120.0,
    window: int = 16,
) -> EpochLoader:
    """Build the loader of one split.

    Args:
        split: `open_pack(path).split(name)`.
        views: one policy per view; each image is decoded once for all of them.
        batch_size: global, a multiple of `num_ranks`.
        seed: of order and views.
        mode: "train" shuffles and drops the last partial batch; "eval" keeps the order, pads the last batch
            and marks the padding in `Batch.valid`.
        backend: "auto", "cpu", "dali" (on the GPU where `device` is one), "ffcv" (packs of that format) or
            "stream" (packs in a store, or larger than memory). "auto" takes stream for packs in a store, else
            cpu or what `tools/bench_loaders.py --remember` found to be faster here; `loader.backend` says
            what it took and why, `explain_backend` what it would take.
        device: where batches are delivered.
        num_threads: worker threads; by default the cores this process may use.
        rank: this process; the loader takes its part of every batch and is never given to accelerate.
        num_ranks: number of processes.
        labels: label table to take the labels from, `LabelTable.read(path)` or `LabelTable.of(rows, labels,
            num_classes)` of loaders.packs; the true labels by default.
        dtype: "float32", "float16" or "bfloat16" (normalised as the policy says), or "uint8".
        channels_last: deliver views in torch.channels_last.
        bad_images: "replace" puts the next readable row in place of a damaged one, deterministically, and
            notes it in `loader.bad_rows`; "raise" stops.
        verify: compare the bytes of every image with its CRC-32 whenever it is read; one that differs is a
            damaged image. Without it, a flipped bit that still decodes goes unnoticed (by backend dali after
            the first reading of its row).
        prefetch: batches under way besides the one being used.
        timeout_s: seconds that one batch may take before `LoaderError`.
        window: of backend stream: shards shuffled together; more mix better and need a larger cache.

    Returns:
        A loader: `epoch(epoch, start_step)` yields `Batch`es, `steps_per_epoch` counts them, `close()` or a
        `with` block ends its threads; see `loaders.batch.Loader`.

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    check_split("split", split)
    check_views("views", views)
    check_one_of("mode", mode, get_args(Mode))
    options = LoaderOptions(
        seed, parse_device(device), num_threads, rank, num_ranks, dtype, channels_last, bad_images, verify,
        prefetch, timeout_s, window,
    )  # fmt: skip
    train = mode == "train"
    check_batch(len(split), batch_size, num_ranks, drop_last=train)
    known = split.labels(labels)
    factory = RendererFactory(backend, options, (split,), (views,))
    mark = fingerprint(
        (split,), (labels,), views, batch_size=batch_size, seed=seed, mode=mode, **factory.decisive
    )
    share = Share(rank, num_ranks, prefetch, timeout_s)
    place = _placer(options.device)
    if factory.name == "ffcv":
        find_shard(split)
        cpu = factory.make_cpu(split, views, first_view=MAX_VIEWS, labels=known, train=train)
        return FfcvLoader(cpu, batch_size, seed, train, share, place, factory.close, factory.choice, mark)
    renderer = factory.make(
        split,
        views,
        first_view=MAX_VIEWS,
        labels=known,
        batch_size=batch_size // num_ranks,
        train=train,
    )
    renderer, shuffle = factory.in_order(renderer, train)
    return EpochLoader(
        renderer,
        len(split),
        batch_size,
        seed,
        train,
        share,
        place,
        factory.close,
        factory.choice,
        mark,
        shuffle,
    )


def build_paired_loader(
    labeled: Split,
    unlabeled: Split,
    labeled_views: tuple[ViewPolicy, ...],
    unlabeled_views: tuple[ViewPolicy, ...],
    batch_size: int,
    mu: int,
    seed: int = 0,
    *,
    backend: BackendName = "auto",
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    rank: int = 0,
    num_ranks: int = 1,
    labels: LabelTable | None = None,
    balanced: bool = False,
    dtype: DTypeName = "float32",
    channels_last: bool = False,
    bad_images: BadImages = "replace",
    verify: bool = False,
    prefetch: int = 2,
    timeout_s: float = 120.0,
    window: int = 16,
) -> PairedLoader:
    """Build a loader of exactly `batch_size` labelled and `mu * batch_size` unlabelled rows per step.

    Args:
        labeled: split, or `Pack.pool` of splits, whose rows with a label are the labelled ones.
        unlabeled: split of the unlabelled rows.
        labeled_views: policies of the labelled images.
        unlabeled_views: policies of the unlabelled images, such as (weak, strong).
        batch_size: global number of labelled rows per step.
        mu: unlabelled rows per labelled row.
        labels: label table of the labelled rows; rows of `labeled` without a label in it are left out.
            The true labels by default; `loader.set_labels` gives another for the epochs to come.
        balanced: draw every class of the labelled rows equally often instead of every row.
        seed, backend, device, num_threads, rank, num_ranks, dtype, channels_last, bad_images, verify,
            prefetch, timeout_s, window: see `build_loader`.

    Returns:
        A loader as that of `build_loader`, whose `epoch` yields `PairedBatch`es; an epoch is a pass over the
        unlabelled rows.

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    check_split("labeled", labeled)
    check_split("unlabeled", unlabeled)
    check_views("labeled_views", labeled_views)
    check_views("unlabeled_views", unlabeled_views)
    check_whole("mu", mu, 1, remedy="give the unlabelled rows per labelled row")
    check_flag("balanced", balanced)
    options = LoaderOptions(
        seed, parse_device(device), num_threads, rank, num_ranks, dtype, channels_last, bad_images, verify,
        prefetch, timeout_s, window,
    )  # fmt: skip
    labeled.pack.checked_labels(labels)
    check_batch(len(labeled), batch_size, num_ranks, drop_last=False)
    unlabeled_batch = f"unlabelled batch size (mu = {mu} times batch_size = {batch_size})"
    check_batch(len(unlabeled), mu * batch_size, num_ranks, what=unlabeled_batch)
    factory = RendererFactory(backend, options, (labeled, unlabeled), (labeled_views, unlabeled_views))
    if factory.name == "ffcv":
        check_one_stream((labeled, unlabeled))

    def labeled_stream(table: LabelTable | None) -> LabeledStream:
        rows = labeled.labeled_by(table)
        known = rows.labels(table)
        groups = group_by_class(known) if balanced else None
        size = batch_size // num_ranks
        renderer = factory.make(rows, labeled_views, first_view=0, labels=known, batch_size=size)
        mark = fingerprint(
            (labeled, unlabeled), (table,), (labeled_views, unlabeled_views),
            batch_size=batch_size, mu=mu, seed=seed, balanced=balanced, **factory.decisive,
        )  # fmt: skip
        return LabeledStream(factory.keep_all(renderer), len(rows), mark, groups)

    other, shuffle = factory.in_order(
        factory.make(
            unlabeled,
            unlabeled_views,
            first_view=MAX_VIEWS,
            labels=None,
            batch_size=mu * batch_size // num_ranks,
        ),
        train=True,
    )
    return PairedLoader(
        labeled_stream,
        labels,
        other,
        len(unlabeled),
        batch_size,
        mu,
        seed,
        Share(rank, num_ranks, prefetch, timeout_s),
        _placer(options.device),
        factory.close,
        factory.choice,
        shuffle,
    )


def _placer(target: torch.device) -> Callable[[Batch], Batch]:
    """Return what moves a batch to a device."""
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
