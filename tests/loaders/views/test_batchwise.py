"""MixUp and CutMix equal torchvision's, with torchvision's random numbers replaced by ours."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from loaders.common.errors import UserError
from loaders.views.batchwise import draw_cutmix, draw_mixup, mix_labels, mix_views


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(6, 3, 20, 28, generator=generator)
    return (views * 255).to(dtype), torch.tensor([0, 3, 1, 1, 2, 0])


def test_mixup_is_torchvisions():
    views, labels = batch()
    transform = v2.MixUp(alpha=0.5, num_classes=4)
    for step in range(5):
        mixing = draw_mixup(0.5, 7, step)
        transform.make_params = lambda _, share=mixing.share: {"lam": share}
        expected, expected_labels = transform(views, labels)
        torch.testing.assert_close(mix_views(views, mixing), expected)
        torch.testing.assert_close(mix_labels(labels, mixing, 4), expected_labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_cutmix_is_torchvisions(dtype):
    views, labels = batch(dtype)
    transform = v2.CutMix(alpha=1.0, num_classes=4)
    for step in range(20):
        mixing = draw_cutmix(1.0, 7, step, 20, 28)
        top, left, bottom, right = mixing.box
        transform.make_params = lambda _, m=mixing: {
            "box": (m.box[1], m.box[0], m.box[3], m.box[2]),
            "lam_adjusted": m.share,
        }
        expected, expected_labels = transform(views, labels)
        assert torch.equal(mix_views(views, mixing), expected)
        torch.testing.assert_close(mix_labels(labels, mixing, 4), expected_labels)
        assert mixing.share == pytest.approx(1 - (bottom - top) * (right - left) / (20 * 28))


def test_shares_and_boxes_are_distributed_as_torchvisions():
    ours = [draw_mixup(0.4, 0, step).share for step in range(2000)]
    assert stats.kstest(ours, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    theirs_drawn = [theirs.make_params([torch.zeros(2, 3, 64, 96)]) for _ in range(2000)]
    drawn = [draw_cutmix(1.0, 0, step, 64, 96) for step in range(2000)]
    pairs = [
        ([m.share for m in drawn], [p["lam_adjusted"] for p in theirs_drawn]),
        *(
            ([m.box[i] for m in drawn], [int(p["box"][j]) for p in theirs_drawn])
            for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))
        ),
    ]
    assert all(stats.ks_2samp(a, b).pvalue > 1e-3 for a, b in pairs)


def test_numbers_depend_on_seed_and_step_alone():
    assert draw_mixup(1.0, 3, 5) == draw_mixup(1.0, 3, 5)
    drawn = {draw_mixup(1.0, seed, step).share for seed in range(3) for step in range(3)}
    drawn |= {draw_cutmix(1.0, seed, step, 512, 512).share for seed in range(3) for step in range(3)}
    assert len(drawn) == 18


def test_the_batch_given_stays_and_its_layout_is_kept():
    views, _ = batch()
    views = views.to(memory_format=torch.channels_last)
    before = views.clone()
    for mixing in (draw_mixup(1.0, 0, 0), draw_cutmix(1.0, 0, 0, 20, 28)):
        assert mix_views(views, mixing).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(views, before)


def test_soft_labels_are_mixed_too():
    soft = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), 6), dtype=torch.float32)
    mixed = mix_labels(soft, draw_mixup(1.0, 0, 0), 4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(6))


def test_mistakes_are_named():
    views, labels = batch(torch.uint8)
    with pytest.raises(UserError, match="alpha"):
        draw_mixup(0.0, 0, 0)
    with pytest.raises(UserError, match="floating point"):
        mix_views(views, draw_mixup(1.0, 0, 0))
    with pytest.raises(UserError, match="found -1"):
        mix_labels(labels - 1, draw_mixup(1.0, 0, 0), 4)
    with pytest.raises(UserError, match=r"\[B, 4\]"):
        mix_labels(torch.zeros(6, 3), draw_mixup(1.0, 0, 0), 4)
