"""Names of backbones, checked before torch and timm are imported."""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.json_text import parse_json

TINY_RESNET = "tiny_resnet"
COMPACT_CNN = "compact_cnn"
WIDE_RESNET = "wrn_28_2"
ALEXNET = "alexnet_bn"
GONE = {"compact_resnet": COMPACT_CNN}
"""Removed networks and those that replaced them; weights of the removed ones do not fit the new ones."""
OURS = (TINY_RESNET, COMPACT_CNN, WIDE_RESNET, ALEXNET)
_OF_NETWORKS = {".json", ".safetensors", ".onnx", ".pt", ".pt2", ".pth", ".bin", ".ckpt", ".tar", ".npz"}
"""File suffixes; every folder that holds a network has a file with one of them."""


def discriminator_width(name: str) -> int | None:
    """Return the width in a name such as "gan_discriminator_96"; None for other names."""
    found = re.fullmatch(r"gan_discriminator_(\d+)", name)
    return int(found.group(1)) if found else None


def check_mentioned(name: str, option: str = "backbone") -> None:
    """Refuse a name that is not this project's and does not occur in timm's source files.

    Importing timm would take ten seconds. A name that occurs in the files for another reason passes here, and
    any name if timm's files are not found; `check_name` refuses it later.

    Args:
        name: name of a network, possibly with timm's tag for its weights.
        option: option that gave the name, for the message.

    Raises:
        UserError: no network has the name; the message lists similar ones.
    """
    bare = name.split(".")[0]
    if bare in OURS or discriminator_width(bare) is not None:
        return
    if _words() and bare not in _words():
        raise unknown(name, re.findall(r"^@register_model\s+def (\w+)", _sources(), re.MULTILINE), option)


def unknown(name: str, of_timm: list[str], option: str = "backbone") -> UserError:
    """Return the error for a name that no network has; `of_timm` are the names that timm has."""
    if name in GONE:
        return UserError(
            f"{option}: expected a network of this version, found {name!r}, which was replaced by "
            f"{GONE[name]}, a different network; train the new one, or take the version that trained {name!r}"
        )
    known = of_timm if option != "backbone" else [*OURS, *of_timm]
    close = difflib.get_close_matches(name.split(".")[0], known, n=4, cutoff=0.5)
    remedy = f"close matches: {', '.join(close)}" if close else "timm.list_models() prints all names"
    expected = "a timm name" if option != "backbone" else f"{', '.join(OURS)} or a timm name"
    return UserError(f"{option}: expected {expected}, found {name!r}; {remedy}")


@cache
def _words() -> frozenset[str]:
    """Return the words that `_sources` define as functions or have at the start of a string."""
    return frozenset(re.findall(r"""(?:def |['"])(\w+)[('".]""", _sources()))


@cache
def _sources() -> str:
    """Return the source text of timm's networks; empty if its files are not found."""
    found = PathFinder.find_spec("timm")
    folders = (found and found.submodule_search_locations) or []
    files = (file for folder in folders for file in sorted(Path(folder, "models").glob("*.py")))
    return "\n".join(file.read_text("utf-8", errors="replace") for file in files)


def check_start(
    start: Path | None,
    option: str,
    backbone: str | None = None,
    classifier: bool = False,
    remedy: str = "train with labels first",
) -> None:
    """Refuse a start or a network that does not exist, before the libraries that read it are imported.

    Args:
        start: path, or timm:NAME or hf:REPO; None is not checked.
        option: name of the option that gave the start.
        backbone: name of the network; None is not checked.
        classifier: also refuse a run that left only a backbone.
        remedy: what to do about such a run, for the message.

    Raises:
        UserError: start or network does not exist, they do not match, or weights or classifier are missing.
    """
    if backbone is not None:
        check_mentioned(backbone)
    source, _, name = str(start).partition(":")
    if source == "timm" and ":" not in name:  # a further colon means a scheme of timm's, such as local-dir:
        check_mentioned(name, option)
        check_same(name, backbone, start, option)
    if start is None or str(start).startswith(("timm:", "hf:")):
        return
    path, wanted = start.expanduser(), "a run folder, weights file, timm:NAME or hf:REPO"
    if not path.exists():
        raise UserError(f"{option}: expected {wanted}, found nothing at {start}; check the path")
    if not path.is_dir() or not os.access(path, os.R_OK):
        return
    if not any(file.suffix in _OF_NETWORKS for file in path.iterdir() if file.is_file()):
        raise UserError(
            f"{option}: expected {wanted}, found a folder without weights at {start}; give another"
        )
    names = {file.name for file in path.glob("*.safetensors")}
    if classifier and "backbone.safetensors" in names and not any("classifier" in name for name in names):
        raise UserError(f"classifier: expected one in {start}, found none; {remedy}")
    found = _recorded(path)
    if "recipe" in found and (path / "config.json").is_file() and not names:
        raise without_weights(path)
    named = found.get("architecture") or dict(found.get("config") or {}).get("backbone")
    if isinstance(named, str):
        check_same(named, backbone, start, option)


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what a run, a checkpoint or an export for timm records of itself; {} if that cannot be read."""
    for file in (folder / "config.json", folder / "meta.json"):
        with suppress(OSError, ValueError, TypeError):  # whatever needs the folder reports a bad file
            return dict(parse_json(file.read_bytes()))
    return {}


def check_same(named: str, backbone: str | None, start: Path | None, option: str = "init") -> None:
    """Refuse a start whose network, `named`, is not `backbone` (if given); timm's tags may differ."""
    if backbone is None or named.split(".")[0] == backbone.split(".")[0]:
        return
    check_mentioned(named)
    raise UserError(
        f"backbone: expected {named}, that of --{option} {start}, found {backbone}; change one of them"
    )


def without_weights(run: Path) -> UserError:
    """Return the error for the folder of a run that has no weights, or none yet."""
    if list(run.glob("checkpoints/step-*")):
        return UserError(
            f"start: the run at {run} is not finished; finish it, or give one of its checkpoints "
            f"({run}/checkpoints/step-XXXXXXXX)"
        )
    return UserError(f"start: expected a run at {run}, found no weights; train one first")
