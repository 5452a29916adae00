"""Parts of the page about a pack that a page about a run does not have: bars, and images by class."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BAR_PX = 18


@dataclass(frozen=True)
class Bars:
    """A histogram as horizontal bars.

    Attributes:
        names: what each bar counts.
        counts: lengths of the bars.
        caption: what is to be seen.
    """

    names: Sequence[str]
    counts: Sequence[int]
    caption: str

    def html(self) -> str:
        """Return the block's markup."""
        most = max(self.counts, default=0) or 1
        height = _BAR_PX * len(self.counts)
        bars = ""
        for i, (name, count) in enumerate(zip(self.names, self.counts, strict=True)):
            top, length = _BAR_PX * i, 400 * count // most
            bars += (
                f'<text x="0" y="{top + 13}" fill="currentColor">{escape(name[:24])}</text>'
                f'<rect x="190" y="{top + 2}" width="{max(1, length)}" height="{_BAR_PX - 5}" '
                f'fill="var(--accent)"/>'
                f'<text x="{198 + length}" y="{top + 13}" fill="currentColor">{count:,}</text>'
            )
        caption = escape(self.caption)
        return (
            f'<figure><svg viewBox="0 0 700 {height}" width="100%" font-size="12" role="img" '
            f'aria-label="{caption}">{bars}</svg><figcaption>{caption}</figcaption></figure>'
        )


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: some images of one class.

    Attributes:
        name: the class.
        images: JPEG files.
        keys: their keys, shown on hovering.
    """

    name: str
    images: Sequence[bytes]
    keys: Sequence[str]

    def html(self) -> str:
        """Return the block's markup."""
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode(image).decode("ascii")}" height="72" '
            f'alt="{escape(key)}" title="{escape(key)}" style="margin:2px">'
            for image, key in zip(self.images, self.keys, strict=True)
        )
        return f"<figure>{pictures}<figcaption>{escape(self.name)}</figcaption></figure>"
