"""The pixels of a split spread over the ranks of a host, where each rank alone has no room for all of them.

Each rank decodes a part of the rows. On a CPU all ranks read and write one mapping of memory. On CUDA each
part lies on its rank's device, and the other ranks map it there (CUDA IPC), so kernels read any row by its
address.

How long memory lives: the kernel frees the mapping with the last rank that has it, and it has no name that a
killed rank could leave behind. Torch counts the tensors that other processes made of a part, and frees the
part when its own rank and all of them are done. This fails where a rank's process ends first, so at its end a
rank on CUDA waits for the ends of the others.
"""

from __future__ import annotations

import inspect
import mmap
import os
from collections import ChainMap
from collections.abc import Iterator, Sequence
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

SHARE = 0.8  # share of the memory that may be taken; training needs memory too


class Room(NamedTuple):
    """Bytes of pixels that may be held; as text, what an error says of them.

    Attributes:
        device: where.
        ranks: how many there are on this host.
        alone: for each rank by itself.
        together: for all ranks of this host, where they share the pixels.
    """

    device: torch.device
    ranks: int
    alone: int
    together: int

    def __str__(self) -> str:
        if self.ranks == 1:
            return f"{self.alone / 1e9:.3f} GB, {SHARE:.0%} of the memory of {self.device}"
        one, every, whose = "on one device", f"on the {self.ranks} devices of this host", "their memory"
        if in_one_memory(self.device):
            one, every = f"for each of the {self.ranks} ranks of this host", "for pixels that they share"
            whose = f"the memory of {self.device}"
        sizes = f"{self.alone / 1e9:.3f} GB {one}, or {self.together / 1e9:.3f} GB {every}"
        return f"{sizes}, {SHARE:.0%} of {whose}"


def find_room(options: LoaderOptions) -> Room:
    """Return the room for pixels where a loader's views are drawn; all ranks of a host find the same."""
    device, (_, ranks) = torch.device(options.device), local_ranks(options)
    if device.type == "cpu":
        total = int(SHARE * psutil.virtual_memory().total)
        alone, together = total // ranks, total
    elif ranks == 1:
        alone = together = int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    else:
        used = range(min(ranks, torch.cuda.device_count()))
        totals = [torch.cuda.get_device_properties(one).total_memory for one in used]
        alone = int(SHARE * min(totals))  # all ranks must decide alike
        # A launcher may show each rank its own device alone.
        together = ranks * alone if len(totals) == 1 else int(SHARE * sum(totals))
    if not hasattr(os, "memfd_create"):  # Linux alone has what `LocalRanks` needs
        together = alone
    return Room(device, ranks, alone, together)


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


def in_one_memory(device: torch.device) -> bool:
    """Tell whether all ranks of a host use the same memory."""
    return device.type == "cpu"


def allocate(size_bytes: int, device: torch.device) -> Tensor:
    """Return uint8 [size_bytes].

    Raises:
        UserError: the device has no room beside what else it holds.
    """
    try:
        return torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        raise UserError(
            f"backend resident: expected {size_bytes / 1e9:.3f} GB of free memory on {device} for pixels, "
            "found less; build the loader first, end other programs there, or use backend='hybrid'"
        ) from None


def take_part(ranks: LocalRanks, device: torch.device, places: NDArray[np.int64], total: int) -> Part:
    """Return the part of this rank, whose bytes are in proportion to its device's memory.

    Args:
        ranks: of the host; all make this call.
        device: of this rank.
        places: int64 [K], bytes of all rows before each row.
        total: bytes of all rows.

    Raises:
        UserError: there is no room, or a device that another one cannot read.
    """
    properties = None if device.type == "cpu" else torch.cuda.get_device_properties(device)
    said = ("cpu", 1) if properties is None else (str(properties.uuid), properties.total_memory)
    names, weights = zip(*ranks.exchange(said), strict=True)
    _check_peers(device, names)
    borders = np.cumsum(weights)[:-1] / sum(weights) * total
    edges = [0, *np.searchsorted(places, borders).tolist(), len(places)]
    first, last = edges[ranks.rank], edges[ranks.rank + 1]
    if in_one_memory(device):
        return Part(first, last, _one_mapping(ranks, total + SLACK), 0)
    began, ended = np.append(places, total)[[first, last]].tolist()
    return Part(first, last, allocate(ended - began + SLACK, device), began)


def gather_parts(
    ranks: LocalRanks, device: torch.device, part: Part, reasons: dict[int, str]
) -> tuple[list[Tensor], list[int], dict[int, str]]:
    """Wait until all ranks have decoded, and return what they have.

    Args:
        ranks: of the host; all make this call.
        device: of this rank.
        part: of this rank, decoded.
        reasons: what is wrong with rows of this part.

    Returns:
        The memory of the parts, the bytes of all rows before each, and what is wrong with rows of any part.
    """
    apart, own = not in_one_memory(device), ranks.rank
    # Torch counts the tensors made of a part, so each rank gets a handle of its own, and uses it once.
    handles = [_handle(part.memory) if apart and rank != own else None for rank in range(ranks.size)]
    origins, reasons_of_parts, handles_of_parts = zip(
        *ranks.exchange((part.origin, reasons, handles)), strict=True
    )
    parts = [part.memory]
    if apart:
        parts = [
            part.memory if rank == own else _open(handles_of_parts[rank][own], device)
            for rank in range(ranks.size)
        ]
        ranks.exchange(None)  # so that all learn of a rank that cannot map a part
        ranks.end_together()
    return parts, list(origins[: len(parts)]), dict(ChainMap(*reasons_of_parts))


def _one_mapping(ranks: LocalRanks, size_bytes: int) -> Tensor:
    """Return uint8 [size_bytes], memory that all ranks of the host read and write.

    It is no file, nor part of /dev/shm, whose size containers limit.
    """
    file = -1 if ranks.rank else os.memfd_create("sluice-pixels")
    try:
        if ranks.rank == 0:
            os.ftruncate(file, size_bytes)
        ranks.exchange(None)
        file = ranks.share_file(file)
        return torch.frombuffer(mmap.mmap(file, size_bytes), dtype=torch.uint8)
    finally:
        if file >= 0:
            os.close(file)


def _check_peers(device: torch.device, names: Sequence[str]) -> None:
    """Refuse devices that cannot read each other's memory, as far as this process sees them."""
    for number in range(0 if device.type == "cpu" else torch.cuda.device_count()):
        shared = str(torch.cuda.get_device_properties(number).uuid) in names and number != device.index
        if shared and not torch.cuda.can_device_access_peer(device, number):
            raise UserError(
                f"backend resident: expected devices that read each other's memory, found {device} without "
                f"access to cuda:{number}; use backend='hybrid', or 'cpu'"
            )


@contextmanager
def _mapping(device: torch.device) -> Iterator[None]:
    """Turn an error of CUDA into one line."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"backend resident: expected ranks that can map each other's memory, found that {device} cannot "
            f"({str(error).splitlines()[0]}); use backend='hybrid', or 'cpu'"
        ) from error


def _handle(part: Tensor) -> Any:
    """Return what `_open` needs."""
    with _mapping(part.device):
        return reduce_tensor(part)  # type: ignore[no-untyped-call]


def _open(handle: Any, device: torch.device) -> Tensor:
    """Map another rank's part so that kernels of this rank's device can read it.

    Torch would map it for the device that has the other process's number here: kernels of this device may not
    reach that memory, and a process to which a launcher shows one device has no other number.
    """
    rebuild, arguments = handle
    named = dict(zip(inspect.signature(rebuild).parameters, arguments, strict=True))
    with _mapping(device):
        part: Tensor = rebuild(**named | {"storage_device": device.index})
    return part
