"""Drawings of a report, each made twice: for a light and for a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.report.names import DrawnNames, drawn_names
from engine.report.page import Picture
from engine.report.theme import DARK, LIGHT, Palette
from loaders.common.files import write_atomic

_DPI = 160
_MARKERS, _DASHES = "os^Dv", ("-", "--", ":", "-.")  # dashes tell lines of the same colour apart


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a run.

    Attributes:
        name: title of its panel, with the unit; curves of one name share a panel.
        steps: increasing.
        values: one per step.
        from_zero: whether the vertical axis of the curve's panel starts at zero.
        label: name of the curve in the legend, which the picture has if a panel has several curves.
        run: name of the curve's run if there are several; a run has one colour in all panels.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    from_zero: bool = False
    label: str = ""
    run: str = ""


@dataclass(frozen=True)
class Series:
    """One quantity over another, such as accuracy over the number of labels per class.

    Attributes:
        name: name in the legend.
        places: increasing, such as labels per class or steps.
        mean: values, one per place, such as accuracies in [0, 1]; NaN leaves a gap in the line.
        spread: standard deviations over seeds, one per place.
    """

    name: str
    places: Sequence[float]
    mean: Sequence[float]
    spread: Sequence[float]


def draw_curves(curves: Sequence[Curve], caption: str = "", x_name: str = "step") -> Picture:
    """Draw one panel per quantity over `x_name`, two panels to a row."""
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        panels.setdefault(curve.name, []).append(curve)
    names = list(dict.fromkeys(curve.label for curve in curves if curve.label))
    labels = drawn_names(names)
    # A legend omits texts such as "_x".
    texts = dict(zip(names, (f" {t}" if t[:1] == "_" else t for t in labels.texts), strict=True))
    runs, kinds = list(dict.fromkeys(curve.run for curve in curves)), _kinds(panels.values())
    # The legend stands above the panels, which are too small for it. It leaves out labels that are just a
    # run's name, since their lines have the colour of the run's other lines.
    explained = [n for n in names if n not in runs] or names
    num_columns = 2 if len(runs) == 2 else 3
    has_legend = any(len(drawn) > 1 for drawn in panels.values())
    legend_inches = 0.17 * -(-len(explained) // num_columns) + 0.1 if has_legend else 0.0

    def draw(figure: Any, palette: Palette) -> None:
        num_rows = (len(panels) + 1) // 2
        lines: dict[str, Any] = {}
        for place, (name, drawn) in enumerate(panels.items()):
            axes = figure.add_subplot(num_rows, 2, place + 1)
            for curve in drawn:
                kind = kinds[curve.label]
                # If there are several runs, each further line of a run in a panel is thinner.
                look = line_look(runs.index(curve.run) if len(runs) > 1 else kind, palette)
                look |= {"linewidth": 1.6 / (1 + kind) if len(runs) > 1 else 1.4, "markersize": 4}
                look["marker"] = "o" if len(curve.steps) == 1 else None  # a line of one point is invisible
                (line,) = axes.plot(curve.steps, curve.values, label=texts.get(curve.label), **look)
                lines.setdefault(curve.label, line)
            axes.set_title(name, loc="left", fontsize=9, color=palette.ink)
            axes.margins(x=0)
            axes.locator_params(axis="x", nbins=5, integer=True)
            axes.locator_params(axis="y", nbins=4)
            if any(curve.from_zero for curve in drawn):
                axes.set_ylim(0.0, max([1e-9, *(v for curve in drawn for v in curve.values)]) * 1.15)
            if place >= len(panels) - 2:
                axes.set_xlabel(x_name, fontsize=8, color=palette.muted)
            dress(axes, palette)
        if has_legend:
            entries = {"handles": [lines[n] for n in explained], "labels": [texts[n] for n in explained]}
            look = {"frameon": False, "fontsize": 7, "labelcolor": palette.ink, "borderaxespad": 0.2}
            figure.legend(**entries, loc="upper left", ncols=num_columns, **look)
        _leave_room(figure, num_rows, legend_inches)

    size = (8.6, 2.1 * ((len(panels) + 1) // 2) + legend_inches)
    shown = []
    for name, drawn in panels.items():
        own = [curve.label for curve in drawn if curve.label]
        shown.append(f"{name} ({', '.join(own)})" if len(own) > 1 else name)
    alt = f"Curves over {x_name}: {', '.join(shown)}"
    return draw_picture(draw, size, alt, caption, labels, layout=None)


def _kinds(panels: Iterable[Sequence[Curve]]) -> dict[str, int]:
    """Return, for each label, the number of its line among the lines of its run, the same in all panels."""
    kinds: dict[str, int] = {}
    for drawn in panels:
        last: dict[str, int] = {}
        for curve in drawn:
            last[curve.run] = max(kinds.get(curve.label, 0), last.get(curve.run, -1) + 1)
            kinds[curve.label] = last[curve.run]
    return kinds


def _leave_room(figure: Any, num_rows: int, legend: float) -> None:
    """Place rows of two panels below a legend, with margins in inches.

    Every run draws such a picture at its end, and matplotlib's own layout took most of the time.
    """
    width, height = figure.get_size_inches()
    left, right, top, bottom, gap = 0.55, 0.25, 0.3 + legend, 0.5, 0.55
    panel = (height - top - bottom - gap * (num_rows - 1)) / num_rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=2 * 0.65 / (width - left - right - 0.65),
        hspace=gap / panel,
    )


def line_look(number: int, palette: Palette) -> dict[str, Any]:
    """Return the colour and the dashes of line `number` of a panel."""
    colors = (palette.accent, palette.second, palette.muted)
    dashes = _DASHES[number // len(colors) % len(_DASHES)]
    return {"color": colors[number % len(colors)], "linestyle": dashes}


def draw_label_efficiency(series: Sequence[Series], caption: str = "") -> Picture:
    """Draw accuracy over labels per class; each of `series` is a line with its spread."""
    ticks = sorted({k for line in series for k in line.places})

    def scale(axes: Any) -> None:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{k:g}" for k in ticks])

    title = "Accuracy over the number of labels per class"
    return draw_lines(series, ("labels per class", "test accuracy, %", title), 100.0, caption, scale)


def draw_lines(
    series: Sequence[Series],
    titles: tuple[str, str, str],
    factor: float = 1.0,
    caption: str = "",
    scale: Callable[[Any], None] = lambda axes: None,
) -> Picture:
    """Draw several lines with their spreads into one panel.

    Args:
        series: the lines.
        titles: titles of the horizontal axis and of the values, and a description of the picture for those
            who cannot see it.
        factor: multiplies the values, such as 100 for shares in per cent.
        caption: text below the picture.
        scale: prepares the horizontal axis.
    """
    names = drawn_names([line.name for line in series])

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.add_subplot(1, 1, 1)
        colors = (palette.accent, palette.second, palette.muted)
        for place, (line, name) in enumerate(zip(series, names.texts, strict=True)):
            color, marker = colors[place % len(colors)], _MARKERS[place % len(_MARKERS)]
            dashes = _DASHES[place // len(colors) % len(_DASHES)]
            mean = [factor * m for m in line.mean]
            low = [m - factor * s for m, s in zip(mean, line.spread, strict=True)]
            high = [m + factor * s for m, s in zip(mean, line.spread, strict=True)]
            axes.fill_between(line.places, low, high, color=color, alpha=0.16, linewidth=0)
            look = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 4.5}
            # Matplotlib omits names that begin with "_" from the legend.
            axes.plot(line.places, mean, label=f" {name}" if name[:1] == "_" else name, **look)
        scale(axes)
        axes.set_xlabel(titles[0], fontsize=8, color=palette.muted)
        axes.set_title(titles[1], loc="left", fontsize=9, color=palette.ink)
        dress(axes, palette)
        axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, loc="best")

    return draw_picture(draw, (8.6, 3.2), titles[2], caption, names)


def draw_steps(names: Sequence[str], values: Sequence[float], title: str, caption: str = "") -> Picture:
    """Draw one horizontal bar per step of a chain, from the first down, with its value beside it."""
    drawn = drawn_names(names)

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.add_subplot(1, 1, 1)
        places = range(len(names))
        axes.barh(places, values, color=palette.accent, height=0.6)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:.1f}", va="center", fontsize=8, color=palette.ink)
        axes.set_yticks(places, drawn.texts)
        axes.invert_yaxis()
        axes.set_xlim(0, max([1e-9, *values]) * 1.12)
        axes.set_title(title, loc="left", fontsize=9, color=palette.ink)
        dress(axes, palette)
        axes.grid(False)

    size = (8.6, 0.6 + 0.36 * len(names))
    return draw_picture(draw, size, f"{title} of each step: {', '.join(names)}", caption, drawn)


def dress(axes: Any, palette: Palette) -> None:
    """Give axes the look of the page: no frame, pale rules."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.rule)
    axes.tick_params(colors=palette.muted, labelsize=8, length=0)
    axes.grid(axis="y", color=palette.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")


def draw_picture(
    draw: Callable[[Any, Palette], None],
    size: tuple[float, float],
    alt: str,
    caption: str,
    names: DrawnNames | None = None,
    layout: Literal["constrained"] | None = "constrained",
) -> Picture:
    """Draw a picture twice, for a light and for a dark page.

    Args:
        draw: draws on an empty figure with a palette's colours.
        size: width and height in inches.
        alt: what the picture shows, for those who cannot see it.
        caption: text below the picture.
        names: user-given names in the picture; their note is added to the caption.
        layout: "constrained" lets matplotlib make room for the texts; None leaves this to `draw`.
    """
    # Matplotlib's object interface needs no display and leaves no global state of pyplot behind.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = []
    for palette in (LIGHT, DARK):
        with rc_context({"font.family": names.families} if names else {}):
            figure = Figure(figsize=size, dpi=_DPI, layout=layout)
            FigureCanvasAgg(figure)
            draw(figure, palette)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", transparent=True)
        files.append(buffer.getvalue())
    note = names.note if names else ""
    return Picture(files[0], files[1], alt, " ".join(part for part in (caption, note) if part))


def save_picture(path: Path, picture: Picture) -> None:
    """Write `path` for light pages and `<name>-dark.png` beside it."""
    write_atomic(path, picture.light)
    write_atomic(path.with_stem(f"{path.stem}-dark"), picture.dark)
