"""A .tar of a folder tree, read in place: the members are listed once, then read by offset."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from loaders.errors import UserError
from loaders.packs.sources.item import SourceItem, check_size
from loaders.packs.sources.naming import file_keys, folder_key, join_key
from loaders.packs.sources.tar_members import TarMember, list_members


class TarSource:
    """The files below one folder of a tar; a class is the folder a file lies in, as in a folder tree."""

    def __init__(self, path: Path, inside: str | None) -> None:
        """Open a tar.

        Args:
            path: the .tar file.
            inside: folder inside the tar that is the root; None takes the deepest folder that holds all
                files, so that the one top folder most tars have does not become a class.

        Raises:
            UserError: no such file.
        """
        self._path = path
        self._inside = None if inside is None else inside.strip("/")
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot open {path} ({error.strerror}): check the path") from None

    def items(self) -> Iterator[SourceItem]:
        """List the members and yield those below the root in the order of a folder walk."""
        members = [_plain_name(m) for m in list_members(self._path)]
        root = _common_folder([m.name for m in members]) if self._inside is None else self._inside
        prefix = f"{root}/" if root else ""
        chosen = [m for m in members if m.name.startswith(prefix)]
        if not chosen:
            raise UserError(self._nothing_below(root, members))
        last = {member.name: index for index, member in enumerate(chosen)}
        names = sorted(last, key=lambda name: name.replace("/", "\0"))
        keys = _keys([name[len(prefix) :] for name in names])
        repeats: dict[str, list[TarMember]] = defaultdict(list)
        for index, member in enumerate(chosen):
            if last[member.name] != index:
                repeats[member.name].append(member)
        for name, key in zip(names, keys, strict=True):
            for number, member in enumerate(repeats.get(name, ())):
                problem = "a later member of the tar has the same name"
                yield self._item(member, prefix, f"{key}%2Frepeat{number}", problem)
            yield self._item(chosen[last[name]], prefix, key, None)

    def _item(self, member: TarMember, prefix: str, key: str, problem: str | None) -> SourceItem:
        name = member.name[len(prefix) :]
        label = name.rpartition("/")[0].rpartition("/")[2] or None
        return SourceItem(name, key, label, member.size_bytes, member.offset, problem or member.problem)

    def _nothing_below(self, root: str, members: list[TarMember]) -> str:
        if not members:
            return f"{self._path} holds no file: expected a tar of images"
        tops = sorted({"/".join(m.name.split("/")[:2]) for m in members if "/" in m.name})[:4]
        return (
            f"{self._path} holds no file below {root!r}: expected one of its folders, e.g. {', '.join(tops)}"
        )

    def read(self, item: SourceItem) -> bytes:
        """Return the bytes of a member."""
        data = os.pread(self._descriptor, item.size_bytes, item.position)
        while len(data) < item.size_bytes and (
            more := os.pread(self._descriptor, item.size_bytes - len(data), item.position + len(data))
        ):
            data += more
        check_size(str(self._path), item, len(data))
        return data

    def close(self) -> None:
        """Close the tar."""
        os.close(self._descriptor)


def _plain_name(member: TarMember) -> TarMember:
    """Drop "./" and "/" in front; ".." is kept as text, since members are never written to disk."""
    name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
    return (
        member if name == member.name else TarMember(name, member.offset, member.size_bytes, member.problem)
    )


def _common_folder(names: list[str]) -> str:
    if not names:
        return ""
    folders = [name.rpartition("/")[0] for name in (min(names), max(names))]
    common = []
    for a, b in zip(*(folder.split("/") for folder in folders), strict=False):
        if a != b:
            break
        common.append(a)
    return "/".join(common)


def _keys(names: list[str]) -> list[str]:
    """Return the key of each path, distinct as in a folder walk."""
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        files[folder].append(file)
    by_folder = {}
    for folder, inside in files.items():
        by_folder[folder] = (folder_key(folder), dict(zip(inside, file_keys(inside), strict=True)))
    keys = []
    for name in names:
        folder, _, file = name.rpartition("/")
        key, inside_keys = by_folder[folder]
        keys.append(join_key(key, inside_keys[file]))
    return keys
