"""A run folder with other options or of another recipe is refused before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.train.same_run import check_given
from loaders.common.errors import UserError
from loaders.common.files import to_json


@dataclass(frozen=True)
class Config:
    """The configuration of a recipe that is named like this file."""

    out: Path
    lr: float = 0.1
    splits: tuple[str, ...] = ("train",)
    log_every: int = 1


def write(out: Path, recipe: str = "test_same_run", **changes: object) -> None:
    content = {"out": str(out), "lr": 0.1, "splits": ["more"], "log_every": 1, "autocast": "no", **changes}
    (out / "config.json").write_bytes(to_json({"recipe": recipe, "config": content}))


def test_what_was_given_must_be_what_the_run_has(tmp_path: Path) -> None:
    write(tmp_path)
    check_given(Config(tmp_path, log_every=5), {"log_every", "out"})  # default splits depend on the pack
    check_given(Config(tmp_path, splits=("more",)), {"log_every", "out"})
    with pytest.raises(
        UserError, match=r"holds a run with lr = 0.1, but lr = 0.2 was requested; give another"
    ):
        check_given(Config(tmp_path, lr=0.2), {"log_every", "out"})


def test_every_recipe_has_the_name_of_its_file() -> None:
    for path in (Path(__file__).parents[3] / "recipes").glob("*.py"):
        names = re.findall(r'^    name = "(.*)"|Phases\("(.*?)"', path.read_text(), re.MULTILINE)
        assert {name or other for name, other in names} <= {path.stem}


def test_another_recipe_and_a_damaged_description_are_refused(tmp_path: Path) -> None:
    write(tmp_path, recipe="vicreg")
    with pytest.raises(UserError, match=r"expected a run of recipe 'test_same_run' in .*, found one of 'vic"):
        check_given(Config(tmp_path), ())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a run's configuration"):
        check_given(Config(tmp_path), ())
