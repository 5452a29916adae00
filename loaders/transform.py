"""A user's own function on the views of a batch, between rendering and normalisation."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.options import LoaderOptions
from loaders.views.policy import IMAGENET, Normalize, RandomErasing, Standardize, ViewPolicy

Views = tuple[Tensor, ...]
BatchTransform = Callable[..., Views]
"""`transform(views, generator)`, or a callable of the views alone, such as torchvision's v2 transforms."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None))  # types whose repr is their whole value


def unnormalized(views: tuple[ViewPolicy, ...]) -> tuple[ViewPolicy, ...]:
    """Return the policies without normalisation, so that values stay in [0, 1]."""
    return tuple(replace(view, normalize=None) for view in views)


def transform_name(transform: BatchTransform) -> str:
    """Return the text that stands for a transform in the fingerprint: module, name and parameters.

    Raises:
        UserError: the transform is not callable, is a lambda, or has parameters that no text describes.
    """
    if not callable(transform):
        raise UserError(
            f"batch_transform: expected a function of (views, generator), found {type(transform).__name__}"
        )
    return _said(transform)


def _said(value: Any, within: frozenset[int] = frozenset()) -> str:
    """Describe a callable or parameter by a text that is the same in every process.

    Args:
        within: ids of the objects that contain the value; a function may contain itself.

    Raises:
        UserError: a lambda, or an object whose repr shows an address.
    """
    if type(value) in _PLAIN:
        return repr(value)
    if id(value) in within:
        return "itself"
    said = functools.partial(_said, within=within | {id(value)})
    if isinstance(value, functools.partial):
        given = [said(one) for one in value.args]
        given += [f"{name}={said(one)}" for name, one in sorted(value.keywords.items())]
        return f"partial of {said(value.func)} with {', '.join(given)}"
    if inspect.ismethod(value):
        return f"{value.__name__} of {said(value.__self__)}"
    if inspect.ismodule(value):
        return f"module {value.__name__}"
    if isinstance(value, np.ndarray | Tensor):
        return _digested(value, said)
    if type(value) in (list, tuple, dict, set, frozenset):
        return _listed(value, said)
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        if "<lambda>" in name:
            raise UserError(
                "batch_transform: expected a function with a name, which the fingerprint keeps, found a "
                "lambda; define it with def"
            )
        return f"{getattr(value, '__module__', None)}.{name}{_with(_enclosed(value, said))}"
    return _told(value, said)


def _listed(value: Any, said: Callable[[Any], str]) -> str:
    """Describe a list, tuple, dict or set in the form of its repr."""
    if isinstance(value, set | frozenset):
        if all(isinstance(one, int | float) for one in value):
            return repr(value)
        inside = f"{{{', '.join(sorted(map(said, value)))}}}"  # Python hashes strings by a random seed
        return inside if isinstance(value, set) else f"frozenset({inside})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{said(key)}: {said(one)}' for key, one in value.items())}}}"
    inside = ", ".join(map(said, value))
    return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"


def _with(parts: list[str]) -> str:
    return f" with {', '.join(parts)}" if parts else ""


def _digested(value: NDArray[Any] | Tensor, said: Callable[[Any], str]) -> str:
    """Describe an array by dtype, shape and whole content, of which its repr may leave out a part."""
    dtype = str(value.dtype).removeprefix("torch.")
    if isinstance(value, Tensor):
        small = value.is_floating_point() and not hasattr(np, dtype)  # such as bfloat16
        numbers = (value.float() if small else value).numpy(force=True)
    else:
        numbers = value
    if numbers.dtype.hasobject:
        return f"{dtype} {list(numbers.shape)} {said(numbers.tolist())}"
    digest = hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()[:16]
    return f"{dtype} {list(numbers.shape)} {digest}"


def _told(value: Any, said: Callable[[Any], str]) -> str:
    """Describe an object by its repr, and by the arrays in it that the repr leaves out."""
    text, kind = " ".join(repr(value).split()), type(value)
    if " at 0x" in text:
        raise UserError(
            "batch_transform: expected parameters that the fingerprint can keep, found "
            f"{kind.__module__}.{kind.__qualname__}, whose repr shows no parameters; give the class a "
            "__repr__ with them (a dataclass has one), or write a function"
        )
    text = text if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__} {text}"
    held: list[tuple[str, Any]] = []
    if isinstance(value, torch.nn.Module):
        held += [*value.named_parameters(), *value.named_buffers()]
        for path, part in value.named_modules():
            arrays = [(name, one) for name, one in vars(part).items() if isinstance(one, np.ndarray | Tensor)]
            held += [(f"{path}.{name}".lstrip("."), one) for name, one in arrays]
    elif is_dataclass(value):
        told = [(field.name, getattr(value, field.name, None)) for field in fields(value) if field.repr]
        for name, one in told:
            if isinstance(one, set | frozenset):
                text = text.replace(repr(one), said(one))
            # A field whose repr shows an address is skipped: a custom __repr__ has left it out of the text.
            elif " at 0x" not in repr(one) and said(one) != repr(one):
                held.append((name, one))
    return text + _with([f"{name}={said(one)}" for name, one in held])


def _enclosed(function: Any, said: Callable[[Any], str]) -> list[str]:
    """Describe the variables that a closure holds; empty for other functions."""
    cells = getattr(function, "__closure__", None) or ()
    wrapped = getattr(function, "__wrapped__", None)
    parts: list[str] = []
    for name, cell in zip(function.__code__.co_freevars if cells else (), cells, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        try:
            parts.append(f"{name}={said(value)}")
        except UserError:
            if wrapped is None or value is wrapped:
                raise
            # A decorator's own helpers, such as those of torch.no_grad(), need no description.
    return parts


def takes_generator(transform: BatchTransform) -> bool:
    """Tell whether a transform takes a generator: any second positional parameter counts as one."""
    call = transform.forward if isinstance(transform, torch.nn.Module) else transform
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in plain for parameter in parameters) >= 2


def _erases_by_mean(view: ViewPolicy) -> bool:
    erases = any(isinstance(one, RandomErasing) and one.fill == "mean" for one in view.operations)
    return erases and isinstance(view.normalize, Normalize) and view.normalize != IMAGENET


class Transforming:
    """Applies a transform to the views of a batch, and then normalises them."""

    def __init__(
        self, transform: BatchTransform, views: tuple[ViewPolicy, ...], options: LoaderOptions
    ) -> None:
        """Take over the normalisation of the policies.

        Raises:
            UserError: dtype uint8, or a RandomErasing by a mean other than ImageNet's.
        """
        if options.dtype == "uint8":
            raise UserError(
                "batch_transform: expected float views, which it gets in [0, 1], found dtype uint8; use "
                "float32"
            )
        if any(_erases_by_mean(view) for view in views):
            raise UserError(
                "batch_transform: expected RandomErasing by ImageNet's mean, since another normalisation "
                'follows only after the transform, found another mean; use fill="noise", or ImageNet\'s '
                "normalisation"
            )
        self._transform, self._takes_generator = transform, takes_generator(transform)
        self._normalizations = [view.normalize for view in views]
        self._seed, self._rank, self._device = options.seed, options.rank, torch.device(options.device)

    def _seed_global(self, seed: int) -> None:
        """Seed only those generators whose state is restored afterwards.

        `torch.manual_seed` would seed the generators of every device. A loader on the CPU would then reseed
        the dropout of a network on a GPU at every batch.
        """
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _without_generator(self, views: tuple[Tensor, ...]) -> Any:
        if type(self._transform).__module__.startswith("torchvision."):  # transforms one tensor per call
            return tuple(self._transform(view) for view in views)
        return self._transform(views)

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Return the batch with its views transformed and normalised.

        Raises:
            UserError: the transform did not return as many views, each of as many images, as it got.
        """
        text = f"{self._seed}/{epoch}/{step}/{self._rank}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        generator = torch.Generator(self._device).manual_seed(seed)
        if self._takes_generator:
            views = self._transform(batch.views, generator)
        else:  # torchvision draws from the global generators; their state is restored afterwards
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                self._seed_global(seed)
                views = self._without_generator(batch.views)
        views = tuple(views) if isinstance(views, list | tuple) else views
        given = [len(view) for view in batch.views]
        fits = isinstance(views, tuple) and all(isinstance(view, Tensor) for view in views)
        if not fits or [len(view) for view in views] != given:
            found = [list(v.shape) for v in views] if fits else type(views).__name__
            raise UserError(
                f"batch_transform: expected the {len(given)} views of {given[0]} images back, as a tuple, "
                f"found {found}; return all of them"
            )
        done = (_normalized(v, how) for v, how in zip(views, self._normalizations, strict=True))
        return replace(batch, views=tuple(done))


def _normalized(view: Tensor, how: Normalize | Standardize | None) -> Tensor:
    """Normalise a view in [0, 1] by its policy, as the kernels do."""
    if how is None:
        return view
    if isinstance(how, Standardize):
        mean, std = view.mean((2, 3), keepdim=True), view.std((2, 3), correction=0, keepdim=True)
        return (view - mean) / (std + how.eps)
    mean, std = (view.new_tensor(values)[:, None, None] for values in (how.mean, how.std))
    return (view - mean) / std


def transform_facts(transform: BatchTransform | None, options: LoaderOptions) -> dict[str, Any]:
    """Return a transform's entry in the fingerprint; {} without a transform.

    The entry holds the transform's text, the number of ranks and, unless it is "cpu", the kind of device:
    from one seed, generators on different kinds of device draw different numbers.
    """
    if transform is None:
        return {}
    kind = torch.device(options.device).type
    where = f"on {options.num_ranks} ranks{'' if kind == 'cpu' else f' of {kind}'}"
    return {"batch_transform": f"{transform_name(transform)} {where}"}
