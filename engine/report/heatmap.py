"""Heat maps: a quantity over two settings, with a number in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.report.figures import draw_picture
from engine.report.page import Picture
from engine.report.theme import Palette


@dataclass(frozen=True)
class Panel:
    """One map of several that share their axes and their colours.

    Attributes:
        title: title above the map.
        values: values, rows from top to bottom; None where nothing was measured.
    """

    title: str
    values: Sequence[Sequence[float | None]]


def draw_heatmap(
    panels: Sequence[Panel],
    row_names: Sequence[str],
    column_names: Sequence[str],
    row_title: str,
    column_title: str,
    quantity: str,
    caption: str = "",
) -> Picture:
    """Draw panels side by side; the highest cell of all is framed.

    Args:
        panels: maps of len(row_names) x len(column_names).
        row_names: names of the rows, from top to bottom.
        column_names: names of the columns, from left to right.
        row_title: title of the vertical axis.
        column_title: title of the horizontal axis.
        quantity: name of the quantity, with its unit.
        caption: below the picture.
    """
    known = [value for panel in panels for row in panel.values for value in row if value is not None]
    low, high = min(known), max(known)

    def draw(figure: Any, palette: Palette) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list("accent", [palette.card, palette.accent])
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            _draw_panel(axes, panel, colors, (low, high), palette)
            axes.set_yticks(range(len(row_names)), row_names if place == 0 else [""] * len(row_names))
            axes.set_xticks(range(len(column_names)), column_names)
            axes.set_xlabel(column_title, fontsize=8, color=palette.muted)
            if place == 0:
                axes.set_ylabel(row_title, fontsize=8, color=palette.muted)
        figure.suptitle(quantity, x=0.01, ha="left", fontsize=9, color=palette.ink)

    size = (8.6, 0.95 + 0.36 * len(row_names))
    titles = ", ".join(panel.title for panel in panels)
    return draw_picture(draw, size, f"{quantity} over {row_title} and {column_title}: {titles}", caption)


def _draw_panel(axes: Any, panel: Panel, colors: Any, span: tuple[float, float], palette: Palette) -> None:
    low, high = span
    width = max(high - low, 1e-9)
    grid = [[float("nan") if value is None else value for value in row] for row in panel.values]
    axes.imshow(grid, cmap=colors, vmin=low - 0.15 * width, vmax=high, aspect="auto")
    for row, values in enumerate(panel.values):
        for column, value in enumerate(values):
            if value is not None:
                dark = (value - low) / width > 0.55
                ink = palette.card if dark else palette.ink
                weight = "bold" if value == high else "normal"
                axes.text(
                    column,
                    row,
                    f"{value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=ink,
                    weight=weight,
                )
                if value == high:
                    _frame(axes, row, column, palette)
    axes.set_title(panel.title, loc="left", fontsize=8, color=palette.ink)
    axes.tick_params(colors=palette.muted, labelsize=8, length=0)
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _frame(axes: Any, row: int, column: int, palette: Palette) -> None:
    from matplotlib.patches import Rectangle

    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=palette.second, linewidth=2.0)
    frame.set_clip_on(False)  # at the edge of the map half of the frame's line lies outside
    axes.add_patch(frame)
