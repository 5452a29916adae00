"""Which backend renders a loader's batches, and what all of them are told alike."""

from __future__ import annotations

from typing import Literal, get_args
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from loaders.arguments import LoaderOptions, parse_device
from loaders.checks import check_one_of
from loaders.cores import available_cores
from loaders.cpu import CpuRenderer, DTypeName
from loaders.dali import DaliRenderer, check_dali
from loaders.epochs import UNLABELED, Renderer, Shuffle
from loaders.errors import UserError
from loaders.ffcv_loader import check_one_stream, find_shard
from loaders.ffcv_operations import import_ffcv
from loaders.measured import Measurement, encoding_of, find_measurement
from loaders.order import permute_stream
from loaders.packs import Split
from loaders.packs.remote import RemotePack
from loaders.stream import Fetching, over_stream
from loaders.threads import WorkerPool
from loaders.verified import are_pixels
from loaders.views.policy import ViewPolicy

BackendName = Literal["auto", "cpu", "dali", "ffcv", "stream"]


def explain_backend(
    backend: BackendName,
    device: str | torch.device = "cpu",
    splits: tuple[Split, ...] = (),
    views: tuple[ViewPolicy, ...] = (),
    dtype: DTypeName = "float32",
) -> str:
    """Return one line: which backend `build_loader` uses and why.

    Args:
        backend: as given to `build_loader`.
        device: likewise.
        splits: what the loader reads; packs in a store need the backend "stream".
        views: likewise; without them, "auto" looks up no measurement. Of a paired loader, the unlabelled.
        dtype: likewise.

    Raises:
        UserError: there is no such backend, or it cannot read where a pack lies.
    """
    streams = (views,) if views else ()
    return ": ".join(_choose(backend, parse_device(device), splits, streams, dtype))


def _choose(
    backend: BackendName,
    device: torch.device,
    splits: tuple[Split, ...],
    streams: tuple[tuple[ViewPolicy, ...], ...],
    dtype: str,
) -> tuple[str, str]:
    """Return the name of a backend, and why it is taken."""
    check_one_of("backend", backend, get_args(BackendName))
    remote = [split.pack.url for split in splits if isinstance(split.pack, RemotePack)]
    if remote and backend not in ("auto", "stream"):
        raise UserError(f"backend {backend}: expected packs on this machine, found {remote[0]}; use 'stream'")
    if remote and backend == "auto":
        return "stream", f"{remote[0]} lies in a store"
    on_gpu = device.type == "cuda"
    if backend == "dali":
        return "dali", f"asked for, {'decodes and augments on the GPU' if on_gpu else 'on the CPU'}"
    if backend != "auto":
        return backend, "asked for"
    why = "the fused kernels read every pack and every policy, in a fraction of DALI's time on a processor"
    try:
        encoding = encoding_of(splits[-1].pack) if splits else "jpeg"
        found = find_measurement(streams[-1], encoding, device) if streams else None
    except UserError as error:
        return "cpu", f"{why}; not measured: {error}"
    if found is None:
        other = "dali_gpu_backend" if on_gpu else "dali_backend"
        how = f"tools/bench_loaders.py --pack PACK --backends cpu {other} --remember"
        return "cpu", f"{why}; not measured here for such views: {how} does so"
    return _choose_measured(found, device, splits, streams, dtype)


def _choose_measured(
    found: Measurement,
    device: torch.device,
    splits: tuple[Split, ...],
    streams: tuple[tuple[ViewPolicy, ...], ...],
    dtype: str,
) -> tuple[str, str]:
    """Return the fastest backend that can serve a loader, if its lead over cpu exceeds the noise, and why."""
    rates = found.usable_on(device.type)
    cpu = next(rate for rate in rates if rate.backend == "cpu")
    taken, remarks = cpu, ""
    for rate in rates[: rates.index(cpu)]:
        if rate.images_per_s - cpu.images_per_s <= rate.spread + cpu.spread:
            remarks += f"; the lead of {rate.backend} is within the noise"
        elif reason := _refusal(rate.backend, splits, streams, dtype):
            remarks += f"; {rate.backend} cannot serve this loader: {reason}"
        else:
            taken = rate
            break
    others = ", ".join(f"{rate.backend} gave {rate.images_per_s:,.0f}" for rate in rates if rate is not taken)
    return taken.backend, (
        f"measured here on {found.date}, {taken.images_per_s:,.0f} images/s where {others} "
        f"({found.views} at {found.resolution} px, {found.encoding}){remarks}"
    )


def _refusal(
    backend: str, splits: tuple[Split, ...], streams: tuple[tuple[ViewPolicy, ...], ...], dtype: str
) -> str | None:
    """Return why a backend cannot serve a loader, in the words in which it would refuse; None if it can."""
    try:
        if backend == "dali":
            for views in streams:
                check_dali(views, dtype)
            for split in splits:
                are_pixels(split)
        else:
            import_ffcv()
            check_one_stream(splits)
            for split in splits:
                find_shard(split)
    except UserError as error:
        return str(error).split(";")[0]
    return None


class RendererFactory:
    """Makes the renderers of one loader and stops them all.

    Args:
        backend: whose.
        options: for each of them.
        splits: what the loader reads.
        streams: the views of each of them; those of the last, which has the most rows, decide.
    """

    def __init__(
        self,
        backend: BackendName,
        options: LoaderOptions,
        splits: tuple[Split, ...],
        streams: tuple[tuple[ViewPolicy, ...], ...],
    ) -> None:
        self.name, why = _choose(backend, options.device, splits, streams, options.dtype)
        self.choice = f"{self.name}: {why}"
        self._fetching = Fetching()
        self._options = options
        self._threads = options.num_threads or available_cores()
        self._executor: WorkerPool | None = None
        # Weakly, so that the pipeline of a label table that was swapped goes with its last batch.
        self._pipelines: WeakSet[DaliRenderer] = WeakSet()

    @property
    def decisive(self) -> dict[str, str]:
        """What of this the batches depend on, for their fingerprint.

        The backends cpu, stream and ffcv render the same bytes; stream alone has another order.
        """
        options = self._options
        renderer = f"dali on {options.device.type}" if self.name == "dali" else "cpu"
        order = f"windows of {options.window} shards" if self.name == "stream" else "full shuffle"
        return {"order": order, "renderer": renderer, "dtype": options.dtype}

    def make(
        self,
        split: Split,
        views: tuple[ViewPolicy, ...],
        *,
        first_view: int,
        labels: NDArray[np.int64] | None,
        batch_size: int,
        train: bool = True,
    ) -> Renderer:
        """Return a renderer.

        Args:
            split: its images.
            views: its policies.
            first_view: number of the first view in the random numbers.
            labels: int64 [len(split)] or None.
            batch_size: images of a batch on this rank.
            train: see the renderers.

        Raises:
            UserError: the backend cannot do it.
        """
        if self.name == "dali":
            return self._make_dali(split, views, first_view, labels, batch_size, train)
        return self.make_cpu(split, views, first_view=first_view, labels=labels, train=train)

    def in_order(self, renderer: Renderer, train: bool) -> tuple[Renderer, Shuffle]:
        """Return the renderer of an unlabelled or plain stream and the order it is asked in.

        Args:
            renderer: from `make`.
            train: whether rows are shuffled.

        Raises:
            UserError: a cache that backend stream cannot work with.
        """
        if self.name != "stream":
            return renderer, permute_stream
        assert isinstance(renderer, CpuRenderer)
        options = self._options
        return over_stream(renderer, options.seed, UNLABELED, options.window, train, self._fetching)

    def keep_all(self, renderer: Renderer) -> Renderer:
        """Return the renderer of a labelled stream, whose few rows are never block-shuffled."""
        return self._fetching.keep_all(renderer) if isinstance(renderer, CpuRenderer) else renderer

    def close(self) -> None:
        """Stop every renderer that was made; threads that hang are left behind after the time limit."""
        limit = self._options.timeout_s
        self._fetching.stop()  # first, so that no thread waits for a shard any more
        if self._executor is not None:
            self._executor.close(limit)
        self._fetching.close(limit)
        for renderer in list(self._pipelines):
            renderer.close(limit)

    def make_cpu(
        self,
        split: Split,
        views: tuple[ViewPolicy, ...],
        *,
        first_view: int,
        labels: NDArray[np.int64] | None,
        train: bool,
    ) -> CpuRenderer:
        """Return the cpu backend's renderer, which the ffcv backend uses too; see `make`."""
        if self._executor is None:
            self._executor = WorkerPool(self._threads, "sluice-loader")
        options = self._options
        return CpuRenderer(
            split,
            views,
            seed=options.seed,
            first_view=first_view,
            labels=labels,
            executor=self._executor,
            num_threads=self._threads,
            dtype=options.dtype,
            channels_last=options.channels_last,
            replace_bad=options.bad_images == "replace",
            train=train,
            verify=options.verify,
            num_batches=options.prefetch + 1,
        )

    def _make_dali(
        self,
        split: Split,
        views: tuple[ViewPolicy, ...],
        first_view: int,
        labels: NDArray[np.int64] | None,
        batch_size: int,
        train: bool,
    ) -> DaliRenderer:
        options = self._options
        renderer = DaliRenderer(
            split,
            views,
            seed=options.seed,
            first_view=first_view,
            labels=labels,
            batch_size=batch_size,
            num_threads=self._threads,
            device=options.device,
            dtype=options.dtype,
            channels_last=options.channels_last,
            replace_bad=options.bad_images == "replace",
            train=train,
            prefetch=options.prefetch,
            verify=options.verify,
        )
        self._pipelines.add(renderer)
        return renderer
