"""Reading tensors from the weights files of other projects without running code that the files hold.

A `.safetensors` file holds only tensors. Every other file is a pickle of torch. With `weights_only=True`,
torch builds only tensors and plain containers and refuses everything else. One more class is allowed: the
authors of DINO (main_dino.py) and MAE (util/misc.py, save_model) save the `argparse.Namespace` of their
command beside the weights; it holds values and runs nothing.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from loaders.common.errors import UserError, brief

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "teacher")
_WRAPPERS = (*_AVERAGES, "state_dict", "model", "student", "module", "backbone", "encoder")
"""Keys under which checkpoints keep their weights, in the order of preference. Averages come first, since the
authors of DINO, Mean Teacher and timm evaluate averaged weights."""
_PREFIXES = (
    *("_orig_mod", "module", "model", "backbone", "encoder", "encoder_q", "base_encoder"),
    *("teacher", "student", "ema"),
)
"""Names of modules around a network in checkpoints, from torch.compile, DistributedDataParallel, Lightning,
DINO (utils.py, MultiCropWrapper), solo-learn and lightly (`backbone`, formerly `encoder`), MoCo (`encoder_q`)
and MoCo v3 (`base_encoder`, main_lincls.py). `momentum_encoder` is not among them, since MoCo's authors
evaluate the other encoder."""


_OF_TENSORS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild\w+|torch\.\w*Storage|torch"
    r"\.(Size|device|Tensor|u?int\d+|b?float\d+)|torch\.storage\.\w*Storage|torch\.nn\.parameter\.Parameter"
)
"""Names that torch's own pickles import to build tensors; a pickle that imports no others runs no code."""


_PICKLES_BYTES = 16 * 2**20  # bytes at the start of a file that are searched for code


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, also under keys such as `state_dict`; names keep their prefixes.

    Raises:
        UserError: the file does not exist, cannot be read as a checkpoint, holds code, or has no tensors.
    """
    if not path.is_file():
        raise UserError(f"weights: expected a file at {path}, found none; give the path of one")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    tensors = _unwrapped(content)
    if not tensors:
        raise UserError(
            f"weights: expected a checkpoint, found {path} without tensors in it; give the file that holds "
            "the weights"
        )
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise _no_checkpoint(path) from None
    return tensors


def _pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a pickle protocol that torch does not use
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; to name pickle's own, one would have to import pickle
        code = _code_in(path)
        if code:
            raise UserError(
                f"weights: {path} holds pickled code ({', '.join(code[:3])}), which is not run; where you "
                "trust it, save its state dict alone as .safetensors and give that"
            ) from None
        if zipfile.is_zipfile(path):  # a zip file that is cut off is not valid, so this file is whole
            # Cut torch's advice to run the code in the file.
            said = str(error).rpartition("WeightsUnpickler error:")[2]
            reason = brief(re.split("In PyTorch|Check the doc", said)[0]) or type(error).__name__
            raise UserError(
                f"weights: {path} is whole, but torch cannot read it as weights "
                f"({reason}); save its state dict as .safetensors and give that"
            ) from None
        raise _no_checkpoint(path) from None


def _code_in(path: Path) -> list[str]:
    """Return what a file's pickles import besides `argparse.Namespace` and what builds tensors."""
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of many kinds; the file is not torch's zip, but perhaps a bare pickle
        found = {name for name in _imports(path) if not _OF_TENSORS.fullmatch(name)}
    return sorted(found - {"argparse.Namespace"})


def _imports(path: Path) -> set[str]:
    """Return the names that the pickles at the start of a file import; reading them runs nothing.

    Torch's old files, which are no zip, hold five pickles in a row and then the numbers. A damaged pickle may
    claim any length for a value; reading it from a buffer reserves no memory for that length.
    """
    names: set[str] = set()
    with suppress(OSError, ValueError, MemoryError), path.open("rb") as file:  # ValueError: no whole pickle
        begin = io.BytesIO(file.read(_PICKLES_BYTES))
        for _ in range(5):
            names |= _imports_of_one(pickletools.genops(begin))
    return {name for name in names if re.fullmatch(r"[\w.]+", name)}


def _imports_of_one(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> set[str]:
    names: set[str] = set()
    texts: list[str] = []  # pushed so far; the last two name what STACK_GLOBAL imports
    memo: dict[int, str] = {}
    for operation, value, _ in operations:
        if operation.name in ("GLOBAL", "INST"):
            names.add(str(value).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif operation.name.endswith("GET"):
            texts.append(memo.get(int(value), ""))
        elif operation.name.endswith("PUT"):
            memo[int(value)] = texts[-1] if texts else ""
        elif isinstance(value, str):
            texts.append(value)
    return names


def _no_checkpoint(path: Path) -> UserError:
    """Return an error that says what is wrong with a file, by its first bytes; libraries do not say it."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        return UserError(f"weights: {path} cannot be read ({error.strerror}); make it readable")
    kind = "safetensors file" if path.suffix == ".safetensors" else "torch file"
    begins = head[8:] == b"{" if path.suffix == ".safetensors" else head[:2] in (b"PK", b"\x80\x02")
    if not head:
        what = "is empty; fetch it again"
    elif begins:
        what = "is cut short or damaged; fetch it again"
    else:
        what = f"is not a {kind}, as its first bytes show; fetch it again, or give another"
    return UserError(f"weights: expected a whole checkpoint, found {path}, which {what}")


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint from under the keys `_WRAPPERS`, which may be nested."""
    if not isinstance(content, Mapping):
        return {}
    for name in _WRAPPERS:
        inner = content.get(name)
        found = _unwrapped(inner) if isinstance(inner, Mapping) else {}
        if found:
            return found
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield all tensors, and those under each prefix that wraps a network, without the prefix.

    Averaged weights come first, so that the first of two equally good fits is the averaged one.
    """
    prefixes = {""}
    for name in tensors:
        parts, depth = name.split("."), 0
        while depth < len(parts) - 1 and parts[depth] in _PREFIXES:
            depth += 1
            prefixes.add(".".join(parts[:depth]) + ".")
    for prefix in sorted(prefixes, key=lambda p: (not set(p.split(".")) & set(_AVERAGES), len(p), p)):
        yield {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
