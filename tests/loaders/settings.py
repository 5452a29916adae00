"""Turn flat settings of tests into the arguments of `build_loader`."""

from dataclasses import fields
from typing import Any

from loaders import LoaderOptions

_NAMES = {field.name for field in fields(LoaderOptions)}


def gathered(**settings: Any) -> dict[str, Any]:
    """Return keyword arguments of `build_loader`: settings that `LoaderOptions` has go into `options`."""
    options = {name: value for name, value in settings.items() if name in _NAMES}
    rest = {name: value for name, value in settings.items() if name not in _NAMES}
    return {**rest, "options": LoaderOptions(**options)}
