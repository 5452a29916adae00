"""Replace slow drawings by a dot, in tests that do not look at them."""

from __future__ import annotations

import pytest

_DOT = bytes.fromhex(  # PNG of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000"
    "0400015c0c3a920000000049454e44ae426082"
)


def draw_dots(patch: pytest.MonkeyPatch) -> None:
    """Make matplotlib write a dot for every figure until the patch is undone."""
    import matplotlib.figure

    patch.setattr(matplotlib.figure.Figure, "savefig", lambda self, out, **options: out.write(_DOT))
