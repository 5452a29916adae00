"""One command for every step from photographs to predictions; each step is a script of its own.

Examples:
    sluice pack --splits train=images/train test=images/test --out packs/mine
    sluice train
    sluice train vicreg --help
    sluice bench

Most commands are named after their files: `sluice NAME ...` runs tools/NAME.py with the arguments that
follow, `sluice train METHOD` runs recipes/METHOD.py, and `sluice bench WHAT` runs tools/bench_WHAT.py. A new
file is thus a new command.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.common.errors import UserError, run_command
from loaders.common.next_step import call_program

TOOLS = Path(__file__).resolve().parent
SHORT = {
    "pack": "pack_dataset",
    "verify": "verify_pack",
    "inspect": "inspect_pack",
    "convert": "convert_pack",
    "show": "show_views",
}
"""Commands whose names differ from those of their files."""
STEPS = (
    *("pack", "verify", "inspect", "show", "labels", "train", "probe", "evaluate"),
    *("predict", "export", "report", "active", "doctor", "bench"),
)
"""Commands and groups of commands for the usual steps, in order."""
GROUPS = {
    "train": "Train a network by a METHOD; without one, advise which to choose.",
    "bench": "Measure this machine; without an argument, list the benchmarks.",
}
HELP = ("--help", "-h")
_READABLE = 30  # a column of text needs at least this many characters


def main() -> None:
    """Run the named command, or list the commands."""
    name, *rest = sys.argv[1:] or HELP
    asks = not rest or rest[0] in HELP
    if name in HELP:
        print_commands()
    elif name == "train" and asks:
        print_methods()
    elif name == "train":
        run_script(find(methods(), rest[0], "method", "sluice train"), f"sluice train {rest[0]}", rest[1:])
    elif name == "bench" and asks:
        print_list("sluice bench WHAT ...", summaries(benchmarks()))
    elif name == "bench":
        run_script(
            find(benchmarks(), rest[0], "benchmark", "sluice bench"), f"sluice bench {rest[0]}", rest[1:]
        )
    else:
        run_script(find(commands(), name, "command", "sluice --help"), f"sluice {name}", rest)


def scripts(folder: Path) -> dict[str, Path]:
    """Return the scripts of a folder by name."""
    return {
        path.stem: path
        for path in sorted(folder.glob("*.py"))
        if path.stem != "sluice" and "run_command(main)" in path.read_text("utf-8")
    }


def methods() -> dict[str, Path]:
    """Return the recipes that `sluice train` runs, keyed by name."""
    found = scripts(TOOLS.parent / "recipes")
    return {name: path for name, path in found.items() if name not in STEPS}


def benchmarks() -> dict[str, Path]:
    """Return the benchmarks, keyed by what they measure."""
    found = scripts(TOOLS).items()
    return {name.removeprefix("bench_"): path for name, path in found if name.startswith("bench_")}


def commands() -> dict[str, Path]:
    """Return the scripts outside the groups `train` and `bench`, keyed by command, the usual steps first."""
    tools, recipes = scripts(TOOLS), scripts(TOOLS.parent / "recipes")
    found = {short: tools[name] for short, name in SHORT.items() if name in tools}
    found |= {name: path for name, path in recipes.items() if name in STEPS}
    others = {name for name in tools if name not in SHORT.values() and not name.startswith("bench_")}
    found |= {name: tools[name] for name in others}
    first = [name for name in STEPS if name in found]
    return {name: found[name] for name in (*first, *sorted(found.keys() - set(STEPS)))}


def find(known: dict[str, Path], name: str, what: str, lists: str) -> Path:
    """Return the script with this name.

    Raises:
        UserError: there is no such script; the message suggests a similar name if there is one.
    """
    if name in known:
        return known[name]
    others = GROUPS if what == "command" else ()
    near = difflib.get_close_matches(name, [*known, *others], n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    for group, inside in (("train", methods), ("bench", benchmarks)):
        if what == "command" and name in inside():
            meant = f"did you mean `sluice {group} {name}`? "
    raise UserError(f"{what}: expected a known {what}, found {name!r}; {meant}`{lists}` lists them")


def run_script(path: Path, called: str, words: Iterable[str]) -> None:
    """Run a script in this process, as `python PATH WORDS` would."""
    sys.argv[1:] = words
    call_program(called)
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        call_program(None)


def summaries(known: dict[str, Path]) -> dict[str, str]:
    """Return the first line of each script's docstring."""
    docstrings = {name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for name, path in known.items()}
    return {name: (text or "").partition("\n")[0] for name, text in docstrings.items()}


def print_list(usage: str, known: dict[str, str]) -> None:
    """Print the usage, then each name with what it is for."""
    print(f"usage: {usage}\n")
    width, columns = max(map(len, known), default=0), shutil.get_terminal_size().columns
    hanging = " " * (width + 4 if columns > 2 * width + _READABLE else 4)
    for name, what in known.items():
        begin = f"  {name:<{width}}  " if len(hanging) > 4 else f"  {name}  "
        print(textwrap.fill(what, max(columns, _READABLE), initial_indent=begin, subsequent_indent=hanging))


def print_commands() -> None:
    """Print every command, the usual steps first."""
    known = commands()
    steps = summaries({name: known[name] for name in STEPS if name in known}) | GROUPS
    print_list("sluice COMMAND ...", {name: steps[name] for name in STEPS if name in steps})
    print("\nfurther commands, named after their files:\n")
    print("  " + ", ".join(name for name in known if name not in steps))
    print("\n`sluice COMMAND --help` lists the options of a command.")


def print_methods() -> None:
    """Print which method to choose and why, then all methods."""
    from rich.console import Console

    from tools.command.advice import print_advice

    print_advice(Console())
    print_list("sluice train METHOD ...", summaries(methods()))
    print(
        "\n`sluice train METHOD --help` lists its options; on several GPUs: "
        "accelerate launch -m recipes.METHOD ..."
    )


def command() -> None:
    """Run as the installed command `sluice`."""
    run_command(main)


if __name__ == "__main__":
    run_command(main)
