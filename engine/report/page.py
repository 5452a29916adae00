"""A self-contained HTML page, assembled from blocks, each of which escapes its own text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from engine.report.theme import CSS

_CSS_PX_PER_PX = 0.69  # so that drawings of 8.6 inches at 160 dots per inch fill the page
_WIDE_PX = 700  # on a phone, a wider drawing scrolls

# A click on a heading sorts its table by that column, numbers by value; a click on a picture enlarges it.
SCRIPT = """
"use strict";
document.querySelectorAll("table[data-sort] thead th").forEach(head => {
  head.tabIndex = 0;
  const sort = () => {
    const place = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    head.parentNode.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = row => row.cells[place].textContent.trim();
    const number = row => parseFloat(text(row).replaceAll(",", ""));
    const rows = [...body.rows].map((row, i) => ({row, i}));
    rows.sort((a, b) => {
      const x = number(a.row), y = number(b.row);
      const order = isNaN(x) || isNaN(y)
        ? (isNaN(x) - isNaN(y)) * (down ? 1 : -1) || text(b.row).localeCompare(text(a.row))
        : y - x;
      return (down ? order : -order) || a.i - b.i;
    });
    body.append(...rows.map(({row}) => row));
  };
  head.onclick = sort;
  head.onkeydown = event => { if (event.key === "Enter") sort(); };
});
const zoom = document.createElement("dialog");
zoom.id = "zoom";
zoom.append(document.createElement("img"), document.createElement("p"));
document.body.append(zoom);
zoom.onclick = () => zoom.close();
document.querySelectorAll("main img").forEach(img => {
  img.onclick = () => {
    zoom.firstChild.src = img.currentSrc || img.src;
    zoom.lastChild.textContent = img.title || img.alt;
    zoom.classList.toggle("small", img.naturalWidth < 400);
    zoom.showModal();
  };
});
"""


class Block(Protocol):
    """A part of a section that can write its own HTML."""

    def html(self) -> str:
        """Return the block's markup, with all text escaped."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str

    def html(self) -> str:
        """Return the block's markup."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Command:
    """Command lines to copy, one per line."""

    lines: Sequence[str]

    def html(self) -> str:
        """Return the block's markup."""
        return f"<pre><code>{escape(chr(10).join(self.lines))}</code></pre>"


@dataclass(frozen=True)
class Tile:
    """A headline figure: a value, its name, and a remark."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """The headline figures, side by side."""

    tiles: Sequence[Tile]

    def html(self) -> str:
        """Return the block's markup."""
        cells = (
            f'<div class="tile"><b>{escape(t.value)}</b><span>{escape(t.label)}</span>'
            f"<small>{escape(t.note)}</small></div>"
            for t in self.tiles
        )
        return f'<div class="tiles">{"".join(cells)}</div>'


@dataclass(frozen=True)
class Table:
    """A table: the first column names the rows; the others are right-aligned, unless `numeric` is False."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: bool = True

    def html(self) -> str:
        """Return the block's markup."""
        head = "".join(f'<th scope="col">{escape(c)}</th>' for c in self.columns)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        text = ' class="text"'
        return (
            f'<div class="scroll"><table{"" if self.numeric else text} data-sort>{caption}'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Facts:
    """Names and values, in as many columns as fit."""

    pairs: Sequence[tuple[str, str]]

    def html(self) -> str:
        """Return the block's markup."""
        items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in self.pairs)
        return f"<dl>{''.join(items)}</dl>"


@dataclass(frozen=True)
class Picture:
    """A drawing in two PNG files, for a light and for a dark page."""

    light: bytes
    dark: bytes
    alt: str
    caption: str = ""

    def html(self) -> str:
        """Return the block's markup."""
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        # Small drawings are not enlarged to the width of the page.
        width = int.from_bytes(self.light[16:20], "big") * _CSS_PX_PER_PX
        wide = ' class="wide"' if width > _WIDE_PX else ""
        return (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{png_uri(self.dark)}">'
            f'<img src="{png_uri(self.light)}" alt="{escape(self.alt)}"{wide} '
            f'style="max-width:{width:.0f}px">'
            f"</picture>{caption}</figure>"
        )


@dataclass(frozen=True)
class Gallery:
    """Small pictures in columns: one column per image, one row per name.

    Attributes:
        names: R names, one for each row.
        columns: PNG files, R in each column.
        caption: text below the pictures.
    """

    names: Sequence[str]
    columns: Sequence[Sequence[bytes]]
    caption: str = ""

    def html(self) -> str:
        """Return the block's markup."""
        legend = "".join(f"<span>{escape(name)}</span>" for name in self.names)
        stacks = "".join(
            '<div class="stack">'
            + "".join(
                f'<img src="{png_uri(png)}" alt="{escape(name)}" title="{escape(name)}">'
                for name, png in zip(self.names, column, strict=True)
            )
            + "</div>"
            for column in self.columns
        )
        return (
            f'<figure><div class="gallery"><div class="stack legend">{legend}</div>{stacks}</div>'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Return the section's markup."""
        return f"<section><h2>{escape(self.title)}</h2>{''.join(b.html() for b in self.blocks)}</section>"


def png_uri(png: bytes) -> str:
    """Return a PNG file as a data URI, so that the page needs no second file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def jpeg_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return the whole page as HTML text.

    Args:
        title: heading and window title.
        lead: one or two sentences below the heading.
        sections: sections in order; a section without blocks is left out.
        footer: one line at the end; empty for none.
    """
    body = "\n".join(section.html() for section in sections if section.blocks)
    if footer:
        body += f"\n<footer>{escape(footer)}</footer>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>\n'
        f"{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
