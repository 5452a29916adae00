"""Appending to a finished pack: new shards are added, and the old shards stay as they are.

New versions of index, packed labels, lists and manifest are written into the build folder, and moved into the
pack at the end, the manifest last. A run killed before the moves leaves the old pack readable; a run killed
between two moves may leave it unreadable. In both cases the same command, started again, finishes the work.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.common.files import sync_file
from loaders.packs.finish import EmptySplitError, join_parts
from loaders.packs.listing import Plan, key_hash, listing_path, make_plan, read_items
from loaders.packs.manifest import (
    DIVISION,
    INDEX_FOLDER,
    LABELS_FOLDER,
    MANIFEST_NAME,
    OWN_OPTIONS,
    SHARDS_FOLDER,
    Manifest,
    read_manifest,
    shard_file_name,
    write_manifest,
)
from loaders.packs.options import PackOptions
from loaders.packs.pack import Pack, open_pack
from loaders.packs.packer import (
    Progress,
    check_command,
    command_of,
    lock_pack,
    recorded_options,
    refuse_difference,
    write_shards,
)
from loaders.packs.sources.spec import SplitSource

NEXT_FOLDER = "next"


def append_to_pack(options: PackOptions, progress: Progress | None = None) -> Manifest:
    """Append new splits, or new images of existing splits, to the finished pack at `options.out`.

    Args:
        options: what to append; format, image policy, shard size and columns must equal those of the pack.
        progress: called with (inputs done, total inputs) at the start and after every shard.

    Returns:
        The new manifest of the whole pack.

    Raises:
        UserError: no finished pack, an option that differs, another command's unfinished append, an image
            whose key the pack has already, bad input, a changed source, another process at work, a full disk.
    """
    out, build = options.out, options.build
    before = read_manifest(out)
    new = {"format": options.shard_format, **recorded_options(options)}
    old = {"format": before.shard_format, **before.options}
    # Per-split options and the division of a source may differ from those of the pack.
    of_splits = (OWN_OPTIONS, DIVISION)
    refuse_difference(out, "a pack", *({n: o[n] for n in o if n not in of_splits} for o in (old, new)))
    build.mkdir(exist_ok=True)
    with lock_pack(out):
        is_complete = (build / "command.json").exists() and not (build / "parts").exists()
        if is_complete or (build / NEXT_FOLDER / MANIFEST_NAME).exists():
            check_command(options, {**command_of(options), "append": True})
            return _move_into_place(out, build)
        (build / "parts").mkdir(exist_ok=True)
        try:
            base = open_pack(out)
            check_command(options, {**command_of(options), "append": True})
            named = replace(before, classes=base.classes)  # including classes that were named after packing
            plan = make_plan(options, named)
            _refuse_known_keys(base, build, options.splits)
        except UserError:
            if not (build / "plan.json").exists():
                shutil.rmtree(build, ignore_errors=True)
            raise
        write_shards(options, plan, progress)
        _prepare(options, base, plan)
        return _move_into_place(out, build)


def _refuse_known_keys(base: Pack, build: Path, splits: tuple[SplitSource, ...]) -> None:
    """Refuse an image, even an unchanged one, whose key is in the pack; the build folder is then removed."""
    for split in splits:
        if split.split not in base.splits:
            continue
        listing = listing_path(build, split.split)
        new = _hashes(f"{split.split}/{item.key}" for item in read_items(listing, 0, listing.stat().st_size))
        for first, stop in base.split(split.split).row_ranges:
            known = np.isin(_hashes(map(base.key, range(first, stop))), new)
            if known.any():
                shutil.rmtree(build)
                raise UserError(
                    f"{base.path} has {base.key(first + int(known.argmax()))} already: append images under "
                    "names of their own, or as a new split"
                )


def _hashes(keys: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter((int.from_bytes(key_hash(key), "little") for key in keys), np.uint64)


def _prepare(options: PackOptions, base: Pack, plan: Plan) -> None:
    """Write the new version of every file that the append replaces into the folder `next`, the manifest last.

    If a split gets no new image, remove the new shards and the build folder, and raise `EmptySplitError`.
    """
    build = options.build
    target = build / NEXT_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    (target / LABELS_FOLDER).mkdir(parents=True)
    try:
        recorded = _joined_options(base.manifest.options, options)
        manifest = join_parts(target, options, plan, recorded, base)
    except EmptySplitError:
        for shard in plan.shards:
            name = (
                options.out / SHARDS_FOLDER / shard_file_name(shard.split, shard.number, options.shard_format)
            )
            name.unlink(missing_ok=True)
            name.with_suffix(".idx").unlink(missing_ok=True)
        shutil.rmtree(build)
        raise
    known = {file.path for file in manifest.files}
    kept = tuple(file for file in base.manifest.files if file.path not in known)
    write_manifest(target, replace(manifest, files=manifest.files + kept))


def _joined_options(old: dict[str, Any], options: PackOptions) -> dict[str, Any]:
    """Return the pack's recorded options, with per-split options of the appended splits added or replaced."""
    new = recorded_options(options)
    own = {**old.get(OWN_OPTIONS, {}), **new.get(OWN_OPTIONS, {})}
    return {**old, **({OWN_OPTIONS: own} if own else {})}


def _move_into_place(out: Path, build: Path) -> Manifest:
    """Move the files in `next` into the pack, the manifest last, and remove the build folder.

    A killed run can resume here: `parts` is removed before the manifest moves, so a build folder without
    `parts` shows that at most the manifest is still to be moved.
    """
    target = build / NEXT_FOLDER
    for folder in (INDEX_FOLDER, LABELS_FOLDER, "."):
        paths = sorted(path for path in (target / folder).glob("*") if path.is_file())
        for path in paths:
            if path.name != MANIFEST_NAME:
                os.replace(path, out / folder / path.name)
        sync_file(out / folder)
    shutil.rmtree(build / "parts", ignore_errors=True)
    if (target / MANIFEST_NAME).exists():
        os.replace(target / MANIFEST_NAME, out / MANIFEST_NAME)
        sync_file(out)
    manifest = read_manifest(out)
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(build)
    return manifest
