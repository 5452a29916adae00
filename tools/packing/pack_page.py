"""The page about a pack: counts, classes, sizes, outliers, doubtful labels, copies, images of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.report.blocks import Bars, Sheet
from engine.report.page import Block, Paragraph, Section, Table, Tile, Tiles, render_page
from loaders.common.cores import available_cores
from loaders.common.files import write_atomic
from loaders.packs import Pack
from loaders.packs.findings import Findings
from loaders.packs.images.thumbnail import thumbnail
from tools.packing.judged import Judged
from tools.packing.outliers import brightness, fences
from tools.packing.warned import Warnings

_IMAGES_PER_CLASS = 8
_MAX_CLASSES = 200
_FEWEST_FOR_FENCES, _SHOWN_OUTLIERS = 20, 8
_LONG = 2.0  # ratio of sides at which a centred square leaves out half of an image
_MAX_REPAIRED = 48
_SHOWN_DOUBTS, _SHOWN_FAR = 8, 24
_ROWS_AT_ONCE = 1 << 20
_SIZE_EDGES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def write_page(
    pack: Pack,
    findings: Findings,
    reasons: Counter[str],
    warnings: Warnings,
    path: Path,
    judged: Judged | None = None,
) -> None:
    """Write the page about a pack; the same pack gives the same page.

    Args:
        reasons: number of quarantined inputs per reason.
        judged: doubtful labels and unusual images; None if there are no features to find them by.
    """
    labels = pack.labels.dense(len(pack))
    sections = [
        Section("Splits", [_tiles(pack, findings), _splits(pack)]),
        Section("Classes", _classes(pack, labels)),
        Section("Sizes", _sizes(pack)),
        Section("What stands out", list(_outliers(pack))),
        Section("What was done", [_table(("images", "count"), pack.manifest.actions.items())]),
        Section("Labels to look at", list(_judged(pack, labels, judged))),
        Section("Copies", list(_copies(pack, findings))),
        Section("Quarantine", [_table(("reason", "inputs"), reasons.most_common(30))] if reasons else []),
        Section("Repairs and warnings", list(_warned(pack, warnings))),
        Section("Images", list(_sheets(pack, labels))),
    ]
    lead = f"{len(pack):,} images in {pack.num_shards:,} {pack.manifest.shard_format} shards."
    text = render_page(f"Pack {pack.path.resolve().name}", lead, sections)
    write_atomic(path, text.encode("utf-8", "replace"))


def _warned(pack: Pack, warnings: Warnings) -> Iterator[Block]:
    """Count the images per warning, and show the repaired images."""
    if warnings.messages:
        yield _table(("decoder warning", "images"), warnings.messages.most_common(30))
    if warnings.num_repaired:
        rows = warnings.repaired[:_MAX_REPAIRED]
        shown = f", the first {len(rows)}" if len(rows) < warnings.num_repaired else ""
        yield _sheet(pack, f"repaired: {warnings.num_repaired:,}{shown}", rows)


def _table(columns: tuple[str, str], rows: Iterable[tuple[str, int]]) -> Table:
    return Table(columns, [(name, f"{count:,}") for name, count in rows])


def _tiles(pack: Pack, findings: Findings) -> Block:
    manifest = pack.manifest
    return Tiles(
        [
            Tile(f"{len(pack):,}", "images"),
            Tile(f"{len(pack.classes):,}", "classes"),
            Tile(f"{manifest.num_quarantined:,}", "quarantined", f"of {manifest.num_inputs:,} inputs"),
            Tile(f"{findings.num_copies:,}", "exact copies", "within a split"),
            Tile(f"{findings.num_leaks:,}", "leaks", "images in two splits"),
        ]
    )


def _splits(pack: Pack) -> Block:
    rows = [
        (s.name, f"{s.num_images:,}", f"{s.num_labeled:,}", f"{s.num_quarantined:,}", s.source)
        for s in pack.manifest.splits
    ]
    return Table(("split", "images", "labelled", "quarantined", "source"), rows, numeric=False)


def _classes(pack: Pack, labels: NDArray[np.int64]) -> list[Block]:
    counts = np.bincount(labels[labels >= 0], minlength=len(pack.classes))
    if len(counts) == 0:
        return [Paragraph("No image has a label.")]
    order = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    shown = (
        f"the {len(order)} largest of {len(counts)} classes" if len(order) < len(counts) else "all classes"
    )
    spread = f"Images per class: {counts.min():,} to {counts.max():,}, median {int(np.median(counts)):,}."
    names, values = [pack.classes[i] for i in order], [int(counts[i]) for i in order]
    bars = Bars(names, values, f"Images per class, {shown}.")
    return [Paragraph(spread), bars, *_classes_by_split(pack, order)]


def _classes_by_split(pack: Pack, order: NDArray[np.int64]) -> list[Block]:
    """Return a table of each class's images in each labelled split, if there are several such splits."""
    labels = {name: pack.split(name).labels() for name in pack.splits}
    counts = {
        name: np.bincount(found[found >= 0], minlength=len(pack.classes))
        for name, found in labels.items()
        if (found >= 0).any()
    }
    if len(counts) < 2:
        return []
    rows = [(pack.classes[i], *(f"{own[i]:,}" for own in counts.values())) for i in order.tolist()]
    return [Table(("class", *counts), rows, "Images of each class in each split; click a heading to sort.")]


def _outliers(pack: Pack) -> Iterator[Block]:
    """Show the darkest, the brightest, the smallest and the most elongated images."""
    rows, gray = brightness(pack, available_cores())
    rows, gray = rows[~np.isnan(gray)], gray[~np.isnan(gray)]
    if len(rows) >= _FEWEST_FOR_FENCES:
        low, high = fences(gray)
        outside = int(((gray < low) | (gray > high)).sum())
        of = f"of {len(rows):,} images" + (", evenly spaced" if len(rows) < len(pack) else "")
        yield Paragraph(
            f"Mean gray value: median {np.median(gray):.0f} of 255; {outside:,} {of} lie outside {low:.0f} "
            f"to {high:.0f}, 1.5 interquartile ranges beyond the quartiles."
        )
        order = np.argsort(gray, kind="stable")
        for name, places in (
            ("the darkest", order[:_SHOWN_OUTLIERS]),
            ("the brightest", order[::-1][:_SHOWN_OUTLIERS]),
        ):
            values = gray[places]
            yield _sheet(pack, f"{name}: gray value {values.min():.0f} to {values.max():.0f}", rows[places])
    height, width = (np.asarray(side).astype(np.int64) for side in (pack.columns.height, pack.columns.width))
    short, long = np.minimum(height, width), np.maximum(height, width)
    if short.min() < short.max():
        smallest = np.argsort(short, kind="stable")[:_SHOWN_OUTLIERS]
        yield _sheet(pack, f"the smallest: shorter side from {short[smallest[0]]} px", smallest)
    ratio = long / np.maximum(short, 1)
    longest = np.argsort(-ratio, kind="stable")[:_SHOWN_OUTLIERS]
    longest = longest[ratio[longest] > _LONG]
    if len(longest):
        yield _sheet(pack, f"the most elongated: aspect ratios up to {ratio[longest[0]]:.1f}", longest)


def _sizes(pack: Pack) -> list[Block]:
    columns = pack.columns
    edges = np.array([0, *_SIZE_EDGES, 1 << 40])
    counts = np.zeros(len(edges) - 1, np.int64)
    total = 0
    for first in range(0, len(pack), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        counts += np.histogram(np.maximum(columns.height[rows], columns.width[rows]) - 1, edges)[0]
        total += int(columns.size[rows].sum(dtype=np.uint64))
    names = [f"{a + 1} to {b} px" for a, b in pairwise(edges[:-1])]
    names.append(f"over {edges[-2]} px")
    held = counts > 0
    names, counts = [name for name, some in zip(names, held, strict=True) if some], counts[held]
    mean = f"{total / 1e6:,.1f} MB of images, {total / len(pack):,.0f} bytes each on average."
    return [Paragraph(mean), Bars(names, counts.tolist(), "Images by their longer side.")]


def _copies(pack: Pack, findings: Findings) -> Iterator[Block]:
    if findings.leaks:
        rows = [(f"{a} and {b}", f"{count:,}") for (a, b), count in findings.leaks.items()]
        yield Table(("splits", "images in both"), rows)
    groups = [("same bytes", group) for group in findings.copies]
    groups += [("in two splits", group) for group in findings.leaked]
    if groups:
        yield Table(("kind", "keys"), [(kind, ", ".join(keys)) for kind, keys in groups], numeric=False)
    if findings.num_near is not None:
        yield Paragraph(f"{findings.num_near:,} pairs look the same and have different bytes.")
    for pair in findings.near_rows:
        yield _sheet(pack, "look the same: " + " and ".join(pack.key(row) for row in pair), np.array(pair))
    if not groups:
        yield Paragraph("No two images have the same bytes.")


def _judged(pack: Pack, labels: NDArray[np.int64], judged: Judged | None) -> Iterator[Block]:
    """Show images whose neighbours doubt their label, and images that are unlike every class."""
    if judged is None:
        return
    yield Paragraph(judged.said_of_labels)
    for (own, guess), rows in judged.by_kind(labels):
        said = f"labelled {pack.classes[own]}, neighbours say {pack.classes[guess]}: {len(rows):,}"
        yield _sheet(pack, said, rows[:_SHOWN_DOUBTS])
    if judged.num_others:
        yield Paragraph(judged.said_of_others)
        if len(judged.far):
            yield _sheet(pack, "without a label, the least like any class first", judged.far[:_SHOWN_FAR])


def _sheets(pack: Pack, labels: NDArray[np.int64]) -> Iterator[Block]:
    """Show evenly spaced images of each class."""
    order = np.argsort(labels, kind="stable")
    found = np.unique(labels)
    for label in found[: _MAX_CLASSES + 1].tolist():
        first, stop = np.searchsorted(labels[order], [label, label + 1])
        rows = order[first:stop]
        chosen = rows[np.linspace(0, len(rows) - 1, min(_IMAGES_PER_CLASS, len(rows))).astype(int)]
        name = pack.classes[label] if label >= 0 else "without a label"
        yield _sheet(pack, f"{name}: {len(rows):,}", chosen)


def _sheet(pack: Pack, title: str, rows: NDArray[np.int64]) -> Sheet:
    keys = [pack.key(int(row)) for row in rows]
    return Sheet(title, [thumbnail(pack, int(row)) for row in rows], keys)
