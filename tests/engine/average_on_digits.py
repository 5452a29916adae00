"""Accuracy of the averaged weights of a network on the digits, for each rule for BatchNorm's statistics.

As a program it prints the table: PYTHONPATH=. python tests/engine/average_on_digits.py

One training gives all rows of the table, since the averages follow the weights without changing them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from engine.evaluate.predict import evaluation_mode
from engine.train.ema import MEAN, Statistics, make_target, update_ema, warmed_up

DECAY, ROWS, NUM_TEST = 0.999, 64, 445
RULES: dict[str, tuple[Statistics, Callable[[int, float], float]]] = {
    "copied statistics, no warm-up": ("copy", lambda step, decay: decay),
    "own statistics, no warm-up": ("own", lambda step, decay: decay),
    "averaged statistics, no warm-up": ("average", lambda step, decay: decay),
    "copied statistics, warm-up": ("copy", warmed_up),
    "own statistics, warm-up": ("own", warmed_up),
    "averaged statistics, warm-up": ("average", warmed_up),
    "averaged statistics, plain mean": ("average", lambda step, decay: warmed_up(step, decay, MEAN)),
}


def small_network() -> nn.Module:
    """Build two convolutions with BatchNorm that map images [B, 1, 8, 8] to logits [B, 10]."""
    layers: list[nn.Module] = []
    for size_in, size_out in ((1, 16), (16, 32)):
        layers += [
            nn.Conv2d(size_in, size_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(size_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images [N, 1, 8, 8] and labels [N], then test images and labels (the last 445)."""
    found = load_digits()
    x = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    y = torch.as_tensor(found.target, dtype=torch.int64)
    return x[:-NUM_TEST], y[:-NUM_TEST], x[-NUM_TEST:], y[-NUM_TEST:]


def accuracies(seed: int, steps: tuple[int, ...], rules: Collection[str] = RULES) -> dict[str, list[float]]:
    """Train at a constant learning rate; return test accuracies after `steps`, raw and for each rule."""
    torch.manual_seed(seed)
    x, y, test_x, test_y = digits()
    network = small_network()
    targets = {name: make_target(network) for name in rules}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    found: dict[str, list[float]] = {name: [] for name in ("raw", *rules)}
    for step in range(max(steps)):
        rows = torch.randint(len(x), (ROWS,))
        optimizer.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
        for name, target in targets.items():
            statistics, decay_of = RULES[name]
            if statistics == "own":
                with torch.no_grad():
                    target(x[rows])
            update_ema(target, network, decay_of(step, DECAY), statistics)
        if step + 1 in steps:
            for name, measured in {"raw": network, **targets}.items():
                with evaluation_mode(measured), torch.no_grad():
                    found[name].append(float((measured(test_x).argmax(1) == test_y).float().mean()))
    return found


def main() -> None:
    """Print the table."""
    steps, seeds = (50, 200, 400), (0, 1)
    runs = [accuracies(seed, steps) for seed in seeds]
    print("| accuracy after | " + " | ".join(f"{step} steps" for step in steps) + " |")
    for name in runs[0]:
        cells = [", ".join(f"{100 * run[name][i]:.1f}" for run in runs) for i in range(len(steps))]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
