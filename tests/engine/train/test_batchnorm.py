"""Synchronised BatchNorm: its choice, and its form for CUDA; test_distributed.py compares the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from engine.train import batchnorm
from engine.train.batchnorm import GlobalBatchNorm, forward_views, synchronise_batchnorm
from loaders.common.errors import UserError


def test_an_unknown_batchnorm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class OddNorm(nn.BatchNorm2d):
        pass

    monkeypatch.setattr("engine.train.batchnorm.world_size", lambda: 2)
    with pytest.raises(UserError, match="found OddNorm"):
        synchronise_batchnorm(nn.Sequential(OddNorm(3)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "on_a_host", "kind"),
    [("cpu", "4", GlobalBatchNorm), ("cuda", "4", nn.SyncBatchNorm), ("cuda", "2", GlobalBatchNorm)],
)
def test_ranks_of_one_host_with_cuda_take_torchs(
    monkeypatch: pytest.MonkeyPatch, device: str, on_a_host: str, kind: type[nn.Module]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", on_a_host)
    monkeypatch.setattr("engine.train.distributed.world_size", lambda: 4)
    monkeypatch.setattr("engine.train.batchnorm.world_size", lambda: 4)
    network = synchronise_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), torch.device(device))
    assert type(network[0]) is kind  # type: ignore[index]


def test_a_second_conversion_keeps_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage of a fine-tuning converts again, and timm's conversion only knows plain layers."""
    monkeypatch.setattr("engine.train.batchnorm.world_size", lambda: 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    network = nn.Sequential(BatchNormAct2d(3))
    for _ in range(2):
        network = synchronise_batchnorm(network, torch.device("cuda"))  # type: ignore[assignment]
        assert isinstance(network[0], nn.SyncBatchNorm)
        assert network.eval()(torch.randn(4, 3, 2, 2)).min() == 0.0


def test_without_ranks_views_pass_one_by_one() -> None:
    seen = []
    network = nn.Sequential(nn.BatchNorm1d(2))
    network.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    forward_views(network, (torch.randn(4, 2), torch.randn(4, 2)))
    assert seen == [4, 4]


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1 for _ in x.shape[2:]))


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    return mean, (variance + eps).rsqrt()


def _elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, eps: float, *,
    out: Tensor,
) -> Tensor:  # fmt: skip
    y = (x - _channels(mean, x)) * _channels(inverse, x)
    if weight is not None and bias is not None:
        y = y * _channels(weight, x) + _channels(bias, x)
    return out.copy_(y)


def _backward_reduce(dy: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, *rest: Any) -> tuple[Any, ...]:
    axes = [0, *range(2, x.ndim)]
    return dy.sum(axes), (dy * (x - _channels(mean, x))).sum(axes), None, None


def _backward_elemt(
    dy: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, sum_dy: Tensor,
    sum_dy_xmu: Tensor, count: Tensor,
) -> Tensor:  # fmt: skip
    assert count.dtype == torch.int32
    rows = count.sum()
    slope = inverse.square() * sum_dy_xmu / rows
    dx = dy - _channels(sum_dy / rows, x) - (x - _channels(mean, x)) * _channels(slope, x)
    return dx * _channels(inverse if weight is None else inverse * weight, x)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("num_views", [1, 2])
def test_the_form_for_cuda_is_the_form_for_processors(
    monkeypatch: pytest.MonkeyPatch, num_views: int, affine: bool
) -> None:
    """torch has these kernels only for CUDA, so functions with the same arithmetic stand in for them."""
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(own))
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda parts, own: parts.copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda total: None)
    norm = nn.BatchNorm2d(3, eps=0.5, affine=affine)  # large, so that a forgotten eps shows
    if affine:
        norm.weight.data.uniform_(0.5, 2.0)
        norm.bias.data.normal_()
    joined = GlobalBatchNorm(norm)
    joined.num_views = num_views
    x = (torch.randn(8, 3, 5, 5) * 2 + 7).contiguous(memory_format=torch.channels_last)
    target = torch.randn(8, 3, 5, 5)

    def results() -> list[Tensor]:
        joined.zero_grad()
        norm.reset_running_stats()
        own = x.clone().requires_grad_()
        y = joined(own)
        (y * target).sum().backward()
        assert own.grad is not None
        gradients = [p.grad.clone() for p in joined.parameters() if p.grad is not None]
        return [y.detach(), own.grad, *gradients, *(b.clone() for b in joined.buffers())]

    expected = results()
    kernels = {"stats": _stats, "elemt": _elemt, "backward_reduce": _backward_reduce}
    kernels["backward_elemt"] = _backward_elemt
    for name, stand_in in kernels.items():
        monkeypatch.setattr(torch, f"batch_norm_{name}", stand_in)
    monkeypatch.setattr(batchnorm, "_kernels", lambda x: batchnorm._OnCuda)
    found = results()
    assert len(found) == (7 if affine else 5)
    for one, other in zip(found, expected, strict=True):
        assert one.ndim < 4 or one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_views_of_unlike_lengths_are_not_cut_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(own))
    norm = GlobalBatchNorm(nn.BatchNorm1d(2))
    views = torch.randn(2, 2), torch.randn(6, 2) * 3 + 1
    for found, view in zip(forward_views(norm, views), views, strict=True):
        torch.testing.assert_close(found, nn.BatchNorm1d(2)(view))
    assert norm.num_views == 1


def test_a_batchnorm_without_bias_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda total: None)
    source = nn.BatchNorm1d(2)
    source.bias = None  # type: ignore[assignment]
    norm = GlobalBatchNorm(source)
    norm(torch.randn(4, 2)).square().sum().backward()
    assert norm.weight is not None
    assert norm.weight.grad is not None
