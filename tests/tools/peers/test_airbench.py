"""The adapter runs the peer's file unchanged, on a processor; a stand-in has all that the adapter uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs import Pack
from tools.peers.airbench import Config, pixels_of, run

STAND_IN = """
import torch
from torch import nn

hyp = {"opt": {"train_epochs": 9.9}}
DTYPES = set()


class CifarLoader:
    def __init__(self, path, train=True, gpu=0):
        data = torch.load(f"{path}/{'train' if train else 'test'}.pt", map_location=torch.device(gpu))
        self.images, self.labels = data["images"].half() / 255, data["labels"]
        assert data["images"].dtype == torch.uint8 and len(data["classes"]) == 10


def make_net():
    network = nn.Sequential(nn.Linear(3072, 10), nn.Identity()).half().cuda()
    network[1].register_forward_hook(lambda module, inputs, y: DTYPES.add(y.dtype))
    return network


def evaluate(model, loader, tta_level=0):
    logits = model(loader.images.flatten(1))
    assert logits.dtype == torch.float32
    right = (logits.argmax(1) == loader.labels).float().mean().item()
    return right if tta_level == 0 else 0.75


def main(run):
    start = torch.cuda.Event(enable_timing=True)
    model = make_net()
    train, test = CifarLoader("cifar10"), CifarLoader("cifar10", train=False)
    assert hyp["opt"]["train_epochs"] == 2.0 and len(train.images) > len(test.images)
    pixels = train.images.flatten(1)
    assert (pixels.T @ pixels).dtype == torch.float32, "the covariance that whitening takes roots of"
    torch.cuda.synchronize()
    start.elapsed_time(start)
    evaluate(model, test)
    (found,) = DTYPES
    with open("dtype.txt", "w") as file:
        file.write(str(found))
    return evaluate(model, test, tta_level=2)


if __name__ == "__main__":
    main(0)
"""


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_peer_trains_on_the_packs_pixels(
    precision: str, digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.peers.airbench.of_hardware", lambda: precision)
    source = tmp_path / "airbench94.py"
    source.write_text(STAND_IN)
    before = torch.nn.Module.half, torch.Tensor.half, torch.cuda.synchronize
    config = Config(source=source, pack=digits_pack.path, out=tmp_path / "out", epochs=2.0)
    found = run(config)
    assert found["top1"] == 0.75
    of_network = {"no": "torch.float32", "bf16": "torch.bfloat16"}
    assert (tmp_path / "out" / "dtype.txt").read_text() == of_network[precision]
    assert 0.0 <= found["top1_one_view"] < 0.5
    assert found["train_cpu_s"] >= 0.0
    assert parse_json((tmp_path / "out" / "peer.json").read_bytes()) == found
    assert not list((tmp_path / "out").rglob("*.pt"))
    assert (torch.nn.Module.half, torch.Tensor.half, torch.cuda.synchronize) == before


def test_pixels_are_those_of_the_pack(digits_pack: Pack) -> None:
    images, labels = pixels_of(digits_pack, "test", 1)
    assert images.shape == (len(digits_pack.split("test")), 32, 32, 3)
    assert images.dtype == torch.uint8
    assert labels.tolist() == digits_pack.split("test").labels().tolist()
    assert 200 < int(images.max()) <= 255


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source: expected airbench94\.py, found no file"):
        Config(source=tmp_path / "none.py", pack=tmp_path, out=tmp_path / "out")
