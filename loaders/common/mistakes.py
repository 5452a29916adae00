"""Turns tyro's box about a mistake on the command line into one line."""

from __future__ import annotations

import re
from collections.abc import Collection

# Patterns of tyro's messages, each with the error line that replaces the message.
_FORMS = (
    (
        r"invalid choice (?P<found>'.*') for argument '(?P<what>.*)'\. Expected one of \((?P<all>.*?),?\)\.",
        r"\g<what>: expected one of \g<all>, found \g<found>; choose one of them",
    ),
    (
        r"(?s)Error parsing (?P<what>\S+): [^\n]*?(?P<found>(?P<quote>['\"])[^\n]*(?P=quote))\]?\.?\n"
        r".*Argument helptext:\n +\S+ (?P<kind>[^\n]*)",
        r"\g<what>: expected \g<kind>, found \g<found>; change it",
    ),
    (
        r"Missing value for argument '(?P<what>.*)'\. Expected 1 values\.",
        r"\g<what>: expected a value, found none; give one",
    ),
    (
        r"Missing value for argument '(?P<what>.*)'\. Expected (?P<number>\d+) values\.",
        r"\g<what>: expected \g<number> values, found fewer; give all",
    ),
    (r"Expected one of \s*\{(?P<all>.*)\}\.", r"command: expected one of \g<all>, found none; name one"),
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_UNKNOWN = re.compile(r"Unrecognized (?:or misplaced )?options:\s*(.*(?:\n  .*)*)")
_NEAR = re.compile(r"(?:Perhaps you meant|Arguments similar to .*):\n    ((?:--\S+ ?)+)")
_COMMANDS = re.compile(r"Available subcommands: (.*)")
_MISSING = re.compile(r"(?m)^    (\S.*)")
_WHERE = re.compile(r"(?m) \(applied to .*\)$")
_MAY_BE_NONE = re.compile(r"(?m)^( +--\S+) \{None\}\|(.+)")
_HELP = re.compile(r"For full helptext, (?:run|see):?\s+(.* --help)")


# Names of options in other libraries, and the options here that mean the same; without dashes in front.
_SYNONYMS = {
    **dict.fromkeys(("learning-rate", "base-lr"), ("lr", "lr-weights")),
    **dict.fromkeys(("data", "dataset", "data-dir", "data-path", "root"), ("pack", "splits", "images")),
    **dict.fromkeys(("output", "output-dir", "save-dir", "logdir"), ("out",)),
    **dict.fromkeys(("model", "arch", "architecture"), ("network", "backbone")),
    **dict.fromkeys(("pretrained", "weights", "checkpoint", "load"), ("init", "run", "network")),
    **dict.fromkeys(("image-size", "img-size", "input-size", "size"), ("resolution",)),
    **dict.fromkeys(("num-workers", "workers", "threads"), ("num-threads", "workers")),
    **dict.fromkeys(("num-epochs", "max-epochs"), ("epochs",)),
    **dict.fromkeys(("bs", "batch"), ("batch-size",)),
    **dict.fromkeys(("wd", "l2"), ("weight-decay",)),
    **dict.fromkeys(("gpu", "gpus", "cuda"), ("device",)),
}
_OPTION = re.compile(r"--([a-z0-9][\w.-]*)")


def retell(text: str, known: Collection[str] = ()) -> str | None:
    """Return a line with the message of a tyro box, without "error: "; None if the box is not recognised.

    Args:
        text: the box, wide enough that no line in it is broken; its border is blank if the output is ASCII.
        known: names of the command's options, without dashes in front.
    """
    rows = [row.rstrip(" │")[2:] for row in _COLOURS.sub("", text).splitlines()[1:]]  # below the title
    said = "\n".join("" if set(row) <= {"─", "-"} else row for row in rows).lstrip("\n")
    more = _HELP.search(said)
    if more is None:
        return None
    line = _retell(said[: more.start()], known)
    return line and f"{line} (`{more[1]}` says more)"


def _retell(said: str, known: Collection[str]) -> str | None:
    said = _MAY_BE_NONE.sub(r"\1 \2 or None", said)
    for form, line in _FORMS:
        if found := re.match(form, said):
            return found.expand(line)
    unknown = _UNKNOWN.search(said)
    wrong = " ".join(_WHERE.sub("", unknown[1]).split()) if unknown else ""
    if said.startswith("Missing from"):
        wanted = ", ".join(_MISSING.findall(said[: unknown.start()] if unknown else said))
        found_instead = f"{wrong} instead" if wrong else "none"
        return f"command line: expected {wanted} too, found {found_instead}; add what is missing"
    if not wrong:
        return None
    if commands := _COMMANDS.search(said):
        return f"command: expected one of {commands[1]}, found {wrong}; name one of them first"
    found_words = set(wrong.replace(",", " ").split())  # another subcommand may have an option of this name
    others = [names.strip() for names in dict.fromkeys(_NEAR.findall(said))]
    near = ", ".join(names for names in others if found_words.isdisjoint(names.split(", ")))
    meant = [name for word in _OPTION.findall(wrong) for name in _SYNONYMS.get(word.replace("_", "-"), ())]
    near = ", ".join(f"--{name}" for name in meant if name in known) or near
    remedy = f"did you mean {near}?" if near else "leave it out, or check its name"
    return f"command line: expected known options, found {wrong}; {remedy}"
