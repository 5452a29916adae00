"""The images drawn for packing tests are reproducible and varied; ten kinds of damage are detected."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from loaders.packs import open_pack
from tests.loaders.packs.inputs import folder_hashes, jpeg, pack
from tools.draw_images import NUM_DAMAGES, Config, damage, draw


def test_every_hundredth_is_refused(tmp_path: Path) -> None:
    draw(Config(tmp_path / "in", 1000, num_classes=7, workers=1))
    packed = pack(tmp_path / "p", f"train={tmp_path / 'in'}", damaged="quarantine")
    assert (packed.manifest.num_images, packed.manifest.num_quarantined) == (990, 10)
    assert packed.manifest.actions == {"copied": 990}
    lines = (tmp_path / "p" / "quarantine.jsonl").read_text().splitlines()
    reasons = Counter(json.loads(line)["reason"].split(":")[0] for line in lines)
    assert reasons["not an image"] == 2
    assert len(reasons) >= 5
    assert len({packed.columns.content_hash[r].tobytes() for r in range(990)}) == 990
    assert len(set(zip(packed.columns.height.tolist(), packed.columns.width.tolist(), strict=True))) > 300
    assert len(open_pack(tmp_path / "p").classes) == 7


def test_the_same_files_every_time(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(Config(tmp_path / name, 40, num_classes=2, seed=seed, workers=1))
    hashes = [folder_hashes(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_the_ways_differ() -> None:
    assert len({damage(jpeg(1), way) for way in range(NUM_DAMAGES)}) == NUM_DAMAGES


def test_a_process_of_its_own_finds_the_library(tmp_path: Path) -> None:
    """A new process must load libjpeg-turbo itself, which other tests may already have loaded in this one."""
    command = [sys.executable, "tools/draw_images.py", "--num-images", "9", "--out", tmp_path / "drawn"]
    subprocess.run(command, check=True, capture_output=True)
    assert len([path for path in (tmp_path / "drawn").rglob("*") if path.is_file()]) == 9
