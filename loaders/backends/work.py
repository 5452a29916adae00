"""The interface of backends: the work of one stream of images, and the renderer that does this work."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from loaders.backends.fetching import Fetching
from loaders.backends.threads import MAY_HANG, WorkerPool, result_until
from loaders.batch import Batch
from loaders.common.cores import cores_per_rank
from loaders.common.errors import UserError
from loaders.options import LoaderOptions, Mode
from loaders.order.permutation import Positions, permute_stream
from loaders.packs import Split
from loaders.packs.stores.remote_pack import RemotePack
from loaders.views.policy import ViewPolicy

T = TypeVar("T")
ResultT = TypeVar("ResultT")

MAX_VIEWS = 256  # views that the counter of the random numbers can tell apart within a stream
LABELED, UNLABELED = 0, 1  # streams of the order; a plain loader uses the unlabelled one

# Maps epochs, positions in their orders, number of rows, seed and stream to positions in the split.
Shuffle = Callable[[Positions, Positions, int, int, int], Positions]


class Request(NamedTuple):
    """One batch of this rank.

    Attributes:
        positions: int64 [B], positions of the rows in the split.
        epochs: int64 [B], the epoch that each row's random numbers use.
        valid: bool [B]; False marks padding.
    """

    positions: NDArray[np.int64]
    epochs: NDArray[np.int64]
    valid: NDArray[np.bool_]


RequestOf = Callable[[int], Request]
"""Maps a step of an epoch to its request."""


@dataclass(frozen=True)
class Pending:
    """A batch on which threads are working.

    Attributes:
        under_way: futures of the threads' tasks.
        what, may_hang: name of the batch, and what may hang, for the message of `result_until`.
        collect: makes the batch once the tasks are done.
        cancel: gives up the batch.
    """

    under_way: Sequence[Future[Any]]
    what: str
    may_hang: str | Callable[[], str]
    collect: Callable[[], Batch]
    cancel: Callable[[], None]

    def result(self, timeout_s: float) -> Batch:
        """Wait for the batch.

        Raises:
            LoaderError: the batch took longer than `timeout_s`. An error of a thread is raised unchanged.
        """
        deadline = time.monotonic() + timeout_s
        for future in self.under_way:
            result_until(future, deadline, timeout_s, self.what, self.may_hang)
        return self.collect()


class Crew:
    """The threads that the streams of one loader share, and everything else that is closed with the loader.

    Attributes:
        num_threads: number of `threads`.
        threads: threads that decode and render, started when first needed.
        fetching: threads that fetch shards, started when first needed.
    """

    def __init__(self, options: LoaderOptions) -> None:
        """Make both groups of threads; none starts yet."""
        self.num_threads = options.num_threads or cores_per_rank()
        # Made now and not when first needed, so that a late call from a library's thread finds a closed pool.
        self.threads = WorkerPool(self.num_threads, "sluice-loader")
        self.fetching = Fetching()
        self._timeout_s = options.timeout_s
        # Weak references, so that the renderer of a replaced label table is freed with its last batch.
        self._renderers: WeakSet[Renderer] = WeakSet()

    def keep(self, renderer: Renderer) -> None:
        """Register a renderer, which is then closed with the loader."""
        self._renderers.add(renderer)

    def close(self) -> None:
        """Stop everything; threads that hang are left behind after the time limit."""
        self.fetching.stop()  # first, so that threads soon stop waiting for shards
        for renderer in list(self._renderers):
            renderer.close(self._timeout_s)
        self.threads.close(self._timeout_s)
        self.fetching.close(self._timeout_s)


@dataclass(frozen=True)
class Work:
    """One stream of images that a backend is to render.

    Attributes:
        split: the images.
        views: one policy per view; every image is decoded once for all of them.
        options: how the loader works.
        batch_size: images of a batch on this rank.
        crew: threads of the loader.
        labels: int64 [len(split)], -1 where there is none, or None for batches without labels.
        mode: "eval" marks a replaced row invalid, so that an evaluation does not count it.
        stream: `LABELED` or `UNLABELED`; the two streams of a pair draw different random numbers.
    """

    split: Split
    views: tuple[ViewPolicy, ...]
    options: LoaderOptions
    batch_size: int
    crew: Crew
    labels: NDArray[np.int64] | None = None
    mode: Mode = "train"
    stream: int = UNLABELED

    @property
    def first_view(self) -> int:
        """Number of the first view in the counter of the random numbers."""
        return self.stream * MAX_VIEWS

    @property
    def train(self) -> bool:
        """Whether this is training, where rows are shuffled and the replacement of a damaged row counts."""
        return self.mode == "train"

    @property
    def replace_bad(self) -> bool:
        """Whether a damaged row is replaced and counted, instead of raising an error."""
        return self.options.bad_images == "replace"


class Renderer(ABC):
    """Turns requests for rows into batches.

    Attributes:
        bad_rows: the damaged rows so far and what is wrong with each; the next readable rows replaced them.
        shuffle: function that orders the rows of training.
        may_hang: a clause for the error of a batch that takes too long.
    """

    may_hang: str = MAY_HANG
    bad_rows: dict[int, str]
    shuffle: Shuffle = staticmethod(permute_stream)

    def __init__(self, options: LoaderOptions) -> None:
        """Note the options, which say how far to work ahead and how long to wait."""
        self.options, self.bad_rows = options, {}

    @abstractmethod
    def submit(self, request: Request) -> Pending:
        """Begin a batch of the request's rows, in their order.

        The next readable row of the split replaces a damaged row, which is noted in `bad_rows`. In
        evaluation, the batch keeps the damaged row's number and marks it invalid. With
        `bad_images="raise"`, a damaged row raises a `BadImageError`.
        """

    def walk(self, steps: range, request_of: RequestOf) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch's steps in their order, working ahead.

        Raises:
            LoaderError: a batch cannot be made.
        """
        return run_ahead(
            steps,
            lambda step: self.submit(request_of(step)),
            lambda pending: pending.result(self.options.timeout_s),
            lambda pending: pending.cancel(),
            self.options.prefetch,
        )

    def close(self, timeout_s: float) -> None:
        """Free what does not end with the crew's threads; by default nothing.

        The loader calls this on every renderer that `work.crew.keep` registered. A thread that hangs is left
        behind after `timeout_s`.
        """
        return


class Backend(ABC):
    """A way to render views: one file of this folder, and one entry of the tuple `BACKENDS`.

    Attributes:
        name: its name in `LoaderOptions.backend`.
    """

    name: str

    def refusal(self, work: Work) -> UserError | None:
        """Return the error that says why the backend cannot do a work, or None if it can.

        This is called before the other methods, so a missing library is reported here. By default, a
        backend reads only packs on this machine.
        """
        pack = work.split.pack
        if not isinstance(pack, RemotePack):
            return None
        return UserError(
            f"backend {self.name}: expected packs on this machine, found {pack.url}; use 'stream'"
        )

    @abstractmethod
    def renderer(self, work: Work) -> Renderer:
        """Return the renderer of a work that `refusal` accepts."""

    def identity(self, work: Work) -> dict[str, str]:
        """Return the backend's entries in the fingerprint: `order` and `renderer`."""
        return {"order": "full shuffle", "renderer": "cpu"}


def run_ahead(
    steps: range,
    submit: Callable[[int], T],
    finish: Callable[[T], ResultT],
    cancel: Callable[[T], None],
    depth: int,
) -> Generator[ResultT, None, None]:
    """Yield the results of `steps` in order while up to `depth` later ones are under way."""
    under_way: deque[T] = deque()
    try:
        for step in steps:
            under_way.append(submit(step))
            if len(under_way) > depth:
                yield finish(under_way.popleft())
        while under_way:
            yield finish(under_way.popleft())
    finally:
        for pending in under_way:
            cancel(pending)
