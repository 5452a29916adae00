"""The layers of the project: `loaders` < `engine` < {`recipes`, `tools`}."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "loaders": {"loaders"},
    "engine": {"engine", "loaders.batch", "loaders.errors"},
    "recipes": {"loaders", "engine"},
    "tools": {"loaders", "engine", "tools.bench", "tools.packing", "tools.peers", "tools.views"},
}
COMPOSED = {"recipes/pipeline.py": {"recipes"}}  # the one recipe whose stages are other recipes
HEAVY = ("nvidia.dali", "ffcv", "webdataset", "ray", "faiss")


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


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


def test_heavy_libraries_are_imported_lazily() -> None:
    wrong = []
    for layer in ("loaders", "engine"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = (
                        [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                    )
                    wrong += [f"{path}: {n}" for n in names if any(is_under(n, h) for h in HEAVY)]
    assert not wrong, wrong
