r"""Train airbench94 (Jordan 2024, arXiv 2404.00498) as its author wrote it, but on a CPU and on a pack.

Example:
    git clone https://github.com/KellerJordan/cifar10-airbench
    python tools/peers/airbench.py --source cifar10-airbench/legacy/airbench94.py --pack packs/cifar10 \
        --out runs/airbench --epochs 9.9

The author's file is not edited: network, schedule, views, look-ahead and test-time views are its own.
Calls that need a GPU are replaced by their CPU counterparts: half precision becomes float32, with bfloat16
autocast of the network if the CPU supports bfloat16 in hardware.

OUT/peer.json has the test accuracy with and without test-time views, and core seconds to train and to test.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from loaders.common.checks import Count, Positive, check_numbers
from loaders.common.errors import UserError, run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train airbench94 and test it."""

    source: Path
    """The file legacy/airbench94.py of a checkout."""
    pack: Path
    """Pack with labelled splits `train` and `test` of 10 classes."""
    out: Path
    """Folder for peer.json and, while airbench94 runs, for the pixels that it reads."""
    epochs: Positive = 9.9
    """Training epochs; the author's value is 9.9."""
    seed: int = 0
    """Seed of torch."""
    num_threads: Count = 1
    """Threads of torch."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range and a missing source."""
        check_numbers(self)
        if not self.source.is_file():
            raise UserError(f"source: expected airbench94.py, found no file {self.source}; see --help")


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import torch
from torch import Tensor, nn

from engine.train.autocast import of_hardware
from loaders import LoaderOptions, build_loader, open_pack
from loaders.common.files import to_json, write_atomic
from loaders.packs import Pack
from loaders.views import presets

_SIDE = 32


def pixels_of(pack: Pack, split: str, num_threads: int) -> tuple[Tensor, Tensor]:
    """Return the images of a split at 32 x 32 pixels, uint8 [N, 32, 32, 3], and their labels, int64 [N]."""
    view = presets.evaluation(_SIDE, normalize=None)
    options = LoaderOptions(num_threads=num_threads)
    images, labels = [], []
    with build_loader(pack.split(split), (view,), 1000, options=options, mode="eval") as loader:
        for batch in loader.epoch(0):
            assert batch.labels is not None
            x = (255.0 * batch.views[0][batch.valid]).round().to(torch.uint8)
            images.append(x.permute(0, 2, 3, 1).contiguous())
            labels.append(batch.labels[batch.valid])
    return torch.cat(images), torch.cat(labels)


def load_peer(source: Path) -> Any:
    """Import the author's file as a module, and make its network and its data loader use the CPU."""
    spec = spec_from_file_location("airbench94", source)
    assert spec is not None
    assert spec.loader is not None
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)
    make_net = module.make_net
    module.make_net = lambda: _autocast(make_net())
    module.CifarLoader.__init__.__defaults__ = tuple(
        "cpu" if value == 0 else value for value in module.CifarLoader.__init__.__defaults__
    )
    return module


def _autocast(network: Any) -> Any:
    """Put a network's forward pass under bfloat16 autocast, if the CPU supports bfloat16 in hardware.

    The whitening stays in float32: in bfloat16 its covariance matrix has negative eigenvalues, which have no
    square root.
    """
    forward, enabled = network.forward, of_hardware() == "bf16"

    def in_bf16(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs: Tensor = forward(x)
        return outputs.float()

    network.forward = in_bf16
    return network


@contextmanager
def on_processor() -> Iterator[None]:
    """Inside the block, replace torch's GPU calls so that code for a GPU runs on the CPU."""

    def event(**_: Any) -> Any:
        return SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 0.0)

    with (
        mock.patch.object(nn.Module, "half", lambda module: module),
        mock.patch.object(nn.Module, "cuda", lambda module, device=None: module),
        mock.patch.object(Tensor, "half", Tensor.float),
        mock.patch.object(torch.cuda, "Event", event),
        mock.patch.object(torch.cuda, "synchronize", return_value=None),
    ):
        yield


def run(config: Config) -> dict[str, Any]:
    """Train and test airbench94; write peer.json and return its content."""
    torch.set_num_threads(config.num_threads)
    folder = config.out / "cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    pack = open_pack(config.pack)
    for split in ("train", "test"):
        images, labels = pixels_of(pack, split, config.num_threads)
        torch.save(
            {"images": images, "labels": labels, "classes": list(pack.classes)}, folder / f"{split}.pt"
        )
    source = config.source.resolve()
    peer = load_peer(source)
    peer.hyp["opt"]["train_epochs"] = config.epochs
    testing = 0.0
    plain: list[float] = []
    evaluate = peer.evaluate

    def timed(model: nn.Module, loader: Any, tta_level: int = 0) -> float:
        nonlocal testing
        began = time.process_time()
        top1 = float(evaluate(model, loader, tta_level))
        testing += time.process_time() - began
        if tta_level == 0:
            plain.append(top1)
        return top1

    peer.evaluate = timed
    torch.manual_seed(config.seed)
    with chdir(config.out), on_processor():
        began = time.process_time()
        top1 = peer.main(0)
        seconds = time.process_time() - began
    found = {
        "top1": top1, "top1_one_view": plain[-1], "train_cpu_s": seconds - testing, "test_cpu_s": testing,
        "epochs": config.epochs, "seed": config.seed,
    }  # fmt: skip
    write_atomic(config.out / "peer.json", to_json(found))
    for split in ("train", "test"):
        os.unlink(folder / f"{split}.pt")
    return found


def main() -> None:
    """Parse the command line, run the command, and print the result."""
    found = run(command_line(Config, __doc__))
    print(
        f"airbench94: {found['top1']:.2%} ({found['top1_one_view']:.2%} with one view), "
        f"{found['train_cpu_s']:.0f} core s of training"
    )


if __name__ == "__main__":
    run_command(main)
