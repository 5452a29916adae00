"""Nothing that came from outside is unpickled or run: checked on the syntax of all code that reads files."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# This one only names the errors that loading tensors with weights_only=True may raise.
CATCHES_PICKLE_ERRORS = {"loaders/packs/sources/label_file.py imports pickle"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "os.system", "pd.read_pickle"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in UNSAFE_CALLS:
                yield f"calls {name}"
            if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                yield "calls np.load without allow_pickle=False"
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield "calls torch.load without weights_only=True"
            is_read = name == "tarfile.open" and "w" not in [
                ast.unparse(a).strip("'") for a in node.args[1:2]
            ]
            if "extractall" in name or is_read:
                yield f"calls {name}: members are read by offset, nothing is unpacked"
            if keywords.get("shell") == "True":
                yield f"calls {name} through a shell"


def test_nothing_from_outside_is_unpickled_unpacked_or_run() -> None:
    found = [
        f"{path.relative_to(ROOT)} {what}"
        for layer in ("loaders", "engine", "recipes", "tools")
        for path in (ROOT / layer).rglob("*.py")
        for what in unsafe(ast.parse(path.read_text()))
    ]
    assert set(found) <= CATCHES_PICKLE_ERRORS, found


def test_the_check_sees_what_it_looks_for() -> None:
    source = """
import pickle
from yaml import load
torch.load(path)
np.load(path, allow_pickle=True)
tar.extractall(path)
tarfile.open(path)
tarfile.open(path, "r|")
tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)
subprocess.run(line, shell=True)
"""
    assert len(list(unsafe(ast.parse(source)))) == 8
