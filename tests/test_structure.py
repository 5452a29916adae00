"""Files, functions and lists of parameters stay small enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "loaders", "recipes", "tools")
MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_PARAMETERS = 450, 60, 8
PUBLIC = {"build_paired_loader": 9}  # a public function whose parameters must not change
COMPILED = "loaders/kernels"  # kernels need arrays as separate parameters, and calls are costly
COMPILERS = {"kernel", "njit"}  # decorators of kernels elsewhere


def too_long(path: Path, text: str) -> Iterator[str]:
    """Yield a message for each limit that a file exceeds."""
    if (lines := text.count("\n")) > MOST_LINES:
        yield f"{path} has {lines} lines"
    if path.as_posix().startswith(COMPILED):
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if {
            part.id for at in node.decorator_list for part in ast.walk(at) if isinstance(part, ast.Name)
        } & COMPILERS:
            continue
        first = min(part.lineno for part in (node, *node.decorator_list))
        if (lines := node.end_lineno - first + 1) > MOST_LINES_OF_FUNCTION:
            yield f"{path}:{node.lineno} {node.name} has {lines} lines"
        listed = node.args
        names = [a.arg for a in (*listed.posonlyargs, *listed.args, *listed.kwonlyargs)]
        number = (
            len(names)
            - (names[:1] in (["self"], ["cls"]))
            + len([*filter(None, (listed.vararg, listed.kwarg))])
        )
        if number > PUBLIC.get(node.name, MOST_PARAMETERS):
            yield f"{path}:{node.lineno} {node.name} has {number} parameters"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_too_long_to_read(folder: str) -> None:
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py"))]
    assert paths
    assert [line for path in paths for line in too_long(path, (ROOT / path).read_text("utf-8"))] == []


ZERO_IS_FINE = {"seed", "num_tested"}
GIVEN_ANEW = {"resolution", "epochs", "batch_size"}  # `RunConfig` declares their ranges
CONFIGS = {"RunConfig", "ClassifierConfig", "SemiConfig", "TileConfig"}


def unsaid(text: str) -> list[str]:
    """Return dataclass fields that count something but are not declared as `Count`, at least 1."""
    return [
        field.target.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if field.target.id not in ZERO_IS_FINE
        if not (CONFIGS & set(map(ast.unparse, node.bases)) and field.target.id in GIVEN_ANEW)
        if ast.unparse(field.annotation) in ("int", "tuple[int, ...]")
        if isinstance(field.value, ast.Constant | ast.Tuple)
        if (values := ast.literal_eval(field.value))
        and all(values if isinstance(values, tuple) else (values,))
    ]


def test_a_count_says_that_there_must_be_one() -> None:
    """A number with a default above 0 is a `Count`; exceptions, which may be 0, are listed here."""
    paths = [*ROOT.glob("recipes/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("engine/train/*config.py")]
    found = {path.name: unsaid(path.read_text("utf-8")) for path in paths}
    assert {name: fields for name, fields in found.items() if fields} == {}
    assert unsaid("@dataclass\nclass Config:\n    a: int = 5\n    b: int = 0\n    c: Count = 3\n") == ["a"]


def test_what_is_too_long_is_found() -> None:
    many = ", ".join(f"p{i}" for i in range(9))
    text = f"class A:\n    def few(self, {many[:-4]}): ...\n    def many({many}): ...\n"
    text += "def long():\n" + "    x = 1\n" * 60 + "\n" * 400
    found = list(too_long(Path("engine/a.py"), text))
    assert found == [
        "engine/a.py has 464 lines", "engine/a.py:4 long has 61 lines", "engine/a.py:3 many has 9 parameters",
    ]  # fmt: skip
    assert len(list(too_long(Path(COMPILED, "a.py"), text))) == 1
    compiled = f"@kernel\ndef many({many}): ...\n@njit(cache=True)\ndef more({many}): ...\n"
    assert list(too_long(Path("engine/a.py"), compiled)) == []
