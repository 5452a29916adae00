"""Backbones by name, the projector's shape, and weights that survive saving and loading."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from engine.nets.backbones import Projector, build_backbone, keep_gradients_finite, load_backbone, resized
from engine.train.run_folder import save_backbone
from loaders.common.errors import UserError


@pytest.mark.parametrize("name", ["tiny_resnet", "resnet18"])
def test_residual_blocks_start_as_identity(name: str) -> None:
    network = build_backbone(name, 32)
    last = [m for n, m in network.named_modules() if n.endswith(("norm2", "bn2"))]
    assert len(last) == {"tiny_resnet": 4, "resnet18": 8}[name]
    assert all(not m.weight.any() for m in last)
    h = network(torch.randn(2, 3, 32, 32))
    assert h.shape == (2, network.num_features)
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("resolution", [7, 10, 16, 33])
def test_tiny_resnet_takes_any_size(resolution: int) -> None:
    """For odd side lengths, block and shortcut have the same output size, so that nothing is broadcast."""
    network = build_backbone("tiny_resnet", resolution)
    sizes: list[tuple[torch.Size, torch.Size]] = []
    for block in network.stages:
        block.conv2.register_forward_hook(lambda module, inputs, y: sizes.append((y.shape, y.shape)))
        block.shortcut.register_forward_hook(
            lambda module, inputs, y: sizes.append((sizes.pop()[0], y.shape))
        )
    network(torch.randn(2, 3, resolution, resolution))
    assert len(sizes) == 4
    assert all(block == shortcut for block, shortcut in sizes)


def test_averages_over_odd_sides_count_no_padding() -> None:
    """At 28 pixels a shortcut pools a map of side 7; exporters need `count_include_pad` to be False there."""
    network = build_backbone("tiny_resnet", 28).eval()
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.1)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        h = network(x)
        pools = [module for module in network.modules() if isinstance(module, nn.AvgPool2d)]
        assert [pool.count_include_pad for pool in pools] == [False] * 3
        for pool in pools:
            pool.count_include_pad = True
        assert torch.equal(network(x), h)


def test_a_transformer_takes_the_resolution_of_the_run() -> None:
    network = build_backbone("vit_tiny_patch16_224", 32)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 192)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "coatnet_pico_rw_224"])
def test_tables_of_positions_are_interpolated_for_another_resolution(name: str) -> None:
    network = build_backbone(name, 64).eval()
    larger, weights = resized(network, name, 96), network.state_dict()
    shapes = {key for key, tensor in larger.state_dict().items() if tensor.shape != weights[key].shape}
    assert shapes
    assert all("pos_embed" in key or "bias_table" in key for key in shapes)
    for key, tensor in larger.state_dict().items():
        assert key in shapes or torch.equal(tensor, weights[key]), key
    if "pos_embed" in shapes:
        side = 4 if weights["pos_embed"].shape[1] == 17 else int((weights["pos_embed"].shape[1] - 1) ** 0.5)
        wanted = resample_abs_pos_embed(weights["pos_embed"], [side * 3 // 2] * 2, [side] * 2)
        torch.testing.assert_close(larger.pos_embed, wanted)
    assert not larger.training
    assert larger(torch.randn(1, 3, 96, 96)).shape == network(torch.randn(1, 3, 64, 64)).shape


@pytest.mark.parametrize(
    ("name", "built", "wanted"),
    [("convit_tiny", 32, 48), ("vit_tiny_patch16_224", 32, 8), ("gan_discriminator_8", 16, 4)],
)
def test_a_resolution_that_a_network_cannot_take_is_one_line(name: str, built: int, wanted: int) -> None:
    network = build_backbone(name, built)
    with pytest.raises(UserError, match=rf"a resolution that {name} and its weights take, found {wanted} \("):
        resized(network, name, wanted)


def test_a_table_that_timm_does_not_size_is_found_when_the_network_is_built() -> None:
    with pytest.raises(UserError, match="a resolution that crossvit_tiny_240 and its weights take, found 64"):
        build_backbone("crossvit_tiny_240", 64)


def test_features_are_counted_where_timm_counts_others() -> None:
    network = build_backbone("mobilenetv3_small_050", 32)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, network.num_features)


def test_tiny_resnet_has_parameters_worth_training_and_few_enough_for_a_cpu() -> None:
    assert 1.0e6 < sum(p.numel() for p in build_backbone("tiny_resnet", 32).parameters()) < 1.5e6


def test_an_unknown_name_lists_close_ones() -> None:
    with pytest.raises(UserError, match=r"found 'resnet17'; close matches: .*resnet1") as caught:
        build_backbone("resnet17", 32)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="close matches: tiny_resnet"):
        build_backbone("tinyresnet", 32)
    with pytest.raises(UserError, match="list_models"):
        build_backbone("@@@@", 32)


def test_projector_is_the_papers() -> None:
    layers = list(Projector(4, (8, 9, 10)))
    assert [type(m).__name__ for m in layers] == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    linear = [m for m in layers if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(4, 8), (8, 9), (9, 10)]
    assert all(m.bias is None for m in linear)
    with pytest.raises(UserError, match="positive sizes"):
        Projector(4, ())


def test_saved_backbone_comes_back(tmp_path: Path) -> None:
    network = build_backbone("tiny_resnet", 32)
    network(torch.randn(4, 3, 32, 32))
    save_backbone(tmp_path, network, {"backbone": "tiny_resnet", "resolution": "32"})
    again = load_backbone(tmp_path)
    assert not again.training
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x), network.eval()(x))


def test_files_that_are_no_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none"):
        load_backbone(tmp_path)
    (tmp_path / "backbone.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_backbone(tmp_path)
    save_backbone(tmp_path, nn.Linear(1, 1), {})
    with pytest.raises(UserError, match="does not name its backbone"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("size", [(16, 5), (16, 16), (7, 7)])
def test_maps_narrower_than_a_stride_have_finite_gradients_in_bfloat16(size: tuple[int, int]) -> None:
    """On AVX-512 they were NaN, because oneDNN reads uninitialised memory for tensors of such sizes."""
    network, x = build_backbone("resnet18", 16), torch.randn(4, 3, *size)
    for _ in range(3):
        unwritten = [torch.full((2**power,), torch.nan) for power in range(8, 21, 2) for _ in range(8)]
        del unwritten
        with torch.autocast("cpu", torch.bfloat16):
            network(x).float().square().mean().backward()
        assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters())


def test_the_border_that_keeps_gradients_finite_changes_no_output() -> None:
    for width, stride in ((3, 2), (7, 4)):
        kernel = nn.Conv2d(4, 8, width, stride, width // 2)
        for size in range(1, 6):
            x = torch.randn(2, 4, 3, size)
            with torch.autocast("cpu", torch.bfloat16):
                expected = kernel(x)
                hooked = copy.deepcopy(kernel)
                keep_gradients_finite(hooked)
                assert hooked(x).shape == expected.shape
                torch.testing.assert_close(hooked(x), expected)
