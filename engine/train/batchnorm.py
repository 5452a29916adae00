"""BatchNorm with statistics over all ranks, on CUDA and on the CPU.

torch.nn.SyncBatchNorm refuses CPU tensors and exchanges the statistics of each view in a separate message.
So ranks on CPUs, and ranks on several hosts, get `GlobalBatchNorm` instead. Both classes keep the names of
BatchNorm's parameters and buffers, so a checkpoint fits any number of ranks unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from engine.train.distributed import is_one_host, world_size
from loaders.common.errors import UserError


class _OnCpu:
    """The steps of BatchNorm on tensors [B, C, ...]; statistics are at least float32."""

    @staticmethod
    def gather(own: Tensor) -> Tensor:
        """Return the tensors of all N ranks, stacked to [N, ...]."""
        parts = [torch.empty_like(own) for _ in range(world_size())]  # gloo needs a list of tensors
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance, [C] each."""
        variance, mean = torch.var_mean(_stats(x), dim=_axes(x), correction=0)
        return mean, variance

    @staticmethod
    def normalise(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor, eps: float
    ) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias.

        x holds V views, one after the other; `moments` [V, 2, C] are the mean and variance of each view.
        """
        views = zip(x.chunk(len(moments)), *moments.unbind(1), strict=True)
        return _joined(
            [
                F.batch_norm(view, mean, var, weight, bias, training=False, eps=eps)
                for view, mean, var in views
            ]
        )

    @staticmethod
    def sums(dy: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of dy and of dy * (x - mean) over everything but channels, [C] each."""
        dy = _stats(dy)
        return dy.sum(_axes(x)), (dy * (_stats(x) - _wide(mean, x))).sum(_axes(x))

    @staticmethod
    def gradient(
        dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor, sums: Tensor,
        count: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the gradient of x; `sums` and `count` (values per channel) are over all ranks."""
        mean_dy, mean_dy_xmu = sums / count
        slope = mean_dy_xmu * inverse_std.square()
        scale = inverse_std if weight is None else inverse_std * weight
        dx = _stats(dy) - _wide(mean_dy, x) - (_stats(x) - _wide(mean, x)) * _wide(slope, x)
        return (dx * _wide(scale, x)).to(x.dtype)


class _OnCuda:
    """The same steps by the kernels of torch's SyncBatchNorm, which store no intermediate feature maps."""

    @staticmethod
    def gather(own: Tensor) -> Tensor:
        parts = own.new_empty(world_size(), len(own))
        dist.all_gather_into_tensor(parts, own)
        return parts

    @staticmethod
    def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        mean, inverse_std = torch.batch_norm_stats(x, eps)
        return mean, inverse_std.pow(-2) - eps

    @staticmethod
    def normalise(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor, eps: float
    ) -> Tensor:
        y = torch.empty_like(x)
        views = zip(x.chunk(len(moments)), y.chunk(len(moments)), *moments.unbind(1), strict=True)
        for view, out, mean, variance in views:
            torch.batch_norm_elemt(view, weight, bias, mean, (variance + eps).rsqrt(), eps, out=out)
        return y

    @staticmethod
    def sums(dy: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.batch_norm_backward_reduce(dy, x, mean, inverse_std, None, True, False, False)
        return found[0], found[1]

    @staticmethod
    def gradient(
        dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse_std: Tensor, sums: Tensor,
        count: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = count.to(torch.int32)
        return torch.batch_norm_backward_elemt(dy, x, mean, inverse_std, weight, sums[0], sums[1], rows)


class _GlobalNormalise(torch.autograd.Function):
    """Computes (x - mean) / sqrt(variance + eps) * weight + bias with each view's moments over all ranks.

    Backward differentiates the sum of the losses of all ranks (see `engine.train.distributed`). So the means
    of dy and of dy * x_hat are taken over all ranks. The gradients of weight and bias are only this rank's
    share, since DistributedDataParallel adds the shares up.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, num_views: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, moments [V, 2, C], and the number of values per channel of a view over all ranks, [1]."""
        kernels = _kernels(x)
        x = _dense(x)
        views = x.chunk(num_views)
        moments = torch.stack([torch.stack(kernels.moments(view, eps)) for view in views])
        count = moments.new_full((1,), views[0].numel() // x.shape[1])
        own = torch.cat([moments.flatten(), count])
        moments, count = _join_moments(kernels.gather(own), moments.shape)
        y = kernels.normalise(x, weight, bias, moments, eps)
        ctx.save_for_backward(x, weight, moments[:, 0], (moments[:, 1] + eps).rsqrt(), count)
        ctx.mark_non_differentiable(moments, count)
        ctx.has_bias = bias is not None
        return y, moments, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight, means, inverse_stds, count = ctx.saved_tensors
        kernels = _kernels(x)
        parts = list(zip(_dense(dy).chunk(len(means)), x.chunk(len(means)), means, inverse_stds, strict=True))
        own = torch.stack([torch.stack(kernels.sums(*part)) for part in parts])
        total = own.clone()
        dist.all_reduce(total)
        gradients = [
            kernels.gradient(dy_view, view, weight, mean, inverse_std, sums, count)
            for (dy_view, view, mean, inverse_std), sums in zip(parts, total, strict=True)
        ]
        dx = _joined(gradients)
        dw = None if weight is None else (own[:, 1] * inverse_stds).sum(0).to(weight.dtype)
        db = own[:, 0].sum(0).to(x.dtype if weight is None else weight.dtype) if ctx.has_bias else None
        return dx, dw, db, None, None


def _kernels(x: Tensor) -> type[_OnCpu] | type[_OnCuda]:
    return _OnCuda if x.is_cuda else _OnCpu


def _joined(views: list[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(views)


def _dense(x: Tensor) -> Tensor:
    """Return x contiguous; a channels-last x stays channels-last."""
    is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if is_last else x.contiguous()


def _stats(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(-1, *(1 for _ in x.shape[2:]))


def _join_moments(parts: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Join per-rank moments without the cancellation of E[x^2] - E[x]^2.

    Args:
        parts: [N, V * 2 * C + 1]; from each rank, the means and biased variances of its views, and the number
            of values per channel of a view.
        shape: (V, 2, C).

    Returns:
        The moments [V, 2, C] and the number of values per channel of a view [1], over all ranks.
    """
    counts = parts[:, -1].view(-1, 1, 1)
    count = counts.sum()
    means, variances = parts[:, :-1].view(-1, *shape).unbind(2)
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return torch.stack([mean, variance], 1), count.view(1)


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the rows of all ranks, followed by timm's dropout and activation if the source has them.

    Attributes:
        num_views: number of views that a batch holds, one after the other. Each view is normalised by its own
            statistics and updates the running statistics in turn, as in a separate forward pass.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, source: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        """Take over the parameters, buffers and mode of `source`; the tensors are shared, not copied."""
        super().__init__()
        self.eps, self.momentum, self.num_views = source.eps, source.momentum, 1
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(source, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))
        self.drop = source.drop if isinstance(source, BatchNormAct2d) else nn.Identity()
        self.act = source.act if isinstance(source, BatchNormAct2d) else nn.Identity()
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [num_views * B, C, ...]; in training mode the statistics span all ranks."""
        if x.ndim < 2 or len(x) % self.num_views:
            raise ValueError(f"expected [{self.num_views} * B, C, ...], got {list(x.shape)}")
        if self.training:
            y, moments, count = _GlobalNormalise.apply(x, self.weight, self.bias, self.eps, self.num_views)
            if self.running_mean is not None:
                for mean, variance in moments:
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


def forward_views(network: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """Apply a network to several views, each normalised by its own BatchNorm statistics.

    With `GlobalBatchNorm` the views share one forward pass, which saves messages between the ranks.

    Args:
        network: maps [B, ...] to [B, ...]; apart from BatchNorm, its rows are independent.
        views: [B, ...] each; if their numbers of rows differ, the views pass one by one.

    Returns:
        The output for each view.
    """
    norms = [part for part in network.modules() if isinstance(part, GlobalBatchNorm)]
    if not norms or len({len(view) for view in views}) > 1:  # a shared pass needs views of one length
        return [network(view) for view in views]
    for norm in norms:
        norm.num_views = len(views)
    try:
        return list(network(torch.cat(list(views))).chunk(len(views)))
    finally:
        for norm in norms:
            norm.num_views = 1


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm inside `module` by one whose statistics span all ranks, if there are several.

    Args:
        module: changed in place, except when it is itself a BatchNorm.
        device: device on which it will run. On CUDA, ranks of one host get torch's SyncBatchNorm: between
            them a message costs less than the copy with which `GlobalBatchNorm` joins the gradients of views.

    Returns:
        The module, or its replacement if it is itself a BatchNorm.

    Raises:
        UserError: `GlobalBatchNorm` is needed and does not support a kind of BatchNorm in the module.
    """
    if world_size() == 1:
        return module
    if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
        return module  # a second conversion would lose timm's activations
    if device.type == "cuda" and is_one_host():
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    if isinstance(module, GlobalBatchNorm):
        return module
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    if isinstance(module, BATCHNORM) and type(module) not in known:
        raise UserError(
            f"BatchNorm over ranks: expected one of {[k.__name__ for k in known]}, found "
            f"{type(module).__name__}; train this network in one process or on one host with CUDA"
        )
    if isinstance(module, known):
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        module.add_module(name, synchronise_batchnorm(child, device))
    return module
