"""BatchNorm with statistics over all ranks, on CUDA and on the CPU.

torch.nn.SyncBatchNorm refuses CPU tensors, so processes joined by gloo get `GlobalBatchNorm` instead. Both
keep the names of BatchNorm's parameters and buffers: a checkpoint moves between 1 and N ranks unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from engine.train.distributed import world_size
from loaders.common.errors import UserError


class _GlobalNormalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with the moments of the rows of all ranks.

    Backward differentiates the sum of the ranks' losses (see `engine.train.distributed`): the means of dy
    and of dy * x_hat run over all ranks, while the gradients of weight and bias are this rank's share.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.to(_stats_dtype(x)), dim=axes, correction=0)
        count = torch.full_like(mean[:1], x.numel() // x.shape[1])
        parts = [torch.empty(2 * len(mean) + 1, dtype=mean.dtype) for _ in range(world_size())]
        dist.all_gather(parts, torch.cat([mean, variance, count]))
        mean, variance, count = _join_moments(torch.stack(parts), x.shape[1])
        y = F.batch_norm(x, mean.to(x.dtype), variance.to(x.dtype), weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        x_hat = (x.to(mean.dtype) - mean.view(shape)) * inverse_std.view(shape)
        dy_stats = dy.to(mean.dtype)
        own = torch.stack([dy_stats.sum(axes), (dy_stats * x_hat).sum(axes)])
        total = own.clone()
        dist.all_reduce(total)
        mean_dy, mean_dy_x_hat = (total / count).view(2, *shape)
        scale = inverse_std if weight is None else inverse_std * weight
        dx = (dy_stats - mean_dy - x_hat * mean_dy_x_hat) * scale.view(shape)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        return dx.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _stats_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _join_moments(parts: Tensor, num_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Join per-rank moments without the cancellation of E[x^2] - E[x]^2.

    Args:
        parts: [N, 2C + 1], each rank's mean [C], biased variance [C] and count of rows.
        num_features: C.

    Returns:
        mean [C], biased variance [C], count [] over all ranks.
    """
    means, variances, counts = parts[:, :num_features], parts[:, num_features:-1], parts[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the rows of all ranks for CPU tensors, optionally followed by timm's activation."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        """Take over the parameters, buffers and mode of `source`, sharing the tensors."""
        super().__init__()
        self.eps, self.momentum = source.eps, source.momentum
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(source, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))
        self.drop = source.drop if isinstance(source, BatchNormAct2d) else nn.Identity()
        self.act = source.act if isinstance(source, BatchNormAct2d) else nn.Identity()
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...]; statistics span the ranks while training."""
        if x.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {list(x.shape)}")
        if self.training:
            y, mean, variance, count = _GlobalNormalise.apply(x, self.weight, self.bias, self.eps)
            if self.running_mean is not None:
                self._track(mean, variance * count / (count - 1).clamp_min(1))
        else:
            own = self.running_mean is None
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, own, 0.0, self.eps
            )
        return self.act(self.drop(y))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)


BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, GlobalBatchNorm)


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm inside `module` by one whose statistics span all ranks.

    Args:
        module: changed in place, except when it is itself a BatchNorm.
        device: where it will run; decides between torch's SyncBatchNorm and `GlobalBatchNorm`.

    Returns:
        The module, or its replacement.

    Raises:
        UserError: a BatchNorm of a kind that neither replacement covers.
    """
    if world_size() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    if isinstance(module, GlobalBatchNorm):
        return module
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    if isinstance(module, BATCHNORM) and type(module) not in known:
        raise UserError(
            f"BatchNorm over ranks on the CPU: expected one of {[k.__name__ for k in known]}, found "
            f"{type(module).__name__}; train this network in one process or on CUDA"
        )
    if isinstance(module, known):
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        module.add_module(name, synchronise_batchnorm(child, device))
    return module
