"""No outside data is unpickled, unpacked or run as code, and all JSON is read by one function.

The check reads the syntax tree of all code and resolves each name to what was imported, whatever its alias.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
THE_ONE_WAY = {
    "loaders/common/json_text.py uses json.loads",  # limits the depth of nesting
    # Reads a file that the same call has just written, before it gets its final name.
    "engine/nets/exported.py uses torch.export.load",
    # A peer in a benchmark: runs the file that the user names with --source, in order to measure it.
    "tools/peers/airbench.py uses spec.loader.exec_module in a way that may run what it reads",
}
UNSAFE_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}
UNSAFE_NAMES = {
    *("eval", "exec", "compile", "os.system", "os.popen", "shutil.unpack_archive", "pandas.read_pickle"),
    *("torch.export.load", "torch.jit.load", "torch.package.PackageImporter"),  # run code from the file
    *("tarfile.TarFile", "json.load", "json.loads", "json.JSONDecoder"),
}
UNSAFE_METHODS = {"extract", "extractall", "unpack_archive", "read_pickle"}  # of any object
# Calls that are safe with a certain argument: its name and value.
CONDITIONS = {"numpy.load": ("allow_pickle", "False"), "torch.load": ("weights_only", "True")}


def unsafe(tree: ast.AST) -> Iterator[str]:
    nodes = list(ast.walk(tree))
    origins = dict(_imported(nodes))
    called = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES)
            imported = [f"{module}.{alias.name}" for alias in node.names] if module else []
            yield from (f"uses {name}" for name in imported if name in UNSAFE_NAMES)
        elif isinstance(node, ast.Name | ast.Attribute):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                continue  # an assignment, such as a dataclass field
            name = _full_name(node, origins)
            if name in UNSAFE_NAMES:
                yield f"uses {name}"
            elif isinstance(node, ast.Attribute) and node.attr in UNSAFE_METHODS:
                yield f"uses {name}: members are read by offset, nothing is unpacked"
            elif _runs_a_file(node) or not _is_allowed(name, called.get(id(node))):
                yield f"uses {name} in a way that may run what it reads"
        elif isinstance(node, ast.Call) and _argument(node, "shell") == "True":
            yield f"calls {ast.unparse(node.func)} through a shell"


def _imported(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """Yield each imported name and what it stands for."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _runs_a_file(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("exec_module", "load_module")


def _full_name(node: ast.expr, origins: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(node).partition(".")
    return origins.get(first, first) + dot + rest


def _is_allowed(name: str, call: ast.Call | None) -> bool:
    """Return whether an unsafe name is called with the argument that makes the call safe."""
    if name in CONDITIONS:
        keyword, value = CONDITIONS[name]
        return call is not None and _argument(call, keyword) == value
    if name == "tarfile.open":
        mode = _argument(call, "mode", 1) if call is not None else None
        return mode is not None and mode.strip("'").startswith("w")
    return True


def _argument(call: ast.Call, name: str, place: int | None = None) -> str | None:
    found = [keyword.value for keyword in call.keywords if keyword.arg == name]
    found += call.args[place : place + 1] if place is not None else []
    return ast.unparse(found[0]) if found else None


def test_nothing_from_outside_is_unpickled_unpacked_or_run() -> None:
    found = [
        f"{path.relative_to(ROOT)} {what}"
        for layer in ("loaders", "engine", "recipes", "tools")
        for path in (ROOT / layer).rglob("*.py")
        for what in unsafe(ast.parse(path.read_text()))
    ]
    assert set(found) == THE_ONE_WAY, found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "spec.loader.exec_module(module)",
        "import dill as d",
        "from yaml import load",
        "import torch; torch.load(path)",
        "from torch import load; load(path)",
        "import torch as t; t.load(path, weights_only=False)",
        "import torch; read = torch.load",
        "import torch; torch.export.load(path)",
        "from torch.export import load",
        "import torch; torch.jit.load(path)",
        "import numpy as np; np.load(path)",
        "import numpy; numpy.load(path, allow_pickle=True)",
        "from numpy import load as read; read(path)",
        "import pandas; pandas.read_pickle(path)",
        "from pandas import read_pickle",
        "table.read_pickle(path)",
        "tar.extract(member)",
        "tar.extractall()",
        "(make()).extractall(path)",
        "import zipfile; zipfile.ZipFile(path).extract(name)",
        "import shutil; shutil.unpack_archive(path)",
        "from shutil import unpack_archive as u",
        "import tarfile; tarfile.TarFile(path)",
        "from tarfile import TarFile; TarFile(path)",
        "import tarfile; tarfile.TarFile.open(path)",
        "import tarfile; tarfile.open(path)",
        "import tarfile; tarfile.open(path, 'r|')",
        "import tarfile; tarfile.open(path, mode='r:gz')",
        "from tarfile import open as read; read(path)",
        "import subprocess; subprocess.run(line, shell=True)",
        "import os; os.system(line)",
        "from os import popen",
        "eval(text)",
        "exec(text)",
        "import json; json.loads(text)",
        "import json; json.load(file)",
        "import json; list(map(json.loads, lines))",
        "from json import loads",
    ],
)
def test_every_spelling_is_seen(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load(path, weights_only=True)",
        "import numpy as np; np.load(path, mmap_mode='r', allow_pickle=False)",
        "import tarfile; tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT)",
        "import tarfile; tarfile.open(fileobj=file, mode='w|')",
        "import re; re.compile(text)",
        "network.eval()",
        "import json; json.dumps(value)",
        "import subprocess; subprocess.run(command)",
    ],
)
def test_what_is_safe_passes(line: str) -> None:
    assert not list(unsafe(ast.parse(line)))
