"""Presets: defaults for a command line, either a paper's settings or those for minutes of training on a CPU.

A preset changes only defaults; options on the command line take precedence. config.json keeps the resulting
values, which a resume and `--init` read. Importing this module loads no heavy library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from engine.device import taken_device
from loaders.common.errors import UserError
from loaders.common.json_text import parse_json
from loaders.packs.manifest import Manifest, read_manifest

CPU_IMAGES = 150_000
"""About the number of images that a training with the preset `cpu` sees, at most the paper's number. With
tiny_resnet at 32 pixels they take two cores some ten minutes; recipes/README.md has each method's speed."""
CPU_MOST: Mapping[str, int] = {
    "resolution": 32,
    "projector": 512,
    "hidden": 512,
    "batch_size": 128,
    "mu": 3,
    "tile_size": 28,
    "tile_features": 128,
    "num_permutations": 100,
    "num_clusters": 100,
    "pca_components": 64,
    "decoder_width": 16,
    "generator_width": 32,
    "head_width": 64,
    "clusters": 50,
    "per_cluster": 8,
}
"""Upper bounds of the defaults under the preset `cpu`; smaller defaults of a paper stay. The resolution of
recipes with tiles is `_TILES` instead."""
_TILES = 96  # resolution with tiles: 3 x 3 cells of 32 pixels, each with a tile of 28 pixels
_SIZES = (32, 36, 40)  # sides of test views, near the training resolution
_WARM_UP = 0.1  # share of the run: the most for a warm-up, the least for a shortened ramp
_HOURS_OF_COLOUR = 1e-3  # learning rate of colourisation for hours of training, not weeks; see its --lr


def settle(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the preset of a configuration changes.

    Args:
        config: options of the command line, with the paper's defaults; it has `preset`, `device` and
            `pack`.

    Returns:
        New defaults by field, with which to read the command line again; and values that then override the
        command line: `preset` as "paper" or "cpu", never "auto".
    """
    name = config.preset
    if name == "auto":
        name = _of_run(config) or ("paper" if taken_device(config.device) == "cuda" else "cpu")
    settled = {"preset": name}
    return (suit_processor(config) if name == "cpu" else {}), settled


def describe(config: Any, asked: str, defaults: Mapping[str, Any]) -> str:
    """Return a line that says which `defaults` (see `settle`) took effect, and what options replaced."""
    chosen: list[str] = []
    given: list[str] = []
    for name, value in _flat(defaults):
        found = config
        for part in name.split("."):
            found = getattr(found, part)
        (chosen if found == value else given).append(f"{name} {_words(found)}")
    said = f"preset {config.preset}" + (", the machine's" if asked == "auto" else "")
    said += ": " + (", ".join(chosen) if chosen else "the paper's settings")
    return said + (f"; given: {', '.join(given)}" if given else "")


def suit_processor(config: Any) -> dict[str, Any]:
    """Return the defaults of the preset `cpu` for a configuration of any recipe."""
    try:
        manifest: Manifest | None = read_manifest(Path(config.pack).expanduser().absolute())
    except UserError:  # in a store, or not readable, which opening the pack reports
        manifest = None
    pool = _unlabelled(config, manifest)
    changed = _suit(config, _images(config, manifest), pool)
    for field in fields(config):
        stage = getattr(config, field.name)
        if is_dataclass(stage) and hasattr(stage, "__module__") and "stage_config" in type(stage).__module__:
            unlabelled = getattr(config, "unlabeled_split", None) if field.name == "pretrain" else None
            images = _images(config, manifest) if unlabelled is None else _rows(manifest, unlabelled)
            changed[field.name] = replace(_default(field), **_suit(stage, images, pool))
    network = _network_of(getattr(config, "init", None))
    if network is not None:
        changed |= network
    elif getattr(config, "init", None) is not None:  # no run folder: the user names the weights' network
        changed = {name: value for name, value in changed.items() if name not in ("backbone", "resolution")}
    return changed


def _suit(config: Any, images: int | None, pool: int | None) -> dict[str, Any]:
    """Return new defaults for those fields that a configuration has.

    Args:
        images: see `_images`.
        pool: see `_unlabelled`.
    """
    paper = {field.name: _default(field) for field in fields(config)}
    changed: dict[str, Any] = {}
    if "backbone" in paper:
        own = str(paper["backbone"]).startswith("gan_discriminator")
        changed["backbone"] = "gan_discriminator_32" if own else "tiny_resnet"
    for name, most in CPU_MOST.items():
        if name in paper and paper[name] is not None:
            value = paper[name]
            small = tuple(min(most, v) for v in value) if isinstance(value, tuple) else min(most, value)
            changed[name] = small
    if "tile_size" in paper:
        changed["resolution"] = _TILES
    if "head_width" in paper:
        changed["lr"] = _HOURS_OF_COLOUR
    if "sizes" in paper:
        changed["sizes"] = _SIZES
    if "batch_size" in changed and images is not None:
        size = min(changed["batch_size"], max(2, images // 4))
        changed["batch_size"] = size - size % 8 if size >= 8 else size
    if "num_clusters" in changed and images is not None:
        changed["num_clusters"] = min(changed["num_clusters"], max(2, images // 10))
    return changed | _lengths(config, paper, pool if "mu" in paper else images)


def _lengths(config: Any, paper: Mapping[str, Any], images: int | None) -> dict[str, Any]:
    """Return epochs for `CPU_IMAGES` images, at most the paper's, and the lengths that scale with them."""
    seen = max(1, images or CPU_IMAGES // 20)
    if "mu" in paper:  # per unlabelled image, an epoch shows two views and 1 / mu labelled images
        seen = round(seen * (2 + 1 / min(CPU_MOST["mu"], paper["mu"])))
    names = [name for name in ("epochs", "first_epochs", "true_epochs") if name in paper]
    if not names:
        return {}
    epochs = max(1, CPU_IMAGES // (seen * len(names)))
    changed: dict[str, Any] = {name: min(paper[name], epochs) for name in names}
    given = config.epochs != paper["epochs"]  # then the other lengths scale with the given epochs
    length = config.epochs if given else changed["epochs"]
    if paper.get("warmup_epochs"):
        changed["warmup_epochs"] = min(paper["warmup_epochs"], _WARM_UP * length)
    for name in ("ramp_epochs", "ramp_down_epochs"):
        if paper.get(name):
            share = max(_WARM_UP, paper[name] / paper["epochs"])
            changed[name] = min(paper[name], share * length)
    if "lr_milestones" in paper:
        changed["lr_milestones"] = tuple(m * length / paper["epochs"] for m in paper["lr_milestones"])
    return changed


def _images(config: Any, manifest: Manifest | None) -> int | None:
    """Return the number of images that a recipe trains on, the labelled ones for a recipe with labels.

    None if the pack does not state it.
    """
    split = getattr(config, "split", None)
    if split is not None:
        return _rows(manifest, split)
    per_class = getattr(config, "labels_per_class", None)
    if manifest is not None and per_class is not None:
        return int(per_class) * max(1, len(manifest.classes))
    return _rows(manifest, getattr(config, "labeled_split", ""), labelled=True)


def _unlabelled(config: Any, manifest: Manifest | None) -> int | None:
    """Return the number of images that are used without labels; None if the pack has none of these splits."""
    both = (getattr(config, "labeled_split", ""), getattr(config, "unlabeled_split", ""))  # of the pipeline
    splits = getattr(config, "unlabeled_splits", both)
    return sum(_rows(manifest, split) or 0 for split in splits) or None


def _rows(manifest: Manifest | None, split: str, labelled: bool = False) -> int | None:
    found = [one for one in (manifest.splits if manifest else ()) if one.name == split]
    counts = [one.num_labeled if labelled else one.num_images for one in found]
    return counts[0] if counts and counts[0] else None


def _of_run(config: Any) -> str | None:
    """Return the preset with which the run to resume began; None if none is recorded."""
    found = config_of(config.out) if getattr(config, "resume", False) else None
    return (found or {}).get("preset")


def _network_of(init: Path | None) -> dict[str, Any] | None:
    """Return backbone and resolution of the run that `init` names; None if they are not recorded there."""
    found = {} if init is None else config_of(Path(init)) or {}
    network = {name: found[name] for name in ("backbone", "resolution") if found.get(name)}
    return network if len(network) == 2 else None


def config_of(run: Path) -> dict[str, Any] | None:
    """Return the configuration of the run in a folder; None if it cannot be read."""
    try:
        return dict(parse_json((run / "config.json").read_bytes())["config"])
    except (OSError, ValueError, KeyError, TypeError):  # whatever needs the run reports a bad file
        return None


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values; a stage gives "STAGE.NAME" for those of its fields that a preset can set."""
    flat = []
    for name, value in values.items():
        if is_dataclass(value):
            inside = {f.name: getattr(value, f.name) for f in fields(value)}
            known = {*CPU_MOST, "epochs", "true_epochs", "warmup_epochs"}
            flat += [(f"{name}.{part}", one) for part, one in inside.items() if part in known]
        else:
            flat.append((name, value))
    return flat


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_words(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
