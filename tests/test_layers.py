"""The layers of the project: `loaders` < `engine` < {`recipes`, `tools`}."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "loaders": {"loaders"},
    "engine": {
        "engine",
        "loaders.batch",
        "loaders.classification",
        "loaders.common",
        "loaders.epochs",
        "loaders.options",
        "loaders.order.fingerprint",  # the identity of a pack
        "loaders.packs",
        "loaders.views.evaluation",
        "loaders.views.policy",  # the description of a view
    },
    "recipes": {"loaders", "engine"},
    "tools": {
        "loaders",
        "engine",
        "tools.bench",
        "tools.command",
        "tools.frozen",
        "tools.gpu",
        "tools.comparison",
        "tools.packing",
        "tools.peers",
        "tools.reproduction",
        "tools.views",
    },
}
COMPOSED = {"recipes/pipeline.py": {"recipes"}}  # the only recipe that runs other recipes
HEAVY = ("nvidia.dali", "ffcv", "webdataset", "ray", "faiss")
OF_TRITON = ("loaders/kernels/device/filters.py", "loaders/kernels/device/views.py")  # need Triton


@cache
def imported_modules(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return frozenset(found)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_imports_follow_the_layers() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for layer, allowed in ALLOWED.items()
        for path in (ROOT / layer).rglob("*.py")
        for module in imported_modules(path)
        if module.split(".")[0] in ALLOWED
        and not any(is_under(module, a) for a in allowed | COMPOSED.get(str(path.relative_to(ROOT)), set()))
    ]
    assert not wrong, wrong


def at_import(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported, which excludes function bodies."""
    for node in nodes:
        yield node
        typing_alone = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_alone and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody", "handlers"):
                yield from at_import(getattr(node, part, []))


def heavy_imports(text: str, heavy: tuple[str, ...]) -> list[str]:
    """Return the heavy libraries that a module imports when it is imported itself."""
    names = []
    for node in at_import(ast.parse(text).body):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if any(is_under(name, one) for one in heavy)]


def test_heavy_libraries_are_imported_lazily() -> None:
    of_triton = ("triton", *(path.removesuffix(".py").replace("/", ".") for path in OF_TRITON))
    wrong = {}
    for layer in ("loaders", "engine"):
        for path in (ROOT / layer).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            heavy = HEAVY if name in OF_TRITON else HEAVY + of_triton
            wrong |= {name: found} if (found := heavy_imports(path.read_text(), heavy)) else {}
    assert not wrong
    inside = (
        "try:\n    import triton.x\nexcept ImportError:\n    from ray import data\ndef f():\n    import ffcv"
    )
    assert heavy_imports(inside, HEAVY + of_triton) == ["triton.x", "ray.data"]


def test_scripts_find_what_is_not_installed() -> None:
    """`python tools/x.py` sees its own folder and the installed `engine` and `loaders`, nothing else."""
    wrong = [
        str(path.relative_to(ROOT))
        for layer in ("recipes", "tools")
        for path in (ROOT / layer).glob("*.py")
        if any(is_under(module, "tools") or is_under(module, "recipes") for module in imported_modules(path))
        and "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))" not in path.read_text()
    ]
    assert not wrong, f"these import from tools or recipes without the repository on sys.path: {wrong}"


def test_a_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/pack_dataset.py"), "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PRIVATE_BUT_DOCUMENTED = {
    "_exit": "of os",
    "_fields": "of named tuples",
    "_getvalue": "numba's manual, on its low-level extension API",
    "_cat_file": "fsspec's manual: the coroutine behind cat_file",
}


def private_names(text: str) -> tuple[set[str], set[str]]:
    """Return the private names that a file uses, and all names that it defines."""
    used, defined = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
            used |= {part for name in names for part in name.split(".")}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
            defined |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    private = {name for name in used if name.startswith("_") and not name.endswith("__")}
    return private - set(PRIVATE_BUT_DOCUMENTED), defined


def test_no_private_name_of_a_library_is_used() -> None:
    paths = [path for layer in ALLOWED for path in sorted((ROOT / layer).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): private_names(path.read_text()) for path in paths}
    ours = set().union(*(defined for _, defined in found.values()))
    assert {path: used - ours for path, (used, _) in found.items() if used - ours} == {}
    sample = "from torch.nn.modules.batchnorm import _BatchNorm\nx = torch._foreach_norm(a._ours)"
    assert private_names(sample)[0] == {"_BatchNorm", "_foreach_norm", "_ours"}


def test_common_knows_nothing_above_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "loaders" / "common").glob("*.py")
        for module in imported_modules(path)
        if module.split(".")[0] in ALLOWED and not is_under(module, "loaders.common")
    ]
    assert not wrong, wrong


def module_graph() -> dict[str, set[str]]:
    """Return, for each module, the modules that it imports when it is imported itself."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for layer in ALLOWED
        for path in (ROOT / layer).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = graph.setdefault(name, set())
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (inside & set(paths)) or {node.module or ""}
        found &= set(paths)
        found.discard(name)
    return graph


def test_the_import_graph_has_no_circle() -> None:
    graph = module_graph()
    while leaves := {name for name, imported in graph.items() if not imported & set(graph)}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph, f"in or above a circle: {sorted(graph)}"
