"""The Python of the README runs as it stands there, on smaller images and batches."""

import re
from pathlib import Path

from loaders.packs import Pack

ROOT = Path(__file__).parent.parent
SMALLER = (("(96)", "(16)"), ("512", "32"), ("256", "64"), ("64,", "8,"), ("range(100)", "range(1)"))


def test_the_training_loop_of_the_readme_runs(digits_pack: Pack) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[0]
    code = code.replace('"packs/mine"', repr(str(digits_pack.path)))
    for written, smaller in SMALLER:
        assert written in code
        code = code.replace(written, smaller)
    names: dict[str, object] = {}
    try:
        exec(code, names)
        assert len(names["labels"]) == 8
        assert len(names["weak"]) == len(names["strong"]) == 56
        assert bool((names["labels"] >= 0).all())
    finally:
        for loader in ("loader", "test", "pairs"):
            if loader in names:
                names[loader].close()
