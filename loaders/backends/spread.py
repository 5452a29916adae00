"""Spreads the pixels of a split over the ranks of a host, where no rank alone has room for all of them.

Each rank decodes a part of the rows. On a CPU all ranks read and write one mapping of memory. On CUDA each
part lies on its rank's device, and the other ranks map it there (CUDA IPC), so kernels read any row by its
address.

How long the memory lives: on a CPU, the kernel frees the mapping with the last rank that has it. The mapping
has no name, so a killed rank leaves nothing behind. On CUDA, torch counts the tensors that other processes
have made from a part, and frees the part when its own rank and these processes are done with it. But a part
ends with its rank's process, even if another rank still reads it. So parts are read only by loaders that all
ranks build: ranks that train together have used their last batches when the first of them ends. Where a rank
fails, another may see a CUDA error before it learns of the failure.
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

MEMORY_FRACTION = 0.8  # share of the memory that pixels may take; training needs memory too


def memory_of(device: torch.device | int) -> tuple[str, int]:
    """Return the name that identifies a device's memory on this host, and its size in bytes."""
    if isinstance(device, torch.device) and device.type == "cpu":
        return "cpu", psutil.virtual_memory().total
    properties = torch.cuda.get_device_properties(device)
    return str(properties.uuid), properties.total_memory


def find_room(options: LoaderOptions) -> tuple[int, int]:
    """Return how many bytes of pixels a rank of this host may hold alone, and all ranks together.

    All ranks must get the same result. Where a launcher shows each rank only one device, the devices are
    assumed to be distinct and of equal size; `load_parts` checks their real room.
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
    linux = hasattr(os, "memfd_create")  # only Linux has what `LocalRanks` needs
    return alone, together if linux else alone


class Part(NamedTuple):
    """The rows that a rank decodes, and the memory for their pixels.

    Attributes:
        first: number of the first row.
        last: number of the last row, plus 1.
        memory: uint8, large enough for the pixels of these rows.
        origin: where `memory` begins among the bytes of the whole split's pixels.
    """

    first: int
    last: int
    memory: Tensor
    origin: int


def allocate(size_bytes: int, device: torch.device) -> Tensor:
    """Return uint8 [size_bytes] on a device.

    Raises:
        UserError: the device has too little free memory.
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
    """Decode this rank's part, sized in proportion to its device's memory, and map the parts of other ranks.

    Args:
        ranks: the host's ranks, which all make this call. Before any of them reads pixels, they must exchange
            one more value, so that every part is decoded.
        places: int64 [K], where each row begins among the bytes of all rows.
        total: bytes of all rows.

    Returns:
        The memory of each part, or on a CPU that of all parts, and where each memory begins among the bytes
        of all rows.

    Raises:
        UserError: the devices have no room, or a rank cannot map another's memory.
        RankFailed: another rank failed or ended.
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
    # Torch counts the tensors made from a part, so each rank gets its own handle, and uses it once.
    with _mapping(device):
        given = [None if rank == own else reduce_tensor(memory) for rank in range(ranks.size)]  # type: ignore[no-untyped-call]
    handles = ranks.exchange(given)
    parts = [memory if rank == own else _open(one[own], device) for rank, one in enumerate(handles)]
    return parts, origins[:-1]


def _one_mapping(ranks: LocalRanks, size_bytes: int) -> Tensor:
    """Return uint8 [size_bytes], memory that all ranks of the host read and write.

    It is an anonymous file of rank 0: on no disk, and not in /dev/shm, whose size containers limit. The
    files that other ranks create here stay empty.
    """
    with open(os.memfd_create("sluice-pixels"), "r+b") as own:
        path = ranks.exchange(f"/proc/{os.getpid()}/fd/{own.fileno()}")[0]
        with _mapping("cpu"), open(path, "r+b") as file:
            file.truncate(size_bytes)
            memory = mmap.mmap(file.fileno(), size_bytes)
        ranks.exchange(None)  # rank 0 closes its file when all have opened it
    return torch.frombuffer(memory, dtype=torch.uint8)


def _check_peers(device: torch.device, names: Sequence[str]) -> None:
    """Refuse devices whose memory `device` cannot read, among those that this process sees."""
    for number in range(torch.cuda.device_count()):
        shared = memory_of(number)[0] in names and number != device.index
        if shared and not torch.cuda.can_device_access_peer(device, number):
            raise UserError(
                f"backend resident: expected devices that read each other's memory, found {device} without "
                f"access to cuda:{number}; use backend='hybrid', or 'cpu'"
            )


@contextmanager
def _mapping(device: torch.device | str) -> Iterator[None]:
    """Turn an error of CUDA or the system, or of arguments that torch has changed, into a `UserError`."""
    try:
        yield
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        why, *_ = str(error).split("\n")
        raise UserError(
            f"backend resident: expected ranks that can map each other's memory, found that {device} cannot "
            f"({why}); use backend='hybrid', or 'cpu'"
        ) from error


def _open(handle: Any, device: torch.device) -> Tensor:
    """Map another rank's part from torch's handle, so that kernels of this rank's device can read it.

    By itself, torch would map the part for the device with the number that the other rank used. This
    rank's kernels may not reach memory mapped there, and where a launcher shows each rank only its own
    device, that number may not exist here.
    """
    rebuild, arguments = handle
    with _mapping(device):
        named = dict(zip(inspect.signature(rebuild).parameters, arguments, strict=True))
        part: Tensor = rebuild(**named | {"storage_device": device.index})
    return part
