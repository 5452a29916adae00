"""Commands and links on pages and in scripts: every command is accepted, every link has a target."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import tyro

from tools import label_sweep, sluice

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SCRIPTS = [
    path
    for folder in ("recipes", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "check_command_line(" in path.read_text()
]
COMMAND = re.compile(r"(?:python|accelerate launch) ((?:recipes|tools)/\w+\.py)(.*)")


def script_of(called: re.Match[str]) -> str:
    """Return `python SCRIPT` for a `sluice` command; outlines and commands that print lists stay as is."""
    before, group, name = called.groups()
    known = {"train": sluice.methods, "bench": sluice.benchmarks}.get(group, sluice.commands)()
    if name.isupper() or (group is None and name in sluice.GROUPS):
        return called[0]
    return f"{before}python {known[name].relative_to(ROOT).as_posix()}"


def commands(text: str) -> list[tuple[str, str]]:
    """Return scripts and their arguments from indented or fenced lines and from backticks in a text."""
    lines = re.sub(r" *\\\n\s*", " ", text)
    lines = re.sub(r"(?m)(^ *|`)sluice (?:(train|bench) )?(?!train |bench )(\w+)", script_of, lines)
    fenced = "\n".join(re.findall(r"```sh\n(.*?)```", lines, re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4}\S.*", lines, re.MULTILINE))
    quoted = "\n".join(re.findall(r"`((?:python|accelerate launch) [^`]*)`", lines))
    return [(m[1], m[2]) for m in COMMAND.finditer(f"{fenced}\n{indented}\n{quoted}")]


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


@cache
def given() -> dict[str, list[str]]:
    """Return the arguments of all commands on all pages and in all docstrings, by script."""
    found: dict[str, list[str]] = {}
    explained = (*SCRIPTS, Path(sluice.__file__))
    for text in [page.read_text() for page in PAGES] + [docstring(path) for path in explained]:
        for script, arguments in commands(text):
            found.setdefault(script, []).append(arguments)
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_commands_of_the_pages_are_taken(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = path.relative_to(ROOT).as_posix()
    module = importlib.import_module(script[:-3].replace("/", "."))
    config = module.Command if script == "tools/labels.py" else module.Config
    assert script in [name for name, _ in commands(docstring(path))], "no example in its --help"
    for line in given()[script]:
        arguments = shlex.split(re.sub(r"\s#.*", "", line))  # inside a word, # names a folder in an archive
        if not arguments or "..." in line or "$@" in line:
            continue  # just a name, an outline, or a shell function
        try:
            tyro.cli(config, args=arguments)
        except SystemExit as ended:
            if ended.code == 0:  # --help
                continue
            pytest.fail(f"{script}{line}: {capsys.readouterr()}")


def test_the_methods_inside_a_sweep_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    lines = given()["tools/label_sweep.py"]
    assert len(lines) > 2
    for line in lines:
        config = tyro.cli(label_sweep.Config, args=shlex.split(line))
        for job in label_sweep.plan(config)[: len(config.methods) * len(config.labels_per_class)]:
            recipe = importlib.import_module(f"recipes.{job.method.recipe}")
            _, _, *arguments = label_sweep.command_of(config, job)
            try:
                tyro.cli(recipe.Config, args=arguments)
            except SystemExit:
                pytest.fail(f"{arguments}: {capsys.readouterr()}")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_option_is_explained(path: Path) -> None:
    """The text must be understandable without the option's name, unlike `Of SGD.`"""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
            continue
        for field, text in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                assert isinstance(text, ast.Expr), ast.unparse(field)
                explained = ast.literal_eval(text.value)
                assert len(explained) > 9, explained
                assert not explained.startswith("Of "), explained


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", text):
        assert not target or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|tools|docs|recipes|loaders|engine)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        linked = (page.parent / target).read_text() if target else text
        headings = {
            re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
            for h in re.findall(r"^#+ (.*)", linked, re.M)
        }
        assert anchor in headings, f"{target}#{anchor}"
