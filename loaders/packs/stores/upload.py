"""Uploading a pack to a remote store that fsspec knows, such as s3://: shards one by one, manifest last."""

from __future__ import annotations

import hashlib
import posixpath
import shutil
import tempfile
from pathlib import Path

from loaders.packs.manifest import (
    INDEX_FOLDER,
    LABELS_FOLDER,
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from loaders.packs.stores.connect import connect, store_errors


def default_staging(url: str) -> Path:
    """Return the local folder in which the pack for a URL is prepared; the same in every run."""
    return Path(tempfile.gettempdir()) / f"sluice-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def upload_file(path: Path, url: str) -> None:
    """Copy a local file to a remote URL.

    Raises:
        UserError: the URL cannot be written.
    """
    fs, target = connect(url)
    remedy = "check the address and your access rights, and start the same command again, it resumes"
    with store_errors(url, "cannot be written", remedy):
        fs.makedirs(posixpath.dirname(target), exist_ok=True)
        fs.put_file(str(path), target)


def remote_size(url: str) -> int | None:
    """Return the size of a remote file in bytes; None if there is no such file."""
    fs, path = connect(url)
    try:
        with store_errors(url, let=FileNotFoundError):
            return int(fs.size(path))
    except FileNotFoundError:
        return None


def read_remote_manifest(url: str) -> Manifest | None:
    """Return the manifest of a remote pack; None if there is no finished pack."""
    if remote_size(f"{url}/{MANIFEST_NAME}") is None:
        return None
    fs, path = connect(f"{url}/{MANIFEST_NAME}")
    with tempfile.TemporaryDirectory() as folder:
        with store_errors(f"{url}/{MANIFEST_NAME}"):
            fs.get_file(path, f"{folder}/{MANIFEST_NAME}")
        return read_manifest(Path(folder))


def upload_pack(staging: Path, url: str, manifest: Manifest) -> None:
    """Upload all files but the shards, which are there already, the manifest last; remove the local files."""
    for folder in (INDEX_FOLDER, LABELS_FOLDER, "."):
        for path in sorted((staging / folder).glob("*")):
            if path.is_file() and path.name != MANIFEST_NAME:
                upload_file(path, f"{url}/{path.relative_to(staging).as_posix()}")
    write_manifest(staging, manifest)
    upload_file(staging / MANIFEST_NAME, f"{url}/{MANIFEST_NAME}")
    shutil.rmtree(staging)
