"""Exporting a classifier or backbone to other libraries' formats, comparing outputs, and loading the files.

Every format keeps the name of the backbone, the view of images, the names of the classes, and the origin of
the weights (timm and hf: only its licence).

timm          one .safetensors file with timm's names; its metadata is timm's configuration
hf            a folder that timm, and transformers' TimmWrapper, load: config.json, model.safetensors
torchvision   a state dict with torchvision's names, and a .json beside it with all that is no tensor
onnx          a graph with a batch of any size
torch_export  a program of torch.export, for a batch of any size
safetensors   this project's own file
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import timm
import torch
import torchvision
from timm.models import save_for_hf
from torch import Tensor, nn

from engine.nets.adapt import TORCHVISION_VIT, renamed
from engine.nets.backbones import architecture, build_backbone
from engine.nets.classifier import Classifier, find_classifier
from engine.nets.description import (
    METADATA_KEY,
    describe_origin,
    metadata_of,
    metadata_of_classifier,
    parse_description,
)
from engine.nets.names import OURS, discriminator_width
from engine.nets.weights import write_tensors
from loaders.common.errors import MissingBackendError, UserError, brief
from loaders.common.files import publish, to_json, write_atomic
from loaders.common.json_text import parse_json
from loaders.common.notice import tell

TOLERANCE = 1e-4
"""Largest difference allowed between a logit of a network and of its export, relative to the largest
magnitude of a logit if that is above 1."""
_BROKEN = (BadZipFile, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error)
"""Exceptions that reading a damaged program raises."""
_TORCHVISION_VITS = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
}


def description_text(network: Classifier) -> str:
    """Return the description of a network as one JSON text."""
    text = metadata_of_classifier(network.backbone_name, network.view, network.classes, network.origin)
    return text[METADATA_KEY]


def as_timm(network: Classifier, x: Tensor) -> nn.Module:
    """Return timm's own network with the weights of a classifier.

    Args:
        network: classifier in evaluation mode, on the CPU.
        x: views [B, 3, H, W] on which both networks are compared.

    Raises:
        UserError: the network is this project's own, its classifier in timm is no linear layer, or the logits
            differ.
    """
    name = architecture(network.backbone_name)
    if name in OURS or discriminator_width(name) is not None:
        raise UserError(
            f"export: expected a network of timm, found {name}, which is this project's own; export it as "
            "onnx, torch_export or safetensors"
        )
    known = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": network.resolution} if known and known.fixed_input_size else {}
    model: Any = timm.create_model(name, num_classes=network.num_classes, **size).eval()
    head = model.pretrained_cfg.get("classifier")
    weights = dict(network.backbone.state_dict())
    if network.num_classes:  # else a backbone alone
        weights |= {f"{head}.weight": network.head.weight, f"{head}.bias": network.head.bias}
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"export: expected a linear classifier in timm's {name}, found another; export it as onnx"
        ) from None
    check_equal(network, model, x, "timm's network")
    built: nn.Module = model
    return built


def write_timm(network: Classifier, x: Tensor, out: Path) -> None:
    """Write one file that `timm.create_model(NAME, num_classes=C, checkpoint_path=FILE)` loads."""
    model = as_timm(network, x)
    with _whole(out) as partial:
        write_tensors(
            partial, model.state_dict(), {"timm": json.dumps(_timm_config(network), sort_keys=True)}
        )


def write_hf(network: Classifier, x: Tensor, out: Path) -> None:
    """Write a folder that transformers loads, and timm as `local-dir:FOLDER` with `pretrained=True`."""
    config = _timm_config(network)
    kept: dict[str, Any] = {"pretrained_cfg": {"license": config["pretrained_cfg"].get("license")}}
    kept["label_names"] = list(network.classes)
    model = as_timm(network, x)
    with _whole(out) as partial:
        save_for_hf(model, str(partial), kept, data_config=config["pretrained_cfg"], safe_serialization=True)
        written = parse_json((partial / "config.json").read_bytes())
        written["model_args"].pop("num_classes", None)  # transformers also passes the one outside model_args
        write_atomic(partial / "config.json", to_json(written))


def _timm_config(network: Classifier) -> dict[str, Any]:
    view = network.view
    shown: dict[str, Any] = {
        "input_size": (3, view.resolution, view.resolution),
        "mean": view.mean,
        "std": view.std,
        "crop_pct": view.crop,
        "interpolation": view.interpolation,
        "num_classes": network.num_classes,
    }
    if network.origin is not None and network.origin.licence:
        shown["license"] = network.origin.licence
    named = {"architecture": architecture(network.backbone_name), "num_classes": network.num_classes}
    return named | {"label_names": list(network.classes), "pretrained_cfg": shown}


def write_torchvision(network: Classifier, x: Tensor, out: Path) -> None:
    """Write a state dict that torchvision's network of the same architecture loads.

    Raises:
        UserError: see `as_timm`; or torchvision has no such network, `network` is a backbone alone, or the
            description would replace another file.
    """
    beside = out.with_suffix(".json")
    if beside.exists():
        raise UserError(
            f"export: expected nothing at {beside}, where the description of {out.name} goes, found a file; "
            "give another --out"
        )
    name = architecture(network.backbone_name)
    weights = dict(as_timm(network, x).state_dict())
    theirs, options = name, {}
    if name in _TORCHVISION_VITS:
        theirs, options = _TORCHVISION_VITS[name], {"image_size": network.resolution}
    if not network.num_classes:
        raise UserError(
            f"export: expected a classifier, as torchvision's {name} has one, found a backbone; export it "
            "as timm or hf"
        )
    try:
        model = torchvision.models.get_model(theirs, num_classes=network.num_classes, **options).eval()
        if name in _TORCHVISION_VITS:
            weights = {key: weights[renamed(key, TORCHVISION_VIT)] for key in model.state_dict()}
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError, TypeError):
        raise UserError(
            f"export: expected a network that torchvision has too, such as resnet50, found {name}; export it "
            "as timm, hf or onnx"
        ) from None
    check_equal(network, model, x, "torchvision's network")
    described = {"torchvision": theirs, **parse_json(description_text(network).encode())}
    with _whole(out) as partial:
        torch.save(weights, partial)
        write_atomic(beside, to_json(described))


def write_safetensors(network: Classifier, x: Tensor, out: Path) -> None:
    """Write this project's own file."""
    own = {"backbone": network.backbone_name, "view": asdict(network.view), **describe_origin(network.origin)}
    described, weights = metadata_of(own), network.backbone.state_dict()
    if network.num_classes:
        described, weights = {METADATA_KEY: description_text(network)}, network.state_dict()
    with _whole(out) as partial:
        write_tensors(partial, weights, described)


def write_torch_export(network: Classifier, x: Tensor, out: Path) -> None:
    """Write a program of torch.export for a batch of any size, and compare its logits with the network's.

    Raises:
        UserError: the logits differ; no file is left then.
    """
    _tell_long("torch_export")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    with _whole(out) as partial:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a warning about weights in channels_last, which does not matter here
            torch.export.save(program, partial, extra_files={METADATA_KEY: description_text(network)})
        check_equal(network, torch.export.load(partial).module(), x, "the program")


def write_onnx(network: Classifier, x: Tensor, out: Path) -> None:
    """Write an ONNX graph for a batch of any size, and compare its logits in onnxruntime with the network's.

    Raises:
        MissingBackendError: onnx, onnxscript or onnxruntime is not installed.
        UserError: ONNX cannot express a part of the network, or the logits differ; no file is left then.
    """
    onnx = _onnx()
    _tell_long("onnx")
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own libraries
            program = torch.onnx.export(
                network, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
                input_names=["views"], output_names=["logits"], opset_version=18,
            )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"export: ONNX cannot express {network.backbone_name} ({brief(error)}); export it as "
            "torch_export or hf"
        ) from error
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, description_text(network)
    with _whole(out) as partial:
        onnx.save(model, partial)
        check_equal(network, OnnxNetwork(partial), x, "onnxruntime")


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `out` when the block ends, or removed after an error."""
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        yield partial
        publish(partial, out)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _tell_long(form: str) -> None:
    tell(f"export: writing {form} and comparing its outputs, which may take a minute")


WRITERS: Mapping[str, Callable[[Classifier, Tensor, Path], None]] = {
    "timm": write_timm,
    "hf": write_hf,
    "torchvision": write_torchvision,
    "onnx": write_onnx,
    "torch_export": write_torch_export,
    "safetensors": write_safetensors,
}


@torch.inference_mode()
def check_equal(network: nn.Module, other: nn.Module, x: Tensor, what: str) -> None:
    """Refuse an export whose logits differ from the network's, for a whole batch or for one view.

    Raises:
        UserError: they differ by more than `TOLERANCE`.
    """
    expected = network(x)
    for size in (len(x), 1):
        difference = float((other(x[:size]) - expected[:size]).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"export: expected the logits of the network from {what}, found a difference of "
                f"{difference:.2g}; the form does not fit this network, take another"
            )


class OnnxNetwork(nn.Module):
    """An ONNX graph, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        """Open the graph.

        Raises:
            MissingBackendError: onnxruntime is not installed.
            UserError: the file is no ONNX graph, or does not describe its network.
        """
        super().__init__()
        runtime = _runtime()
        try:
            self._session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = brief(error)
            raise UserError(f"network: {path} is not an ONNX graph ({reason}); export it again") from None
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}")
        described = parse_description(text, path)
        self.view, self.classes = described.view, described.classes or ()

    def forward(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to logits [B, C]."""
        (logits,) = self._session.run(["logits"], {"views": x.cpu().contiguous().numpy()})
        return torch.from_numpy(logits)


Exported = Classifier | OnnxNetwork
"""A network from any format, with its evaluation view and the names of its classes."""


def load_exported(path: Path, backbone: str | None = None) -> Exported:
    """Load a classifier from a run folder, an exported file, or third-party weights with a classifier.

    Args:
        path: path of the folder or file, or timm:NAME or hf:REPO.
        backbone: name of the network, for a weights file that does not state it.

    Raises:
        MissingBackendError: the file is an ONNX graph, and onnxruntime is not installed.
        UserError: nothing at `path` can be read, or a run or weights file has no classifier or class names.
    """
    if path.suffix == ".onnx":
        return OnnxNetwork(_checked(path))
    if path.suffix == ".pt2":
        return _of_program(_checked(path))
    if path.suffix == ".pth" and path.with_suffix(".json").is_file():
        described = parse_description(path.with_suffix(".json").read_text(), path)
        backbone = backbone or described.backbone
        found = find_classifier(path, None, backbone=backbone).at(described.view.resolution)
        found.view, found.classes = described.view, described.classes or found.classes
        return found
    return find_classifier(path, None, backbone=backbone)


def _of_program(path: Path) -> Classifier:
    """Rebuild the classifier of an exported program from its description and the numbers of its weights.

    Loading the program itself could run code from the file: torch unpickles members, evaluates sizes, and
    calls any function that the file names.
    """
    try:
        with ZipFile(path) as archive:
            root = archive.namelist()[0].partition("/")[0]
            text = archive.read(f"{root}/extra/{METADATA_KEY}").decode()
            stored = parse_json(archive.read(f"{root}/data/weights/model_weights_config.json"))["config"]
            described = parse_description(text, path)
            backbone = build_backbone(architecture(described.backbone), described.view.resolution)
            names = described.classes or ()
            network = Classifier(backbone, described.backbone, described.view, names, described.origin)
            for name, weight in network.state_dict().items():
                meta = stored[name]["tensor_meta"]
                strides = [axis["as_int"] for axis in meta["strides"]]
                offset = meta["storage_offset"]["as_int"]
                content = bytearray(archive.read(f"{root}/data/weights/{stored[name]['path_name']}"))
                numbers = torch.frombuffer(content, dtype=weight.dtype)
                weight.copy_(numbers.as_strided(weight.shape, strides, offset))
    except (*_BROKEN, OSError) as error:
        raise UserError(
            f"network: {path} is not an exported program, or is cut short ({brief(error)}); export it again"
        ) from None
    return network.eval()


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"network: expected a file at {path}, found none; give the path of an export")
    return path


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise MissingBackendError(f"export: {error.name} is not installed; pip install '.[export]'") from None
    _runtime()
    return onnx


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(f"export: {error.name} is not installed; pip install '.[export]'") from None
    return onnxruntime
