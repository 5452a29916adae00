"""Each example of docs/loader.md runs unchanged, on the digits."""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

from loaders.packs import Pack

PAGE = Path(__file__).parents[1] / "docs" / "loader.md"
EXAMPLES = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.S))
NEEDS = {"Lightning": "lightning", "timm": "timm"}


def run(name: str, pack: Pack, folder: Path) -> dict:
    text = EXAMPLES[name].replace("packs/mine", str(pack.path)).replace('"resnet18"', '"test_resnet"')
    text = text.replace("max_epochs=2", f"max_epochs=2, {QUIET}, default_root_dir={str(folder)!r}")
    found: dict = {"__name__": "example"}
    exec(compile(text, f"{PAGE}: {name}", "exec"), found)
    return found


QUIET = "enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False"


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_the_examples_run(name: str, digits_pack: Pack, tmp_path: Path, capsys) -> None:
    module = NEEDS.get(name)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    with warnings.catch_warnings():
        if module is not None:
            warnings.simplefilter("ignore")  # another library's warnings about its trainer
        found = run(name, digits_pack, tmp_path)
    if name == "Plain PyTorch":
        assert found["train"].next_epoch == 2
    elif name == "Lightning":
        assert found["trainer"].global_step == 2 * len(found["train"])
        assert 0 < found["trainer"].callback_metrics["accuracy"] <= 1
    elif name == "timm":
        assert re.fullmatch(r"\d+\.\d %\n", capsys.readouterr().out)
    else:
        assert next(iter(found["theirs"])).views[0].shape == (64, 3, 32, 32)


def test_every_example_is_found() -> None:
    assert list(EXAMPLES) == ["Plain PyTorch", "A transform of your own", "Lightning", "timm"]
