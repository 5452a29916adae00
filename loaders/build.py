"""The two functions that build a loader: validate, choose a backend, say why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from loaders.backends import BackendName, RendererFactory, RenderOptions, explain_backend
from loaders.balanced import group_by_class
from loaders.batch import Batch
from loaders.cpu import DTypeName
from loaders.epochs import EpochLoader, LabeledStream, PairedLoader, Share
from loaders.errors import UserError
from loaders.ffcv_loader import FfcvLoader, check_split
from loaders.fingerprint import fingerprint
from loaders.order import check_batch
from loaders.packs import LabelTable, Split
from loaders.views.policy import ViewPolicy

__all__ = ["BackendName", "Mode", "build_loader", "build_paired_loader", "explain_backend"]

Mode = Literal["train", "eval"]

_STREAM_VIEWS = 256  # view numbers set aside for each stream of a paired loader


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
    bad_images: Literal["replace", "raise"] = "replace",
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
            "stream" (packs in a store, or larger than memory); `explain_backend` says what "auto" takes.
        device: where batches are delivered.
        num_threads: worker threads; by default the cores this process may use.
        rank: this process; the loader takes its part of every batch and is never given to accelerate.
        num_ranks: number of processes.
        labels: label table to take the labels from; the true labels by default.
        dtype: "float32", "float16" or "bfloat16" (normalised as the policy says), or "uint8".
        channels_last: deliver views in torch.channels_last.
        bad_images: "replace" puts the next readable row in place of a damaged one, deterministically, and
            notes it in `loader.bad_rows`; "raise" stops.
        verify: compare the bytes of every image with its CRC-32; one that differs is a damaged image.
            Without it, backends cpu and stream do not notice a flipped bit that still decodes.
        prefetch: batches under way besides the one being used.
        timeout_s: seconds that one batch may take before `LoaderError`.
        window: of backend stream: shards shuffled together; more mix better and need a larger cache.

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    _check(views, num_threads, prefetch, timeout_s, rank, num_ranks)
    options = RenderOptions(
        seed, torch.device(device), num_threads, dtype, channels_last, bad_images == "replace", prefetch,
        verify, window, timeout_s,
    )  # fmt: skip
    factory = RendererFactory(backend, options, (split,))
    mark = fingerprint(
        (split,), (labels,), views, batch_size=batch_size, seed=seed, mode=mode, **factory.decisive
    )
    train = mode == "train"
    check_batch(len(split), batch_size, num_ranks, drop_last=train)
    share = Share(rank, num_ranks, prefetch, timeout_s)
    known = split.labels(labels)
    if factory.name == "ffcv":
        check_split(split)
        cpu = factory.make_cpu(split, views, first_view=_STREAM_VIEWS, labels=known, train=train)
        return FfcvLoader(cpu, batch_size, seed, train, share, _placer(device), factory.close).marked(mark)
    renderer = factory.make(
        split,
        views,
        first_view=_STREAM_VIEWS,
        labels=known,
        batch_size=batch_size // num_ranks,
        train=train,
    )
    renderer, shuffle = factory.in_order(renderer, train)
    return EpochLoader(
        renderer, len(split), batch_size, seed, train, share, _placer(device), factory.close, shuffle
    ).marked(mark)


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
    bad_images: Literal["replace", "raise"] = "replace",
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

    Raises:
        UserError: what cannot be built, and the remedy.
    """
    _check(labeled_views + unlabeled_views, num_threads, prefetch, timeout_s, rank, num_ranks)
    if mu < 1:
        raise UserError(f"mu: expected at least 1 unlabelled row per labelled row, found {mu}; raise it")
    options = RenderOptions(
        seed, torch.device(device), num_threads, dtype, channels_last, bad_images == "replace", prefetch,
        verify, window, timeout_s,
    )  # fmt: skip
    factory = RendererFactory(backend, options, (labeled, unlabeled))
    if factory.name == "ffcv":
        raise UserError(
            "backend ffcv: expected one stream, since FFCV's Loader walks one order; found two; use "
            "backend='cpu', which reads the same packs"
        )
    check_batch(len(unlabeled), mu * batch_size, num_ranks)

    def labeled_stream(table: LabelTable | None) -> LabeledStream:
        rows = labeled.labeled_by(table)
        known = rows.labels(table)
        groups = group_by_class(known) if balanced else None
        size = batch_size // num_ranks
        renderer = factory.make(rows, labeled_views, first_view=0, labels=known, batch_size=size)
        return LabeledStream(factory.keep_all(renderer), len(rows), groups)

    other, shuffle = factory.in_order(
        factory.make(
            unlabeled,
            unlabeled_views,
            first_view=_STREAM_VIEWS,
            labels=None,
            batch_size=mu * batch_size // num_ranks,
        ),
        train=True,
    )
    mark = fingerprint(
        (labeled, unlabeled), (labels,), (labeled_views, unlabeled_views),
        batch_size=batch_size, mu=mu, seed=seed, balanced=balanced, **factory.decisive,
    )  # fmt: skip
    return PairedLoader(
        labeled_stream,
        labels,
        other,
        len(unlabeled),
        batch_size,
        mu,
        seed,
        Share(rank, num_ranks, prefetch, timeout_s),
        _placer(device),
        factory.close,
        shuffle,
    ).marked(mark)


def _check(
    views: tuple[ViewPolicy, ...],
    num_threads: int | None,
    prefetch: int,
    timeout_s: float,
    rank: int,
    num_ranks: int,
) -> None:
    if not views:
        raise UserError("views: expected at least one policy, found none; pass presets of loaders.views")
    if num_threads is not None and num_threads < 1:
        raise UserError(
            f"num_threads: expected at least 1, found {num_threads}; leave it out to use every core"
        )
    if prefetch < 0 or timeout_s <= 0:
        raise UserError(
            f"expected prefetch >= 0 and timeout_s > 0, found {prefetch} and {timeout_s}; change them"
        )
    if not 0 <= rank < num_ranks:
        raise UserError(f"rank: expected 0 to {num_ranks - 1}, found {rank}; pass the process's own rank")


def _placer(device: str | torch.device) -> Callable[[Batch], Batch]:
    """Return what moves a batch to `device`."""
    target = torch.device(device)
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
