r"""Measure on how many images per core second networks train, and count their operations per image.

Example:
    python tools/bench_networks.py --networks compact_cnn wrn_28_2 --resolution 32 --json networks.jsonl \
        --peer cifar10-airbench/legacy/airbench94.py

Each round runs one forward and one backward pass of every network, so that other load on the machine affects
all networks. Weights are not updated. Time is the CPU time of this process. Views are random numbers.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.checks import Count, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line

PEER = "airbench94"


@dataclass(frozen=True)
class Config:
    """Measure backbones with a linear classifier of ten classes, by the gradients of cross-entropy."""

    networks: tuple[str, ...] = ("compact_cnn", "tiny_resnet", "wrn_28_2")
    """Names of the backbones."""
    peer: Path | None = None
    """Also measure this file: legacy/airbench94.py of a checkout of KellerJordan/cifar10-airbench."""
    resolution: Count = 32
    """Side of the views in pixels; the peer takes 32 only."""
    batch_size: Count = 128
    """Images per step."""
    rounds: Count = 7
    """Rounds, after one for warming up; the table has medians over them."""
    num_threads: Count = 1
    """Threads of torch."""
    json: Path | None = None
    """Also append a record for each network to this file."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a resolution that the peer cannot take."""
        check_numbers(self)
        if self.peer is not None and self.resolution != 32:
            raise UserError(f"resolution: expected 32, the peer's, found {self.resolution}; leave out --peer")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import platform

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.nets.backbones import build_backbone
from engine.train.autocast import of_hardware
from loaders.common.tables import print_table
from tools.bench.records import append_record, check_records
from tools.peers.airbench import load_peer, on_processor

_CLASSES = 10


@dataclass(frozen=True)
class Measured:
    """The measurements of one network.

    Attributes:
        img_per_core_s: images per second of CPU time, forward and backward; median over the rounds.
        slowest, fastest: images per second of CPU time in the slowest and in the fastest round.
        mflop: 10^6 operations of convolutions and matrix products per image, forward and backward; a
            multiply-add counts as two.
        parameters: number of trainable parameters.
    """

    network: str
    img_per_core_s: float
    slowest: float
    fastest: float
    mflop: float
    parameters: int


def networks_of(config: Config) -> dict[str, nn.Module]:
    """Build each backbone with a linear classifier, and the peer with its own, in training mode."""
    built: dict[str, nn.Module] = {}
    for name in config.networks:
        backbone = build_backbone(name, config.resolution)
        built[name] = nn.Sequential(backbone, nn.Linear(int(backbone.num_features), _CLASSES))  # type: ignore[arg-type]
    if config.peer is not None:
        with on_processor():
            built[PEER] = load_peer(config.peer).make_net()
    return {name: net.to(memory_format=torch.channels_last).train() for name, net in built.items()}


def step(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Run one forward and backward pass; return its CPU seconds."""
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=of_hardware() == "bf16"):
        logits = network(x)
    torch.autograd.backward(F.cross_entropy(logits.float(), labels))
    network.zero_grad(set_to_none=True)
    return time.process_time() - began


def measure(config: Config) -> list[Measured]:
    """Measure all networks, in turns."""
    torch.set_num_threads(config.num_threads)
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch_size, 3, config.resolution, config.resolution)
    x = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.arange(config.batch_size) % _CLASSES
    built, flops = networks_of(config), {}
    for name, network in built.items():  # counts operations, and is the round for warming up
        with FlopCounterMode(display=False) as counter:
            step(network, x, labels)
        flops[name] = counter.get_total_flops() / config.batch_size / 1e6
    rates: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(config.rounds):
        for name, network in built.items():
            rates[name].append(config.batch_size / step(network, x, labels))
    return [
        Measured(
            name, statistics.median(found), min(found), max(found), flops[name],
            sum(p.numel() for p in built[name].parameters() if p.requires_grad),
        )
        for name, found in rates.items()
    ]  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    config = command_line(Config, __doc__)
    check_records(config.json)
    found = measure(config)
    table = Table("network", "img per core s", "slowest, fastest", "MFLOP per image", "parameters")
    for row in found:
        shown = (f"{row.img_per_core_s:.0f}", f"{row.slowest:.0f}, {row.fastest:.0f}", f"{row.mflop:.0f}")
        table.add_row(row.network, *shown, f"{row.parameters:,}")
    print_table(Console(), table)
    facts = {
        "resolution": config.resolution, "batch_size": config.batch_size, "rounds": config.rounds,
        "num_threads": config.num_threads, "precision": of_hardware(), "machine": platform.machine(),
        "torch": str(torch.__version__),
    }  # fmt: skip
    for row in found:
        append_record(config.json, {**asdict(row), **facts})


if __name__ == "__main__":
    run_command(main)
