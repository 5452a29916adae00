"""Count the operations that a function sends to its device; on a GPU, each is one or more kernel launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def launches(function: Callable[[], Any]) -> Counter[str]:
    """Call a function and return the number of calls of each operation."""
    with _Counts() as counts:
        function()
    return counts.found
