"""The page about a pack: counts, classes, sizes, copies and a contact sheet per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from engine.report.page import Block, Paragraph, Section, Table, Tile, Tiles, render_page
from loaders.common.files import write_atomic
from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg, factor_leaving
from loaders.packs import Pack
from loaders.packs.findings import Findings
from loaders.packs.images.resize import fit_inside, resize_antialiased
from tools.packing.blocks import Bars, Sheet
from tools.packing.warned import Warnings

_THUMBNAIL_PX = 72
_IMAGES_PER_CLASS = 8
_MAX_CLASSES = 200
_MAX_REPAIRED = 48
_UNREADABLE_GRAY = 128
_ROWS_AT_ONCE = 1 << 20
_SIZE_EDGES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)


def write_page(pack: Pack, findings: Findings, reasons: Counter[str], warnings: Warnings, path: Path) -> None:
    """Write the page about a pack; the same pack gives the same page.

    Args:
        pack: the pack.
        findings: its copies.
        reasons: number of quarantined inputs per reason.
        warnings: what decoders warned of.
        path: file of the page.
    """
    labels = pack.labels.dense(len(pack))
    sections = [
        Section("Splits", [_tiles(pack, findings), _splits(pack)]),
        Section("Classes", _classes(pack, labels)),
        Section("Sizes", _sizes(pack)),
        Section("What was done", [_table(("images", "count"), pack.manifest.actions.items())]),
        Section("Copies", list(_copies(findings))),
        Section("Quarantine", [_table(("reason", "inputs"), reasons.most_common(30))] if reasons else []),
        Section("Repaired and warned of", list(_warned(pack, warnings))),
        Section("Images", list(_sheets(pack, labels))),
    ]
    lead = f"{len(pack):,} images in {pack.num_shards:,} {pack.manifest.shard_format} shards."
    text = render_page(f"Pack {pack.path.resolve().name}", lead, sections)
    write_atomic(path, text.encode("utf-8", "replace"))


def _warned(pack: Pack, warnings: Warnings) -> Iterator[Block]:
    """List what was repaired, with pictures to judge it by, and how often decoders warned of what."""
    if warnings.messages:
        yield _table(("what decoders said", "images"), warnings.messages.most_common(30))
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
    return [Paragraph(spread), Bars(names, values, f"Images per class, {shown}.")]


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
    mean = f"{total / 1e6:,.1f} MB of images, {total / len(pack):,.0f} bytes each on average."
    return [Paragraph(mean), Bars(names, counts.tolist(), "Images by their longer side.")]


def _copies(findings: Findings) -> Iterator[Block]:
    if findings.leaks:
        rows = [(f"{a} and {b}", f"{count:,}") for (a, b), count in findings.leaks.items()]
        yield Table(("splits", "images in both"), rows)
    groups = [("same bytes", group) for group in findings.copies]
    groups += [("in two splits", group) for group in findings.leaked]
    groups += [("look the same", group) for group in findings.near]
    if groups:
        yield Table(("kind", "keys"), [(kind, ", ".join(keys)) for kind, keys in groups], numeric=False)
    if findings.num_near is not None:
        yield Paragraph(f"{findings.num_near:,} pairs look the same and have different bytes.")
    if not groups:
        yield Paragraph("No image has the bytes of another.")


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
    return Sheet(title, [_thumbnail(pack, int(row)) for row in rows], keys)


def _thumbnail(pack: Pack, row: int) -> bytes:
    data, columns = pack.view(row), pack.columns
    full = int(columns.height[row]), int(columns.width[row])
    height, width = fit_inside(*full, _THUMBNAIL_PX)
    if columns.encoding[row] == ENCODING_RAW:
        pixels = data.reshape(*full, 3)
    else:
        try:
            pixels = decode_jpeg(data, factor_leaving(*full, height, width))
        except ValueError:  # damaged since it was packed: an empty square, and verifying names it
            pixels = np.full((height, width, 3), _UNREADABLE_GRAY, np.uint8)
    small = np.ascontiguousarray(resize_antialiased(pixels, height, width))
    thumbnail: bytes = simplejpeg.encode_jpeg(small, 80, "rgb", "420")
    return thumbnail
