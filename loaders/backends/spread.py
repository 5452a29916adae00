"""The pixels of a split spread over the ranks of a host, where each rank alone has no room for all of them.

Each rank decodes a part of the rows. On a CPU all ranks read and write one mapping of memory. On CUDA each
part lies on its rank's device, and the other ranks map it there (CUDA IPC), so kernels read any row by its
address.

How long memory lives: the kernel frees the mapping with the last rank that has it, and it has no name that a
killed rank could leave behind. Torch counts the tensors that other processes made of a part, and frees the
part when its own rank and all of them are done. On CUDA a part ends with its rank's process, whoever reads
it. So only loaders of all ranks read parts: ranks that train together have used their last batches when the
first of them ends. Where a rank fails, another may see an error of CUDA before it learns of the failure.
"""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from loaders.backends.decoding import SLACK
from loaders.backends.local_ranks import LocalRanks, local_ranks
from loaders.common.errors import UserError
from loaders.options import LoaderOptions

MEMORY_FRACTION = 0.8  # of the memory may be taken; training needs memory too


def memory_of(device: torch.device | int) -> tuple[str, int]:
    """Return what tells a device's memory from others on this host, and its bytes."""
    if isinstance(device, torch.device) and device.type == "cpu":
        return "cpu", psutil.virtual_memory().total
    properties = torch.cuda.get_device_properties(device)
    return str(properties.uuid), properties.total_memory


def find_room(options: LoaderOptions) -> tuple[int, int]:
    """Return how many bytes of pixels each rank of this host may hold by itself, and all together.

    All ranks must find the same. Where a launcher shows each rank one device, those are taken to be devices
    of one size; `load_parts` counts them.
    """
    device, (_, ranks) = torch.device(options.device), local_ranks(options)
    if device.type == "cpu":
        together = int(MEMORY_FRACTION * memory_of(device)[1])
        alone = together // ranks
    else:
        used = [device] if ranks == 1 else range(min(ranks, torch.cuda.device_count()))
        sizes = [int(MEMORY_FRACTION * memory_of(one)[1]) for one in used]
        alone = min(sizes)
        together = ranks * alone if len(sizes) == 1 else sum(sizes)
    linux = hasattr(os, "memfd_create")  # which alone has what `LocalRanks` needs
    return alone, together if linux else alone


class Part(NamedTuple):
    """What a rank decodes, and where to.

    Attributes:
        first: number of its first row.
        last: number of the row behind its last.
        memory: uint8, at least the bytes of these rows.
        origin: bytes of all rows before those that `memory` begins with.
    """

    first: int
    last: int
    memory: Tensor
    origin: int


def allocate(size_bytes: int, device: torch.device) -> Tensor:
    """Return uint8 [size_bytes].

    Raises:
        UserError: the device has no room beside what else it holds.
    """
    try:
        return torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # on a CPU torch raises no OutOfMemoryError
        why, *_ = str(error).split("\n")
        raise UserError(
            f"backend resident: expected {size_bytes / 1e9:.3f} GB of free memory on {device} for pixels, "
            f"found less ({why}); build the loader first, end other programs there, or use "
            "backend='hybrid'"
        ) from None


def load_parts(
    ranks: LocalRanks,
    device: torch.device,
    places: NDArray[np.int64],
    total: int,
    decode: Callable[[Part], None],
) -> tuple[list[Tensor], list[int]]:
    """Decode this rank's part, whose bytes are in proportion to its device's memory, and map those of others.

    Args:
        ranks: ranks of the host; all make this call, and exchange something more before they read.
        device: device of this rank.
        places: int64 [K], bytes of all rows before each row.
        total: bytes of all rows.
        decode: fills a part.

    Returns:
        The memory of the parts, and the bytes of all rows before each.

    Raises:
        UserError: there is no room, or memory that another rank cannot map.
    """
    memories, own = ranks.exchange(memory_of(device)), ranks.local_rank
    names, weights = zip(*memories, strict=True)
    room = int(MEMORY_FRACTION * sum(dict(memories).values()))
    if total > room:
        raise UserError(
            f"backend resident: expected pixels of at most {room / 1e9:.3f} GB, found {total / 1e9:.3f} GB: "
            f"the {ranks.size} ranks of this host have {len(set(names))} devices in all; give each rank its "
            "own, or use backend='hybrid'"
        )
    borders = np.cumsum(weights)[:-1] / sum(weights) * total
    edges = [0, *np.searchsorted(places, borders).tolist(), len(places)]
    if set(names) == {"cpu"}:
        memory = _one_mapping(ranks, total + SLACK)
        decode(Part(edges[own], edges[own + 1], memory, 0))
        return [memory], [0]
    _check_peers(device, names)
    origins = np.append(places, total)[edges].tolist()
    memory = allocate(origins[own + 1] - origins[own] + SLACK, device)
    decode(Part(edges[own], edges[own + 1], memory, origins[own]))
    # Torch counts the tensors made of a part, so each rank gets a handle of its own, and uses it once.
    with _mapping(device):
        given = [None if rank == own else reduce_tensor(memory) for rank in range(ranks.size)]  # type: ignore[no-untyped-call]
    handles = ranks.exchange(given)
    parts = [memory if rank == own else _open(one[own], device) for rank, one in enumerate(handles)]
    return parts, origins[:-1]


def _one_mapping(ranks: LocalRanks, size_bytes: int) -> Tensor:
    """Return uint8 [size_bytes], memory that all ranks of the host read and write: a file of rank 0.

    It stands on no disk, nor in /dev/shm, whose size containers limit. The files of other ranks stay empty.
    """
    with open(os.memfd_create("sluice-pixels"), "r+b") as own:
        path = ranks.exchange(f"/proc/{os.getpid()}/fd/{own.fileno()}")[0]
        with _mapping("cpu"), open(path, "r+b") as file:
            file.truncate(size_bytes)
            memory = mmap.mmap(file.fileno(), size_bytes)
        ranks.exchange(None)  # rank 0 closes its file when all have opened it
    return torch.frombuffer(memory, dtype=torch.uint8)


def _check_peers(device: torch.device, names: Sequence[str]) -> None:
    """Refuse devices that cannot read each other's memory, as far as this process sees them."""
    for number in range(torch.cuda.device_count()):
        shared = memory_of(number)[0] in names and number != device.index
        if shared and not torch.cuda.can_device_access_peer(device, number):
            raise UserError(
                f"backend resident: expected devices that read each other's memory, found {device} without "
                f"access to cuda:{number}; use backend='hybrid', or 'cpu'"
            )


@contextmanager
def _mapping(device: torch.device | str) -> Iterator[None]:
    """Turn an error of CUDA, of the system or of other arguments of torch's functions into one line."""
    try:
        yield
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        why, *_ = str(error).split("\n")
        raise UserError(
            f"backend resident: expected ranks that can map each other's memory, found that {device} cannot "
            f"({why}); use backend='hybrid', or 'cpu'"
        ) from error


def _open(handle: Any, device: torch.device) -> Tensor:
    """Map another rank's part, as torch gave it, so that kernels of this rank's device can read it.

    Torch would map it for the device that has the other process's number here: kernels of this device may not
    reach that memory, and a process to which a launcher shows one device has no other number.
    """
    rebuild, arguments = handle
    with _mapping(device):
        named = dict(zip(inspect.signature(rebuild).parameters, arguments, strict=True))
        part: Tensor = rebuild(**named | {"storage_device": device.index})
    return part
