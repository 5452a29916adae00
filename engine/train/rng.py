"""The state of every random generator of a process, as tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.train.distributed import gather_on_main, seed_everything


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Read the generators of torch (CPU and, on CUDA, the device), NumPy and Python.

    Returns:
        Tensors on the CPU, of the same names and sizes on every rank.
    """
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002 - the global generator
    words, position = numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]
    version, python_words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*words, position, numpy_state["has_gauss"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor(numpy_state["gauss"], dtype=torch.float64),
        "python": torch.tensor([version, *python_words, next_gauss is not None], dtype=torch.int64),
        "python_gauss": torch.tensor(next_gauss or 0.0, dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states from `rng_state`."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, state["numpy_gauss"].item()))  # noqa: NPY002
    version, *python_words, has_next = state["python"].tolist()
    random.setstate((version, tuple(python_words), state["python_gauss"].item() if has_next else None))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def gather_rng_states(device: torch.device) -> dict[str, Tensor]:
    """Collect the states of all ranks on rank 0; the others get nothing.

    Returns:
        "RANK.NAME" -> tensor on the CPU, with the names of `rng_state`.
    """
    states = enumerate(gather_on_main(rng_state(device)))
    return {f"{rank}.{name}": tensor for rank, state in states for name, tensor in state.items()}


def restore_rank(
    states: dict[str, Tensor], rank: int, device: torch.device, seed: int, step: int
) -> list[str]:
    """Restore the state of one rank from the result of `gather_rng_states`.

    If a run on a CPU resumes on CUDA, the rank's CUDA generator starts a new stream, as in `seed_rank`.

    Returns:
        A line for the user if there is a new stream, else no lines.
    """
    prefix = f"{rank}."
    own = {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}
    set_rng_state(own, device)
    if device.type != "cuda" or "cuda" in own:
        return []
    torch.cuda.manual_seed_all(_mixed(seed, rank, step))
    return ["no GPU before, one now: dropout draws new numbers"]


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed this process's generators by the seed of the run, the rank and the step."""
    seed_everything(_mixed(seed, rank, step))


def _mixed(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)
