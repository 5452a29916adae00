"""No step of any recipe waits for the device, except for steps that log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.train.loop import _Run
from loaders import LoaderOptions
from loaders.packs import Pack
from recipes import barlow, transfer
from tests.recipes.no_sync import SynchronisedError, guarded_steps, no_sync
from tests.recipes.short_runs import SMALL, run_short
from tests.recipes.two_processes import small_runs

LABELLED = sorted(small_runs(Path(), Path()))
FIRST_LOG = {"transfer": [1, 2]}
"""Steps before a run logs: one; transfer has no such option, and logs at the end of a stage of two steps."""


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: float(x),
        lambda x: bool(x > 0),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.expand(3)[x.expand(3) > 0],
        lambda x: torch.where(x.expand(3) > 0),
        lambda x: x.numpy(),
        lambda x: torch.tensor(2.0),
        lambda x: 1 if x > 0 else 2,
    ],
)
def test_the_guard_sees_what_waits(wait: Callable[[torch.Tensor], Any]) -> None:
    x = torch.tensor(1.0)
    with pytest.raises(SynchronisedError), no_sync():
        wait(x)


def test_the_guard_sees_it_in_backward_too() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: grad * float(grad.sum()))
    with pytest.raises(SynchronisedError), no_sync():
        y.sum().backward()


def test_a_recipe_that_waits_is_found(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes import rotnet

    loss = rotnet.rotnet_loss

    def waiting(logits: torch.Tensor) -> Any:
        assert logits.abs().max().item() < 1e9
        return loss(logits)

    monkeypatch.setattr(rotnet, "rotnet_loss", waiting)
    with pytest.raises(SynchronisedError, match="item inside a step"), guarded_steps():
        run_short("rotnet", few_digits, tmp_path / "run", max_steps=1, probe_every_epochs=0)


@pytest.mark.parametrize("name", SMALL)
def test_self_supervised_steps_do_not_wait(name: str, few_digits: Path, tmp_path: Path) -> None:
    with guarded_steps() as taken:
        run_short(name, few_digits, tmp_path / "run", max_steps=2)
    assert taken == [1, 2]


@pytest.mark.parametrize("name", LABELLED)
def test_steps_with_labels_do_not_wait(
    name: str, digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def stop(*_: object) -> None:
        raise Enough

    monkeypatch.setattr(_Run, "_log", stop)
    with guarded_steps() as taken, pytest.raises(Enough):
        small_runs(digits_pack.path, tmp_path)[name]()
    assert taken == FIRST_LOG.get(name, [1])


def test_barlow_and_transfer_do_not_wait(few_digits: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"loader": LoaderOptions(num_threads=1), "pack": few_digits}
    config = barlow.Config(
        **shared,
        out=tmp_path / "barlow",
        backbone="test_resnet",
        resolution=16,
        batch_size=16,
        projector=(16, 8),
        max_steps=2,
        trackers=(),
        progress=False,
    )
    tuning = transfer.FineTuning(lr_backbone=0.01, lr_classifier=0.1, batchnorm="batch", steps=2)
    with guarded_steps() as taken:
        barlow.run(config)
        transfer.run(
            transfer.Config(
                **shared,
                init=tmp_path / "barlow",
                out=tmp_path / "transfer",
                labels_per_class=(2,),
                seeds=(0,),
                beside_scratch=False,
                test_split="train",
                allow_leak=True,
                method="two_stage",
                head_steps=2,
                pretrained=tuning,
            )
        )
    assert taken == [1, 2] * 3
