"""Making keys from paths, and telling from the name of a file whether it is an image.

Every reader of a shard must read a key correctly. webdataset and DALI cut the name of a member at the first
dot of its last part, and DALI splits its index at spaces. Therefore dots of the last part, white space,
unprintable characters, "%" and bytes that are not UTF-8 are written as "%XX" in keys. This can be undone.
"""

from __future__ import annotations

import re
from pathlib import Path

from loaders.common.errors import UserError

IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng bmp dib gif webp tif tiff ppm pgm pbm pnm pfm jp2 j2k jpx avif heic heif hif "  # noqa: SIM905
    "jxl ico pcx sgi dds qoi mpo".split()
)
# Suffixes and names of files that lie beside images: notes, tables, leftovers of operating systems.
_NO_IMAGE_SUFFIXES = frozenset(
    "txt md rst csv tsv json jsonl ndjson xml yaml yml toml ini cfg conf log html htm css js py pyc ipynb sh "  # noqa: SIM905
    "bat md5 sha1 sha256 url lnk doc docx xls xlsx tex bib".split()
)
_NO_IMAGE_NAMES = frozenset(
    "thumbs.db ehthumbs.db desktop.ini .ds_store .localized .directory .gitignore .gitkeep .gitattributes "  # noqa: SIM905
    ".keep .nomedia icon\r readme license licence copying notice changelog authors makefile".split(" ")
)
_HIDDEN_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-/]*")


_KINDS = (
    "a folder, .tar, .tar.gz, .zip, .beton, .csv, .tsv, .txt, .jsonl, .parquet, .arrow, or wds: in front of "
    "WebDataset shards"
)


def check_source(source: str) -> None:
    """Refuse a PATH of images at which there is nothing, or a single image; URLs and patterns pass."""
    path = Path(source if Path(source).exists() else source.partition("#")[0])  # "#" may be in a name
    absent = not path.exists() and not set(source) & set(":*?[]{},")
    if absent or (path.is_file() and is_image_name(path.name)):
        raise not_a_source(path)


def not_a_source(path: Path) -> UserError:
    """Return the error for a path where there is nothing, a single image, or another file without images."""
    if not path.exists():
        return UserError(f"no images at {path}: expected {_KINDS}; check the path")
    remedy = "give its folder" if is_image_name(path.name) else "unpack or convert it"
    return UserError(f"{path} is not a source of images: expected {_KINDS}; {remedy}")


def is_image_name(name: str) -> bool:
    """Tell whether the suffix of a file is that of an image."""
    _, dot, suffix = name.rpartition(".")
    return bool(dot) and (suffix in IMAGE_SUFFIXES or suffix.lower() in IMAGE_SUFFIXES)


def is_no_image_name(name: str) -> bool:
    """Tell whether a file's name shows that it is no image, but a note, a table or a system's leftover."""
    file = name.rpartition("/")[2].lower()
    if file in _NO_IMAGE_NAMES or file.startswith("._"):
        return True
    _, dot, suffix = file.rpartition(".")
    return bool(dot) and suffix in _NO_IMAGE_SUFFIXES


def is_hidden_folder(name: str) -> bool:
    """Tell whether a folder is a program's own, such as for thumbnails, checkpoints or version control."""
    # A folder whose whole name is a suffix, such as ".jpg", is odd, but belongs to the user.
    is_named = name not in (".", "..") and name[1:] not in IMAGE_SUFFIXES
    return (name.startswith(".") and is_named) or name in _HIDDEN_FOLDERS


def unwanted(name: str) -> str | None:
    """Return why a file is not meant as an input, judged by its path; None for any other file.

    An unwanted file is quarantined as `Reason.HIDDEN`, or skipped if `is_no_image_name` is true of it.
    """
    if "/." not in name and name[:1] != "." and not any(mark in name for mark in _HIDDEN_FOLDERS):
        return None  # a fast exit for nearly all names
    *folders, file = name.split("/")
    if any(map(is_hidden_folder, folders)):
        return "in a hidden folder"
    return "a resource fork of macOS, not an image" if file.startswith("._") else None


def folder_key(folder: str) -> str:
    """Return the key of a folder path ("" for the root)."""
    # ".." is escaped, since unpacking a shard must not write outside of its folder.
    return "/".join("%2E%2E" if part == ".." else _escape(part, keep=".") for part in folder.split("/"))


def file_stem(name: str) -> str:
    """Return a file's name without the suffix of an image, if it has one."""
    stem, dot, suffix = name.rpartition(".")
    is_image = dot and (suffix in IMAGE_SUFFIXES or suffix.lower() in IMAGE_SUFFIXES)
    return stem if is_image else name


def file_key(name: str, keeps_suffix: bool) -> str:
    """Return the key of a file name; `keeps_suffix` is for files that share their stem with another file."""
    return name_key(name if keeps_suffix else file_stem(name) or name)


def name_key(name: str) -> str:
    """Return the key of the last part of a path, with all dots escaped."""
    return _escape(name, keep="")


def join_key(folder: str, file: str) -> str:
    """Join the keys of a folder and of a file in it."""
    return f"{folder}/{file}" if folder else file


def _escape(text: str, keep: str) -> str:
    if _PLAIN_NAME.fullmatch(text):
        return text
    return "".join(c if _is_safe(c, keep) else _percent(c) for c in text)


def _is_safe(char: str, keep: str) -> bool:
    if char in "%." and char not in keep:
        return False
    return char.isprintable() and not char.isspace()


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
