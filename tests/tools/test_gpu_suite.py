"""The parts of the GPU suite that need no GPU: its cases, and its groups of checks, run on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton")

from engine.train import rng
from loaders.packs import open_pack
from loaders.views.draw import draw
from loaders.views.presets import barlow_a, barlow_b
from tests.loaders.kernels.device.drawing import on_host
from tools.bench.workload import Workload
from tools.gpu import cases, peers, shared, suite, training
from tools.gpu.shared import Cases, missing

ROOT = Path(__file__).parents[2]
ABSENT = ("tyro", "rich", "numba", "llvmlite", "simplejpeg", "nvidia.dali", "kornia", "torchvision", "PIL",
          "accelerate", "timm", "psutil", "sklearn", "matplotlib", "pyarrow")  # fmt: skip
BARE = f"""#!{sys.executable}
import runpy, sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
def there(name, path=None, target=None):
    return None if any((name + ".").startswith(one + ".") for one in {ABSENT}) else find(name, path, target)
PathFinder.find_spec = there
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def few(tmp_path, monkeypatch):
    """File of cases with two images."""
    monkeypatch.setattr(cases, "SPEED_BATCH", 2)
    monkeypatch.setattr(cases, "SPEED", {16: 20})
    cases.write(tmp_path / "cases.npz", side=16, count=2)
    return tmp_path / "cases.npz"


@pytest.fixture
def lines(monkeypatch, capsys):
    """Return a function that runs a group of checks and returns its output lines."""

    def run(group, *args):
        monkeypatch.setattr(sys, "argv", ["suite.py", group.__name__])
        group(*args)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_suite_runs_up_to_the_first_line_that_needs_a_gpu(tmp_path, few):
    out, python = tmp_path / "out.jsonl", tmp_path / "python"
    python.write_text(BARE)  # only torch, Triton and numpy
    python.chmod(0o755)
    command = [ROOT / "tools/gpu_suite.sh", out, few, python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = Path(f"{out}.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.stdout == out.read_text()
    assert [line.get("view") for line in lines] == ["weak", "barlow_a", None, None], log
    assert all(line["max_of_255"] <= 0.01 for line in lines[:2])
    assert "seconds" in lines[2]
    assert lines[3] == {"group": "machine", "needs": "a CUDA device"}


def test_the_script_runs_every_group_and_says_what_it_leaves_out(tmp_path, few, monkeypatch):
    monkeypatch.delenv("SUITE_IMAGES", raising=False)
    out, python, calls = tmp_path / "out.jsonl", tmp_path / "python", tmp_path / "calls"
    # Text that pytest prints must not count as a result.
    python.write_text(f'#!/bin/sh\necho "$1" "$2" >> {calls}\n[ "$1" = -m ] && echo 3 passed\ntrue\n')
    python.chmod(0o755)
    subprocess.run([ROOT / "tools/gpu_suite.sh", out, few, python], check=True, capture_output=True)
    made = [
        line.split()[1] for line in calls.read_text().splitlines() if line.startswith("tools/gpu/suite.py")
    ]
    assert sorted(made) == sorted(suite.ON_CPU | suite.ON_GPU)
    assert made.index("fed") < made.index("peers") < made.index("sanitizer")
    [line] = [json.loads(line) for line in out.read_text().splitlines()]
    assert line["group"] == "loaders"
    assert "SUITE_IMAGES" in line["skipped"]


def test_the_machine_is_told_with_the_versions_of_its_libraries(lines, monkeypatch):
    """torch, and with it the device, is simulated."""
    device = SimpleNamespace(
        get_device_name=lambda: "none", get_device_capability=lambda: (0, 0),
        get_device_properties=lambda _: SimpleNamespace(total_memory=0),
    )  # fmt: skip
    facts = {"version": torch.version, "__version__": "0", "uint8": torch.uint8}
    empty = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(suite, "torch", SimpleNamespace(cuda=device, empty=lambda *_, **__: empty, **facts))
    monkeypatch.setattr(suite, "timed", lambda *_: 1.0)
    there = {"pytest": "1.0", "nvidia-dali-cuda999": "2.0", "numba-extras": "3.0"}
    found = [SimpleNamespace(name=name, version=version) for name, version in there.items()]
    monkeypatch.setattr(shared, "distributions", lambda: found)
    told = {line["library"]: line["version"] for line in lines(suite.machine, None) if "library" in line}
    assert (told["pytest"], told["nvidia-dali-cuda*"], told["numba"]) == ("1.0", "2.0", None)


def test_cases_hold_every_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "SPEED_BATCH", 2)
    cases.write(tmp_path / "cases.npz", side=12, count=2)
    content = np.load(tmp_path / "cases.npz")
    about = json.loads(content["about"].tobytes())
    assert len(about["parity"]) == 14
    assert len(about["speed"]) == 18
    for name, side, _, _ in about["parity"]:
        assert content[f"{name}.views"].shape == (2, 3, side, side)
        assert np.isfinite(content[f"{name}.views"]).all()


def test_our_views_beside_peers_are_those_of_the_cpu_backend(few):
    pixels, views, draws = peers.ours(Cases(few), 16, "cpu")
    images = [image.permute(1, 2, 0).numpy() for image in pixels]
    assert draws == peers.PER_IMAGE
    for number, view in enumerate(views()):
        policy = (barlow_a, barlow_b)[number](16)
        rows, sides = np.arange(2), np.full(2, 20)
        expected = on_host(images, policy, draw(policy, 0, 0 * rows, rows, number, sides, sides))
        assert view.dtype == torch.float16
        assert (view.float() - expected).abs().max() < 0.01


def test_without_numba_the_numbers_of_the_cases_are_drawn_from(few, monkeypatch):
    monkeypatch.setattr(peers, "missing", lambda *names: f"{names}: not installed")
    assert "beforehand" in peers.ours(Cases(few), 16, "cpu")[2]


def built(contender, pixels):
    """Return a library's views as tensors."""
    if missing(*contender.needs):
        pytest.skip(missing(*contender.needs))
    views = contender.build(pixels, Workload("barlow", 16, len(pixels), 1))()
    return [v if torch.is_tensor(v) else torch.from_numpy(np.array(v.as_tensor())) for v in views]


@pytest.mark.parametrize("contender", peers.CONTENDERS, ids=lambda one: one.name)
def test_libraries_deliver_two_normalised_views_and_draw_as_said(contender):
    torch.manual_seed(0)
    image = torch.from_numpy(cases.images_of(1, (20, 21))[0]).permute(2, 0, 1)
    pixels = image.expand(8, -1, -1, -1).contiguous()
    for view in built(contender, pixels):
        assert (view.shape, view.dtype) == ((8, 3, 16, 16), torch.float16)
        assert -3 < float(view.min()) < float(view.max()) < 4  # kornia does not clamp
        distinct = len({one.numpy().tobytes() for one in view})
        assert distinct == (8 if contender.draws == peers.PER_IMAGE else 1)


def test_peers_stand_beside_ours_or_are_skipped_in_a_line(lines, monkeypatch):
    pixels = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    monkeypatch.setattr(peers, "ours", lambda *_: (pixels, lambda: pixels.float(), peers.PER_IMAGE))
    monkeypatch.setattr(peers, "TURN_S", 0.001)
    found = lines(peers.peers, None, "cpu", (16,))
    assert [line["library"] for line in found] == [one.name for one in peers.CONTENDERS]
    for line, contender in zip(found, peers.CONTENDERS, strict=True):
        if missing(*contender.needs):
            assert line["skipped"].endswith("not installed")
        else:
            rates = line["ours_views_per_s"] / line["theirs_views_per_s"]
            assert line["ours_over_theirs"] == pytest.approx(rates, rel=0.02)
            assert line["random_numbers"] == {"ours": peers.PER_IMAGE, "theirs": contender.draws}


@pytest.fixture
def tiny(monkeypatch):
    """Make the training group use a small network and a few small images."""
    monkeypatch.delenv("SUITE_IMAGES", raising=False)
    monkeypatch.setattr(training, "NUM_IMAGES", 16)
    monkeypatch.setattr(training, "STALL_STEPS", 3)
    monkeypatch.setattr(training, "network_of", lambda *_: torch.nn.Conv2d(3, 2, 3))


def test_the_stall_of_fed_views_has_a_line_for_each_backend_that_is_there(lines, tiny, few):
    found = lines(training.fed, Cases(few), "cpu", (("small", 16),), 4)
    assert found.pop(0)["images"] == "drawn"
    for line, feed in zip(found, training.FEEDS, strict=True):
        assert line["feed"] == feed
        if feed == "dali" and missing("nvidia.dali"):
            assert "not installed" in line["skipped"]
        else:
            assert (line["network"], line["side"]) == ("small", 16)
            assert line["images_per_s"] > 0
            assert line["stall"] < 1


def test_the_images_of_the_user_are_packed_where_given(tiny, tmp_path, monkeypatch):
    for number, image in enumerate(cases.images_of(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.jpeg")
    monkeypatch.setenv("SUITE_IMAGES", str(tmp_path))
    (tmp_path / "out").mkdir()
    split = open_pack(training.packed(32, tmp_path / "out")).split("train")
    distinct = np.unique(split.pack.columns.height)
    assert len(split) == training.NUM_IMAGES
    assert sorted(distinct) == sorted({len(image) for image in cases.images_of(3)})


def test_fresh_steps_take_a_batch_each_and_those_on_one_batch_none(tiny, monkeypatch):
    taken = []

    class Loader:
        batch_size = 4

        def epoch(self, epoch):
            for number in range(100):
                taken.append(number)
                yield SimpleNamespace(views=(torch.full((4, 3, 8, 8), float(number)),))

    def seconds(call, times, device):  # pretend one second per step and one per batch
        before = len(taken)
        for _ in range(times):
            call()
        return 1 + (len(taken) - before) / times

    monkeypatch.setattr(training, "timed", seconds)
    found = training.stall_of(Loader(), torch.nn.Conv2d(3, 2, 3), "cpu")
    assert found == {"images_per_s": 2, "stall": 0.5}
    assert len(taken) == 1 + training.STALL_STEPS


@pytest.mark.parametrize("is_whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_resume_is_told_from_one_that_loses_random_numbers(lines, tiny, monkeypatch, is_whole):
    monkeypatch.setattr(training, "OPTIMIZERS", ("paper",))
    monkeypatch.setattr(training, "SAME_BITS", (True,))
    if not is_whole:
        monkeypatch.setattr(rng, "restore_rank", lambda *_: [])
    [found] = lines(training.resume, None)
    assert (found["optimizer"], found["deterministic"], found["steps"]) == ("paper", True, 8)
    assert found["apart"]["repeated"] == {"losses": 0, "weights": 0, "moments": 0}
    assert all((value == 0) == is_whole for value in found["apart"]["resumed"].values())


@pytest.mark.parametrize("group", [training.fed, training.resume])
def test_without_the_loaders_a_group_says_so_in_one_line(lines, monkeypatch, group):
    monkeypatch.setattr(training, "OF_THE_LOADERS", ("numba", "no_such_package"))
    assert lines(group, None) == [{"group": group.__name__, "skipped": "no_such_package: not installed"}]
