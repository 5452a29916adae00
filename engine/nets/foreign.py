"""Third-party weights: by name from timm or the Hugging Face hub, from a folder, or from a file.

timm:NAME       weights that timm names, such as timm:resnet18.a1_in1k; timm downloads and caches them
hf:REPO         a repository on the Hugging Face hub that timm can load, such as hf:timm/resnet18.a1_in1k
FOLDER          a folder from `timm.models.save_for_hf`: config.json beside the weights
FILE            .safetensors, .pth, .pt, .bin or .ckpt; needs --backbone unless it states its network

The view of images and the licence come with the weights. For a FILE without them, the view is timm's for the
network (the usual one at 32 pixels for networks of this project), and the licence is not known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from engine.nets.adapt import Fit, fit_tensors
from engine.nets.backbones import architecture, build_backbone, check_name
from engine.nets.description import Origin, is_described, timm_metadata
from engine.nets.hub import from_hub
from engine.nets.names import OURS, check_same
from engine.nets.weight_files import SUFFIXES, read_weights
from loaders.common.errors import UserError, brief
from loaders.common.json_text import parse_json
from loaders.common.notice import tell
from loaders.views.evaluation import EvaluationView

_SCHEMES = {"timm": "", "hf": "hf-hub:"}


@dataclass(frozen=True, eq=False)
class Foreign:
    """A network with third-party weights; every call of `build` builds a new one.

    Attributes:
        source: name or path that the user gave.
        backbone: name, as `build_backbone` takes it.
        view: evaluation view that belongs to the weights.
        origin: source and licence of the weights.
        tensors: tensors of the checkpoint, by its own names.
        classes: names of the classes of its classifier; None if they are not known.
    """

    source: str
    backbone: str
    view: EvaluationView
    origin: Origin
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None

    def build(self, resolution: int) -> nn.Module:
        """Build the backbone with these weights for views of a resolution in pixels, on the CPU.

        Two lines on stderr, printed once, say which tensors matched and what the licence is.

        Raises:
            UserError: the weights belong to another network or are broken, or the network cannot take the
                resolution.
        """
        network = build_backbone(architecture(self.backbone), resolution)
        network.load_state_dict(self._fit(network).weights, strict=False)
        return network

    def head(self) -> tuple[Tensor, Tensor] | None:
        """Return weight [C, D] and bias [C] of the checkpoint's linear classifier; None if it has none."""
        return self._fit(build_backbone(architecture(self.backbone), self.view.resolution)).head

    def _fit(self, network: nn.Module) -> Fit:
        fit = fit_tensors(self.tensors, network)
        fit.check(self.source, self.backbone, network)
        tell(fit.describe(self.source, self.backbone))
        licence = self.origin.licence or "not stated: ask its publisher before you pass them on"
        tell(f"weights: licence of {self.source}: {licence}")
        return fit


def is_foreign(start: Path) -> bool:
    """Return whether a start is third-party weights, not a run, checkpoint or file of this project."""
    if _scheme(str(start)) is not None:
        return True
    if start.is_dir():
        return timm_config(start) is not None
    return start.suffix in SUFFIXES and not is_described(start)


def read_foreign(start: Path, backbone: str | None = None) -> Foreign:
    """Read third-party weights.

    Args:
        start: see the module's docstring.
        backbone: name of the network; needed for a file that does not state it.

    Raises:
        UserError: there are no weights, they cannot be fetched or read, they are not for `backbone`, or no
            network is named.
    """
    found = _read(str(start), _stamp(start), None if start.is_dir() or _scheme(str(start)) else backbone)
    check_same(found.backbone, backbone, start)
    return found


@functools.lru_cache(maxsize=2)  # each rank builds the network several times from the same weights
def _read(source: str, stamp: int, backbone: str | None) -> Foreign:
    scheme, path = _scheme(source), Path(source)
    if scheme is not None:
        return _fetched(source, _SCHEMES[scheme] + source.removeprefix(f"{scheme}:"))
    if path.is_dir():
        return _fetched(source, f"local-dir:{path}")
    tensors = read_weights(path)
    config = timm_config(path)
    if config is not None and (backbone is None or config["architecture"] == architecture(backbone)):
        name, given = str(config["architecture"]), {**config, **config.get("pretrained_cfg", {})}
    elif backbone is not None:
        check_name(backbone)
        name = backbone
        known = None if backbone in OURS else timm.get_pretrained_cfg(backbone)
        given = {} if known is None else known.to_dict()
        given.pop("license", None)  # the licence of timm's own weights
    else:
        raise UserError(
            f"start: {source} does not say which network it holds; name it by --backbone, such as resnet50"
        )
    origin = Origin(source, str(given.get("license") or ""))
    return Foreign(source, name, _view(given, name), origin, tensors, _named(given))


def _fetched(source: str, name: str) -> Foreign:
    """Let timm build a network with the weights of a name or a folder; return the `Foreign`."""
    with _place(source, name):
        model: Any = timm.create_model(name, pretrained=True)
    config: dict[str, Any] = dict(model.pretrained_cfg)
    backbone = str(config["architecture"])
    tag = config.get("tag")
    known = f"{backbone}.{tag}" if tag and timm.is_model(f"{backbone}.{tag}") else backbone
    classes = _named(config) or _imagenet(model)
    origin = Origin(source, str(config.get("license") or ""))
    return Foreign(source, known, _view(config, backbone), origin, model.state_dict(), classes)


def _place(source: str, name: str) -> AbstractContextManager[None]:
    """Return a context in which an error of loading weights names their place: a folder, a URL or the hub."""
    if _scheme(source) is None:
        return _one_line(f"whole weights of timm in {source}", "fetch the folder again")
    known = None
    with suppress(RuntimeError):  # an unknown tag, for which `create_model` raises a better error
        known = timm.get_pretrained_cfg(name)
    if known is None or known.hf_hub_id or not known.url:
        return from_hub(source)
    tell(f"start: taking {source} from torch's cache (TORCH_HOME), or fetching it from {known.url}")
    wanted = f"weights of {source} in torch's cache (TORCH_HOME) or from {known.url}"
    return _one_line(wanted, "fetch that file elsewhere and give its path with --backbone")


@contextmanager
def _one_line(expected: str, remedy: str) -> Iterator[None]:
    """Turn any error of timm, while it loads weights from a folder or a URL, into a one-line error."""
    try:
        yield
    except Exception as error:  # raised by timm, safetensors, pickle or torch.hub
        raise UserError(
            f"start: expected {expected}, found none ({type(error).__name__}: {brief(error)}); {remedy}"
        ) from error


def _view(config: Mapping[str, Any], name: str) -> EvaluationView:
    """Return the evaluation view nearest to timm's; without a configuration, the usual one at 32 pixels."""
    if not config:
        return EvaluationView.usual(32)
    found = resolve_data_config({}, pretrained_cfg=dict(config))
    interpolation = "bilinear" if found["interpolation"] == "bilinear" else "bicubic"
    if found["interpolation"] not in ("bilinear", "bicubic"):
        tell(f"views: {name} expects {found['interpolation']} interpolation; here it is bicubic")
    if found["crop_mode"] != "center":  # "squash" deforms the whole image to a square, "border" pads it
        tell(f"views: {name} expects crop mode {found['crop_mode']}; here the centre is cropped")
    mean, std = (tuple(float(value) for value in found[key]) for key in ("mean", "std"))
    side, crop = int(found["input_size"][-1]), min(1.0, float(found["crop_pct"]))
    if len(mean) != 3:  # of a network for one channel, which `adapt_input_conv` changes to three
        mean, std = mean[:1] * 3, std[:1] * 3
    return EvaluationView(side, crop, mean, std, interpolation, True)  # type: ignore[arg-type]


def _named(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names")
    return tuple(str(name) for name in names) if names else None


def _imagenet(model: nn.Module) -> tuple[str, ...] | None:
    """Return the synsets (ImageNet's folders), if the number of classes tells a subset; else None."""
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _scheme(source: str) -> str | None:
    return next((scheme for scheme in _SCHEMES if source.startswith(f"{scheme}:")), None)


def timm_config(place: Path) -> Mapping[str, Any] | None:
    """Return timm's configuration in a folder, or in or beside a weights file; None if none can be read."""
    try:
        text = None if place.is_dir() else timm_metadata(place)
        folder = place if place.is_dir() else place.parent
        content = parse_json((folder / "config.json").read_bytes() if text is None else text)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "architecture" in content else None


def _stamp(path: Path) -> int:
    """Return when a path was last changed, so that `_read` caches no outdated weights; 0 for a name."""
    return path.stat().st_mtime_ns if path.exists() else 0
