"""Packing sources into a finished pack: plan, write shards in parallel, join; resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loaders.common.errors import UserError
from loaders.common.files import remove_leftovers, write_atomic
from loaders.common.locks import locked
from loaders.packs.build_files import read_build_file
from loaders.packs.finish import EmptySplitError, join_parts
from loaders.packs.listing import Plan, ShardPlan, make_plan
from loaders.packs.manifest import (
    BUILD_FOLDER,
    DIVISION,
    FORMAT_VERSION,
    INDEX_FOLDER,
    LABELS_FOLDER,
    MANIFEST_NAME,
    OWN_OPTIONS,
    SHARDS_FOLDER,
    SOURCES_DIGEST,
    Manifest,
    read_manifest,
    write_manifest,
)
from loaders.packs.options import PackOptions as PackOptions
from loaders.packs.ray_workers import run_jobs_on_ray
from loaders.packs.shards.job import ShardJob
from loaders.packs.shards.parts import part_path, read_part_info
from loaders.packs.sources.spec import LABELS_MARK, identity
from loaders.packs.stores.upload import read_remote_manifest, remote_size, upload_pack
from loaders.packs.workers import run_jobs

Progress = Callable[[int, int], None]
_SMALL_INPUT_BYTES = 16_000_000
# Re-encoding an image of this size takes about a millisecond and holds the GIL for a tenth of that time.
_LARGE_IMAGE_BYTES = 32_000
_MAX_DECODE_THREADS = 8
# Options that older packs do not record, with the values that always held before there was a choice.
_OPTIONS_OF_BEFORE = {"damaged": "repair"}


def pack_dataset(options: PackOptions, progress: Progress | None = None) -> Manifest:
    """Pack all splits; an interrupted run resumes where it stopped.

    Args:
        progress: called with (inputs done, total inputs) at the start and after every shard.

    Returns:
        The manifest of the finished pack.

    Raises:
        UserError: bad input, a changed source, a full disk, a store that refuses; or the target holds
            another command's pack, is in use by another process, or is not empty.
    """
    out = options.out
    if options.upload is not None and (manifest := read_remote_manifest(options.upload)) is not None:
        _refuse_other_command(options, options.upload, manifest)
        _remove_staging(options)
        return manifest
    if (out / MANIFEST_NAME).exists():
        return _finished_before(options)
    made = _make_folders(options)
    with lock_pack(out):
        try:
            check_command(options, command_of(options))
            plan = make_plan(options)
        except UserError:
            if not (options.build / "plan.json").exists():
                _remove(out, made)
            raise
        write_shards(options, plan, progress)
        return _finish(options, plan, made)


def _remove_staging(options: PackOptions) -> None:
    """Remove the local folder if it holds files of this same command, which was killed after its upload."""
    path = options.build / "command.json"
    if path.exists():
        with lock_pack(options.out):
            if read_build_file(path, dict) == command_of(options):
                shutil.rmtree(options.out, ignore_errors=True)


def _make_folders(options: PackOptions) -> list[Path]:
    """Make a pack's folders; return the new ones from its parents to its build folder, outermost first."""
    out = options.out
    for split in options.splits:
        root = Path(split.source.partition(LABELS_MARK)[0])
        if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
            raise UserError(f"--out {out} lies inside the source {root}: choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: choose a folder that does not exist yet")
    if out.exists() and not (out / BUILD_FOLDER).exists() and any(out.iterdir()):
        raise UserError(
            f"--out {out} is not empty and holds no unfinished pack: choose a folder that does not exist yet"
        )
    made = [folder for folder in (*reversed(out.parents), out, out / BUILD_FOLDER) if not folder.exists()]
    try:
        for folder in (out / BUILD_FOLDER / "parts", out / SHARDS_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {out} ({error.strerror}): choose a folder that can be written"
        ) from None
    return made


def lock_pack(out: Path) -> AbstractContextManager[None]:
    """Return a context that holds the lock of a pack, so that two processes never write the same pack."""
    taken = f"another process is packing {out}: wait for it, or end it and start again"
    return locked(out / BUILD_FOLDER / "lock", taken)


def command_of(options: PackOptions) -> dict[str, Any]:
    """Return the splits and the options that decide the bytes of the pack."""
    return {
        "splits": [[s.split, s.text, identity(s.source)] for s in options.splits],
        "format": options.shard_format,
        "format version": FORMAT_VERSION,
        **recorded_options(options),
    }


def recorded_options(options: PackOptions) -> dict[str, Any]:
    """Return the options that the manifest records."""
    own = {split.split: split.own_options for split in options.splits if split.own_options}
    divisions = [split.division for split in options.splits if split.division is not None]
    return {
        **asdict(options.policy),
        "shard_size_mb": options.shard_size_mb,
        **asdict(options.columns),
        **({OWN_OPTIONS: own} if own else {}),
        **({DIVISION: {"seed": divisions[0].seed, "near": divisions[0].near}} if divisions else {}),
    }


def sources_digest(options: PackOptions) -> str:
    """Return the SHA-256 of split names and absolute source paths, to tell packs of other folders apart."""
    resolved = [[split.split, identity(split.source)] for split in options.splits]
    return hashlib.sha256(json.dumps(resolved).encode("ascii")).hexdigest()


def check_command(options: PackOptions, command: dict[str, Any]) -> None:
    """Refuse to resume another command's pack, or record a new pack's command; remove half-written files."""
    path = options.build / "command.json"
    if path.exists():
        refuse_difference(options.out, "an unfinished pack", read_build_file(path, dict), command)
    else:
        write_atomic(path, json.dumps(command).encode())
    for folder in (BUILD_FOLDER, f"{BUILD_FOLDER}/parts", SHARDS_FOLDER, INDEX_FOLDER, LABELS_FOLDER, "."):
        remove_leftovers(options.out / folder)


def refuse_difference(out: Path | str, what: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `UserError` for the first option in which two commands differ."""
    # A pack that is older than an option does not record it. The option then has its value in
    # `_OPTIONS_OF_BEFORE`, if any, and otherwise counts as not given.
    old = {**_OPTIONS_OF_BEFORE, **old}
    changed = [name for name in (*new, OWN_OPTIONS) if (old.get(name) or None) != (new.get(name) or None)]
    if changed:
        name = changed[0]
        before, now = (_as_typed(name, options.get(name)) for options in (old, new))
        raise UserError(
            f"{out} holds {what} made with {name} {before}, now {now}: choose "
            "another --out, give the same options, or remove the folder"
        )


def _as_typed(name: str, value: Any) -> Any:
    """Return a value for messages: splits as on the command line, None in words, others unchanged."""
    if value is None:
        return "not given"
    if name != "splits" or not isinstance(value, list):
        return value
    return " ".join("=".join(map(str, split)) for split in value)


def _finished_before(options: PackOptions) -> Manifest:
    """Return the manifest of a pack that this same command finished before; refuse any other pack."""
    manifest = read_manifest(options.out)
    with ExitStack() as stack:
        with suppress(OSError):  # nothing to lock: the build folder is gone, or cannot be written
            stack.enter_context(lock_pack(options.out))
        if (options.build / "command.json").exists() and _is_append(options.out):
            raise UserError(
                f"appending to {options.out} is not finished: start the same --append command again"
            )
        _refuse_other_command(options, options.out, manifest)
        shutil.rmtree(options.build, ignore_errors=True)
    return manifest


def _refuse_other_command(options: PackOptions, where: Path | str, manifest: Manifest) -> None:
    old = {"splits": [[s.name, s.source] for s in manifest.splits], "format": manifest.shard_format}
    new = {"splits": [[s.split, s.text] for s in options.splits], "format": options.shard_format}
    known = dict(manifest.options)
    digest = known.pop(SOURCES_DIGEST, None)  # older manifests lack this field
    refuse_difference(where, "a pack", {**old, **known}, {**new, **recorded_options(options)})
    if digest not in (None, sources_digest(options)):
        raise UserError(
            f"{where} holds a pack of other folders: its --splits were relative to another working folder; "
            "choose another --out, start from that folder, or remove the pack"
        )


def _is_append(out: Path) -> bool:
    return bool(read_build_file(out / BUILD_FOLDER / "command.json", dict).get("append"))


def write_shards(options: PackOptions, plan: Plan, progress: Progress | None) -> None:
    """Write the unfinished shards of a plan.

    Raises:
        UserError: the source vanished or changed, a shard cannot be written, or a worker is lost; finished
            shards are kept.
    """
    progress = progress or (lambda done, total: None)
    total = sum(shard.num_items for shard in plan.shards)
    pending = [shard for shard in plan.shards if not _is_finished(options, part_path(options.build, shard))]
    done = total - sum(shard.num_items for shard in pending)
    progress(done, total)
    workers = options.num_workers
    # Worker processes and compiled code take a second or two to start, so small inputs do without them.
    input_bytes = sum(shard.input_bytes for shard in pending)
    is_small = input_bytes < _SMALL_INPUT_BYTES
    on_ray = options.executor == "ray"
    in_bulk = not is_small and all(split.policy(options.policy).copies for split in options.splits)
    in_threads = not on_ray and not in_bulk and not is_small and _suits_threads(pending, input_bytes, workers)
    at_once = 1 if is_small and not on_ray else max(1, min(workers, len(pending)))
    num_threads = 1 if on_ray else max(1, workers // at_once)
    if in_threads:  # two shards under way, so that no thread waits while one of them is being finished
        at_once, num_threads = min(2, len(pending)), workers
    given = replace(options, out=options.out.resolve()) if on_ray else options
    jobs = [ShardJob(given, shard, plan.classes, num_threads, in_bulk) for shard in pending]
    if on_ray:
        finished = run_jobs_on_ray(jobs, workers)
    else:
        finished = run_jobs(jobs, at_once, in_bulk or in_threads)
    for job in finished:
        done += job.plan.num_items
        progress(done, total)


def _suits_threads(shards: Sequence[ShardPlan], input_bytes: int, workers: int) -> bool:
    """Tell whether to use threads: for few workers and large images, whose decoding releases the GIL."""
    num_items = sum(shard.num_items for shard in shards)
    return workers <= _MAX_DECODE_THREADS and input_bytes >= num_items * _LARGE_IMAGE_BYTES


def _is_finished(options: PackOptions, part: Path) -> bool:
    """Tell whether a shard is finished: its part file exists, and its own files still have their sizes."""
    if not part.exists():
        return False
    files = read_part_info(part).files
    if options.upload is not None:
        url = f"{options.upload}/{SHARDS_FOLDER}"
        return all(remote_size(f"{url}/{file.path}") == file.size_bytes for file in files)
    paths = [(options.out / SHARDS_FOLDER / file.path, file.size_bytes) for file in files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _finish(options: PackOptions, plan: Plan, made: list[Path]) -> Manifest:
    out = options.out
    recorded = {**recorded_options(options), SOURCES_DIGEST: sources_digest(options)}
    try:
        manifest = join_parts(out, options, plan, recorded)
    except EmptySplitError:
        _remove(out, made)
        raise
    if options.upload is not None:
        upload_pack(out, options.upload, manifest)
        return manifest
    write_manifest(out, manifest)
    shutil.rmtree(options.build, ignore_errors=True)  # another run of the same command may remove it too
    return manifest


def _remove(out: Path, made: list[Path]) -> None:
    """Remove the build folder and the shards, then every folder in `made` that is empty."""
    for folder in (BUILD_FOLDER, SHARDS_FOLDER):
        shutil.rmtree(out / folder, ignore_errors=True)
    for path in reversed(made):
        if path.exists() and not any(path.iterdir()):
            path.rmdir()
