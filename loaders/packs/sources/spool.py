"""Local copies of files that cannot be read in place: remote files and gzipped tars.

A copy is kept in the pack's build folder, where all workers read it. It is made only once, even if packing is
interrupted, and is removed when the pack is finished.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from loaders.common.errors import UserError
from loaders.common.files import atomic_file
from loaders.packs.stores.connect import connect, is_remote, store_errors

_BLOCK_BYTES = 4 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def local_copy(path: str, spool: Path) -> Path:
    """Return `path` itself, or the path of a local copy if it is remote.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    if is_remote(path):
        return _spooled(path, Path(path).name, spool, _fetched(path))
    if not Path(path).is_file():
        raise UserError(f"nothing at {path}: there is no such file; check the path")
    return Path(path)


def local_files(pattern: str, spool: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that match a pattern, sorted by number in a range, then by name; copy remote files.

    Args:
        pattern: a path with `*`, `?` and `{000..012}`, or a plain path.

    Raises:
        UserError: no file matches, a file is missing or cannot be fetched, a suffix is wrong, or two files
            share a name.
    """
    paths = [path for text in _expand_range(pattern) for path in _expand_stars(text)]
    if not paths:
        raise UserError(f"no images at {pattern}: no file has such a name; check the pattern")
    for path in paths:
        if not path.lower().endswith(suffixes):
            raise UserError(f"{path}: expected names that end with {' or '.join(suffixes)}")
    names = {Path(path).name for path in paths}
    if len(names) != len(paths):
        raise UserError(f"{pattern}: two files have one name; pack each folder as a split of its own")
    return [local_copy(path, spool) for path in paths]


def _expand_range(pattern: str) -> list[str]:
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    texts = [f"{pattern[: found.start()]}{n:0{len(first)}d}{pattern[found.end() :]}" for n in numbers]
    return [text for expanded in texts for text in _expand_range(expanded)]


def _expand_stars(text: str) -> list[str]:
    if not glob.has_magic(text) or Path(text).is_file():
        return [text]
    if is_remote(text):
        fs, path = connect(text)
        with store_errors(text, "cannot be listed"):
            return sorted(fs.unstrip_protocol(name) for name in fs.glob(path))
    return sorted(glob.glob(text))


def unzipped_copy(path: str, spool: Path) -> Path:
    """Return the path of an unpacked copy of a .tar.gz, since gzip can be read only from the beginning on.

    Raises:
        UserError: there is no such file, it cannot be fetched, or it is damaged or cut off.
    """
    source = local_copy(path, spool)
    try:
        return _spooled(f"unzipped {source.resolve()}", "unzipped.tar", spool, _unzipped(source))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): fetch it again") from None


def _fetched(url: str) -> Iterator[bytes]:
    fs, path = connect(url)
    with store_errors(url, "cannot be fetched"), fs.open(path, "rb") as file:
        yield from _blocks(file)


def _unzipped(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        yield from _blocks(file)


def _blocks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK_BYTES), b"")


def _spooled(identity: str, name: str, spool: Path, blocks: Iterator[bytes]) -> Path:
    final = spool / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{name}"
    if final.exists():
        return final
    spool.mkdir(parents=True, exist_ok=True)
    with atomic_file(final) as file:
        file.writelines(blocks)
    return final
