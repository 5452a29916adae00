"""Weights trained by others: every file layout they come in, and every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from engine.nets.classifier import build_classifier, find_classifier, load_classifier, save_classifier
from engine.nets.description import Origin, read_description
from engine.nets.foreign import is_foreign, read_foreign
from engine.nets.starts import find_start
from loaders.common.errors import UserError
from loaders.common.notice import tell
from loaders.views.evaluation import EvaluationView

Weights = dict[str, Tensor]
VIT = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def told_anew() -> None:
    tell.cache_clear()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=10)
    for module in network.modules():  # statistics unlike those of a new network
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A small network with the parameter names of a ResNet, whose file is quickly written."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(VIT, num_classes=0).eval()


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def loaded(path: Path, name: str, resolution: int) -> nn.Module:
    return find_start(path, name).at(resolution).load()


def assert_same(network: nn.Module, expected: nn.Module, side: int) -> None:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = expected.forward_features(x)
        after = expected.forward_head(features, pre_logits=True)
        torch.testing.assert_close(network(x), after, atol=1e-3, rtol=1e-3)


# Wrappers and prefixes as the code of each project writes them; see engine.nets.weight_files.
LAYOUTS: dict[str, Callable[[Weights], object]] = {
    "plain": lambda w: w,
    "timm": lambda w: {"state_dict": under("module.", {k: v + 1 for k, v in w.items()}), "state_dict_ema": w},
    "torch.compile": lambda w: {"model": under("_orig_mod.", w)},
    "dino": lambda w: {
        "student": under("module.backbone.", {k: torch.zeros_like(v) for k, v in w.items()}),
        "teacher": under("backbone.", w) | {"head.last_layer.weight_g": torch.ones(3)},
        "args": argparse.Namespace(arch="resnet18"),
        "epoch": 3,
    },
    "moco v3": lambda w: {
        "state_dict": under("module.base_encoder.", w)
        | under("module.momentum_encoder.", {k: torch.zeros_like(v) for k, v in w.items()})
        | {"module.predictor.0.weight": torch.ones(4, 4)}
    },
    "moco": lambda w: {"state_dict": under("module.encoder_q.", w) | {"module.queue": torch.ones(2, 2)}},
    "solo-learn": lambda w: {"state_dict": under("backbone.", w) | {"projector.0.weight": torch.ones(4, 4)}},
    "solo-learn before": lambda w: {"state_dict": under("encoder.", w)},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_every_suffix_of_torch(suffix: str, tmp_path: Path, small: nn.Module) -> None:
    torch.save(small.state_dict(), tmp_path / f"w{suffix}")
    assert_same(loaded(tmp_path / f"w{suffix}", "test_resnet", 64), small, 64)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_wrappers_and_prefixes(layout: str, tmp_path: Path, small: nn.Module) -> None:
    torch.save(LAYOUTS[layout](small.state_dict()), tmp_path / "w.pth")
    assert_same(loaded(tmp_path / "w.pth", "test_resnet", 64), small, 64)


def test_torchvision_names_a_resnet_as_timm_does(tmp_path: Path) -> None:
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    network.fc = nn.Identity()
    found = loaded(tmp_path / "w.pth", "resnet18", 64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found(x), network(x))


def test_lightly_numbers_the_parts_of_a_resnet(tmp_path: Path) -> None:
    network = torchvision.models.resnet18().eval()
    backbone = nn.Sequential(*list(network.children())[:-1])  # lightly, examples/pytorch/simclr.py
    torch.save({"state_dict": under("backbone.", backbone.state_dict())}, tmp_path / "w.ckpt")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tmp_path / "w.ckpt", "resnet18", 64)(x), backbone(x).flatten(1))


def test_torchvision_names_a_vit_otherwise(tmp_path: Path) -> None:
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192}
    network = torchvision.models.VisionTransformer(**sizes, mlp_dim=768, num_classes=7).eval()
    nn.init.normal_(network.encoder.pos_embedding)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    start = find_start(tmp_path / "w.pth", VIT).at(32)
    found, head = start.load(), read_foreign(tmp_path / "w.pth", VIT).head()
    network.heads = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():  # both LayerNorms have an epsilon of 1e-6
        torch.testing.assert_close(found(x), network(x), atol=1e-5, rtol=1e-4)
    assert head is not None
    assert head[0].shape == (7, 192)


def test_mae_leaves_its_decoder_behind(tmp_path: Path, vit: nn.Module) -> None:
    # facebookresearch/mae, models_mae.py and util/misc.py (save_model).
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.ones(8, 192)}
    decoder |= {"decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_pos_embed": torch.zeros(1, 197, 8)}
    content = {"model": vit.state_dict() | decoder, "args": argparse.Namespace(), "epoch": 799}
    torch.save(content, tmp_path / "w.pth")
    assert_same(loaded(tmp_path / "w.pth", VIT, 224), vit, 224)


def test_dinov2_with_registers_is_renamed_by_timm(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    network = timm.create_model(name, num_classes=0, img_size=28).eval()
    weights = network.state_dict()
    # facebookresearch/dinov2, models/vision_transformer.py: the class token has its own position embedding.
    place = torch.randn(1, 1, weights["pos_embed"].shape[-1])
    theirs = {k: v for k, v in weights.items() if k not in ("reg_token", "cls_token", "pos_embed")}
    theirs |= {"register_tokens": weights["reg_token"], "cls_token": weights["cls_token"] - place[:, 0]}
    theirs |= {"pos_embed": torch.cat([place, weights["pos_embed"]], 1), "mask_token": torch.zeros(1, 384)}
    torch.save({"teacher": under("backbone.", theirs)}, tmp_path / "w.pth")
    assert_same(loaded(tmp_path / "w.pth", name, 28), network, 28)


def test_patches_of_another_size_and_one_channel_are_resampled(tmp_path: Path, vit: nn.Module) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, patch_size=8, img_size=64).state_dict()
    torch.save(theirs, tmp_path / "small.pth")
    found = loaded(tmp_path / "small.pth", VIT, 128)
    assert found.patch_embed.proj.weight.shape == (192, 3, 16, 16)
    resampled = timm.layers.resample_patch_embed(theirs["patch_embed.proj.weight"], (16, 16))
    torch.testing.assert_close(found.patch_embed.proj.weight.detach(), resampled)
    gray = timm.create_model("resnet18", num_classes=0, in_chans=1).eval()
    torch.save(gray.state_dict(), tmp_path / "gray.pth")
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tmp_path / "gray.pth", "resnet18", 64)(x.expand(1, 3, 64, 64)),
            gray(x),
            atol=1e-4,
            rtol=1e-4,
        )


def test_a_line_says_what_matched_and_under_which_licence(
    tmp_path: Path, resnet: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(resnet.state_dict()) | {"projector.weight": torch.ones(2)}
    del weights["layer4.1.bn2.bias"]
    torch.save(weights, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", "resnet18", 32)
    said = capsys.readouterr().err
    assert "99 of 100 tensors of resnet18" in said
    assert "left as they were: layer4.1.bn2.bias" in said
    assert "not used: projector.weight" in said
    assert "not stated" in said


def cut(weights: Weights, path: Path) -> None:
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-4000])


def cut_safetensors(weights: Weights, path: Path) -> None:
    safetensors.torch.save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-4000])


def script(weights: Weights, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but its files still exist
        torch.jit.save(torch.jit.trace(nn.ReLU(), torch.ones(1)), path)


class Code:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("run",)


def larger(weights: Weights, path: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), path)


def not_text(weights: dict[str, Tensor], path: Path) -> None:
    """Write a pickle with a string that is not UTF-8, whose error type needs five arguments."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X\x01\x00\x00\x00\xff.")
        archive.writestr("archive/version", b"3\n")


WRONG: dict[str, tuple[str, Callable[[Weights, Path], object], str]] = {
    "text": ("w.pth", lambda w, p: p.write_text("<html>not found</html>"), "is not a torch file"),
    "empty": ("w.pth", lambda w, p: p.touch(), "empty"),
    "half": ("w.pth", cut, "cut short"),
    "half safetensors": ("w.safetensors", cut_safetensors, "cut short"),
    "absent": ("w.safetensors", lambda w, p: None, "found none; give the path"),
    "code": ("w.pth", lambda w, p: torch.save({"model": w, "hook": Code()}, p), "pickled code"),
    "code in a file without a zip": (
        "w.pth",
        lambda w, p: torch.save({"model": w, "hook": Code()}, p, _use_new_zipfile_serialization=False),
        r"pickled code \(__builtin__.print\)",
    ),
    "code in a pickle": (
        "w.bin",
        lambda w, p: p.write_bytes(
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85R."
        ),
        r"pickled code \(posix.system\)",
    ),
    "code in a pickle that uses a name twice": (
        "w.bin",
        lambda w, p: p.write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93h\x00h\x01\x930N."),
        r"pickled code \(posix.system\)",
    ),
    "code in an old pickle": (
        "w.bin",
        lambda w, p: p.write_bytes(b"cposix\nsystem\n(Vtrue\ntR."),
        r"pickled code \(posix.system\)",
    ),
    "text that begins as a pickle does": (
        "w.pth",
        lambda w, p: p.write_text("cats\ndogs\nare not here"),
        "is not a torch file",
    ),
    "half without a zip": (
        "w.pth",
        lambda w, p: (
            torch.save(w, p, _use_new_zipfile_serialization=False),
            p.write_bytes(p.read_bytes()[:-4000]),
        ),
        "cut short",
    ),
    "a page for safetensors": (
        "w.safetensors",
        lambda w, p: p.write_text("<html>not found</html>"),
        "is not a safetensors file",
    ),
    "a length beyond all memory": (
        "w.bin",
        lambda w, p: p.write_bytes(b"\x80\x04\x96" + (2**62).to_bytes(8, "little")),
        "is not a torch file",
    ),
    "TorchScript": (
        "w.pt",
        script,
        r"is whole, but torch cannot read it .*TorchScript archives passed to ``torch.load``\.\); save its",
    ),
    "another protocol": (
        "w.pth",
        lambda w, p: torch.save(w, p, pickle_protocol=4),
        r"is whole, but torch cannot read it as weights \(Unsupported operand 149\)",
    ),
    "another zip": (
        "w.pth",
        lambda w, p: zipfile.ZipFile(p, "w").writestr("a.txt", "a"),
        "is whole, but torch cannot read it",
    ),
    "text that is none": (
        "w.pth",
        not_text,
        r"is whole, but torch cannot read it as weights \(.*invalid start byte",
    ),
    "numbers": ("w.pth", lambda w, p: torch.save({"epoch": 3}, p), "without tensors"),
    "a list": ("w.pth", lambda w, p: torch.save([1, 2], p), "without tensors"),
    "deeper": ("w.pth", larger, "parts that it lacks: layer1.2"),
    "wider": (
        "w.pth",
        lambda w, p: torch.save(timm.create_model("resnet50").state_dict(), p),
        "other shapes",
    ),
    "another": ("w.pth", lambda w, p: torch.save({"a.weight": torch.ones(3)}, p), "0 of 100 tensors"),
    "half the tensors": (
        "w.pth",
        lambda w, p: torch.save(dict(list(w.items())[: len(w) // 2]), p),
        "missing: layer",
    ),
    "not finite": (
        "w.pth",
        lambda w, p: torch.save(w | {"bn1.bias": torch.full_like(w["bn1.bias"], torch.nan)}, p),
        "bn1.bias",
    ),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_mistakes_end_in_one_line(mistake: str, tmp_path: Path, resnet: nn.Module, small: nn.Module) -> None:
    name, write, expected = WRONG[mistake]
    large = mistake in ("deeper", "wider", "another")  # these need a larger network
    write(dict((resnet if large else small).state_dict()), tmp_path / name)
    with pytest.raises(UserError, match=expected) as caught:
        loaded(tmp_path / name, "resnet18" if large else "test_resnet", 32)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_needs_the_name_of_its_network(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="name it by --backbone"):
        find_start(tmp_path / "w.pth")
    with pytest.raises(UserError, match="resnet18"):
        find_start(tmp_path / "w.pth", "resnet81")


def saved_for_hf(folder: Path, network: nn.Module) -> Path:
    config = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 48, 48),
        "crop_pct": 0.9,
        "interpolation": "bilinear",
    }
    names = [f"kind {number}" for number in range(10)]
    kept = {"pretrained_cfg": {"license": "cc-by-4.0"}, "label_names": names}
    timm.models.save_for_hf(network, folder, kept, data_config=config, safe_serialization=True)
    return folder


def test_what_belongs_to_the_weights_comes_with_them(tmp_path: Path, resnet: nn.Module) -> None:
    folder = saved_for_hf(tmp_path / "hub", resnet)
    assert is_foreign(folder)
    for path in (folder, folder / "model.safetensors"):
        start = find_start(path)
        assert start.view == EvaluationView(48, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", True)
        assert start.origin == Origin(str(path), "cc-by-4.0")
        assert_same(start.load(), resnet, 48)
    classes = ("kind 3", "kind 1")
    network = build_classifier("resnet18", start.view_at(32), classes, folder, keep_head=True)
    assert torch.equal(network.head.weight[0], resnet.fc.weight[3])
    save_classifier(tmp_path, network, "raw")
    described = read_description(tmp_path / "classifier.safetensors")
    assert described.view == start.view.at(32)
    assert described.origin == load_classifier(tmp_path, "raw").origin == Origin(str(folder), "cc-by-4.0")
    own = find_classifier(folder, None).eval()
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(own(x), resnet(x))
    assert own.classes[3] == "kind 3"


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_another_cut_than_the_centred_square_is_said(
    mode: str, tmp_path: Path, small: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_for_hf(tmp_path / "hub", small)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["crop_mode"] = mode
    (folder / "config.json").write_text(json.dumps(config))
    find_start(folder)
    assert (f"expects crop mode {mode}" in capsys.readouterr().err) == (mode != "center")


@pytest.mark.parametrize(("scheme", "name"), [("timm", "resnet18.a1_in1k"), ("hf", "somebody/resnet")])
def test_names_are_fetched_by_timm(
    scheme: str, name: str, tmp_path: Path, resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, create, asked = saved_for_hf(tmp_path / "hub", resnet), timm.create_model, []

    def fetch(wanted: str, pretrained: bool = False, **options: object) -> nn.Module:
        if not pretrained:
            return create(wanted, **options)
        asked.append(wanted)
        return create(f"local-dir:{folder}", pretrained=True)

    monkeypatch.setattr(timm, "create_model", fetch)
    monkeypatch.setattr("engine.nets.hub.why_silent", lambda: "")
    start = find_start(Path(f"{scheme}:{name}"), "resnet18")
    assert asked == [name if scheme == "timm" else f"hf-hub:{name}"]
    assert start.view.mean == (0.1, 0.2, 0.3)
    assert_same(start.load(), resnet, 48)
    with pytest.raises(UserError, match="that of --init"):
        find_start(Path(f"{scheme}:{name}"), "resnet34")


@pytest.mark.parametrize("safe", [True, False])
def test_a_cut_folder_is_one_line(safe: bool, small: nn.Module, tmp_path: Path) -> None:
    timm.models.save_for_hf(small, tmp_path, safe_serialization=safe)
    path = tmp_path / ("model.safetensors" if safe else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        UserError, match=r"expected whole weights of timm .*; fetch the folder again"
    ) as caught:
        read_foreign(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_by_url_are_not_sought_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, pretrained: bool) -> nn.Module:
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        UserError, match=r"from https://\S+\.pth, found none \(OSError: no route\); fetch that"
    ):
        read_foreign(Path("timm:gcvit_tiny.in1k"))
    assert "TORCH_HOME" in capsys.readouterr().err


def test_a_tag_without_its_weights_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    build_classifier("resnet18.a1_in1k", EvaluationView.usual(32), "ab")
    assert "random weights" in capsys.readouterr().err


def test_an_unreadable_description_is_no_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "barlow", "config": {}}))
    assert not is_foreign(tmp_path)
