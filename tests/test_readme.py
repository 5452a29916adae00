"""The Python code of the README runs unchanged, on a pack that the README's own command makes."""

import re
import shlex
from pathlib import Path

import pytest

from tests.in_process import run_script
from tests.loaders.packs.inputs import jpeg, write_tree

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
NUM_PHOTOS = 300  # the number in the README


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_training_loop_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"With {NUM_PHOTOS} photographs" in README
    photos = {f"{'cat' if i % 2 else 'dog'}/{i}.jpg": jpeg(i) for i in range(NUM_PHOTOS)}
    write_tree(tmp_path / "photos", photos)
    program, script, *arguments = shlex.split(blocks("sh")[0].splitlines()[0])
    assert (program, script) == ("python", "tools/pack_dataset.py")
    places = [text.replace("=photos", f"={tmp_path}/photos") for text in arguments]
    places = [str(tmp_path / text) if text == "packs/mine" else text for text in places]
    done = run_script(script, *places)
    assert done.returncode == 0, done.stderr
    code = blocks("python")[0]
    for written, smaller in (("(96)", "(16)"), ("range(100)", "range(1)")):
        assert written in code
        code = code.replace(written, smaller)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    try:
        exec(code, names)
        assert len(names["view_a"]) == len(names["view_b"]) == 64
        assert bool((names["labels"] >= 0).all())
        assert len(names["x"]) == 8
        assert len(names["weak"]) == len(names["strong"]) == 56
    finally:
        for loader in ("loader", "test", "pairs"):
            if loader in names:
                names[loader].close()
