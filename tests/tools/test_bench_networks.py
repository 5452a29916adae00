"""Networks measured in turns: the contents of the records, for our networks and a peer's."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from tests.in_process import run_script
from tools.bench_networks import Config

PEER = """
from torch import nn

class CifarLoader:
    def __init__(self, path, train=True, gpu=0): pass

def make_net():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(3600, 10, bias=False))
    net[0].weight.requires_grad = False
    return net.half().cuda()
"""


def test_records_say_operations_and_rates(tmp_path: Path) -> None:
    source, out = tmp_path / "airbench94.py", tmp_path / "networks.jsonl"
    source.write_text(PEER)
    few = ("--batch-size", 4, "--rounds", 2, "--json", out)
    ended = run_script("tools/bench_networks.py", "--networks", "tiny_resnet", "--peer", source, *few)
    assert ended.returncode == 0, ended.stderr
    ours, peer = (parse_json(line) for line in out.read_text().splitlines())
    assert (ours["network"], peer["network"]) == ("tiny_resnet", "airbench94")
    assert peer["parameters"] == 36_000
    # 4x27 fixed weights at 30x30 positions, forward only; a linear layer, forward and for its weights.
    positions, linear = 2 * 900 * 4 * 27, 2 * 36_000
    assert peer["mflop"] * 1e6 == pytest.approx(positions + 2 * linear, rel=0.01)
    for row in (ours, peer):
        assert 0 < row["slowest"] <= row["img_per_core_s"] <= row["fastest"]
    assert ours["parameters"] > 1e6


def test_the_peers_side_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resolution: expected 32, the peer's, found 64"):
        Config(peer=tmp_path, resolution=64)
