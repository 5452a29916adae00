"""The demo: tools accept its commands, a failing step stops it, and it removes only its own files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from rich.console import Console

import recipes.barlow
import recipes.transfer
import tools.pack_dataset
import tools.probe
import tools.report
import tools.write_digits
from loaders.common.errors import UserError
from tests.next_line import read_next_line
from tools import demo

CONFIGS: dict[str, Any] = {
    "tools/write_digits.py": tools.write_digits.Config,
    "tools/pack_dataset.py": tools.pack_dataset.Config,
    "recipes/barlow.py": recipes.barlow.Config,
    "tools/probe.py": tools.probe.Config,
    "recipes/transfer.py": recipes.transfer.Config,
    "tools/report.py": tools.report.Config,
}


def test_every_command_is_accepted_by_its_script() -> None:
    config = demo.Config(out=Path("runs/x"), pack=Path("packs/x"))
    steps = [*demo.plan(config), demo.report_step(config, Path("runs/x/commands.txt"))]
    seen = []
    for step in steps:
        place = next(i for i, word in enumerate(step.command) if word.endswith(".py"))
        script, arguments = step.command[place], step.command[place + 1 :]
        if script in CONFIGS:
            tyro.cli(CONFIGS[script], args=arguments)
            seen.append(script)
    assert set(seen) == set(CONFIGS)
    assert len(steps) == len(CONFIGS) + 1


def test_the_machine_decides_neither_precision_nor_threads() -> None:
    """By default, a GPU would use bfloat16, and torch as many threads as there are cores."""
    steps = demo.plan(demo.Config(num_threads=3))
    trainings = [step for step in steps if any("recipes/" in word for word in step.command)]
    assert len(trainings) == 2
    assert all("--precision no" in step.text and "--num-threads 3" in step.text for step in trainings)
    console = Console(file=io.StringIO(), width=200)
    program = "import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']))"
    with pytest.raises(SystemExit) as stopped:
        demo.run_step(console, 1, demo.Step("count", (sys.executable, "-c", program)), num_threads=3)
    assert stopped.value.code == 3


def test_what_one_step_writes_the_next_one_reads() -> None:
    config = demo.Config(out=Path("runs/x"), pack=Path("packs/x"))
    texts = [step.text for step in demo.plan(config)]
    assert all("packs/x" in text for text in texts[1:])
    assert "--out runs/x/barlow" in texts[3]
    assert "--run runs/x/barlow" in texts[4]
    assert "--init runs/x/barlow" in texts[5]


def test_a_failing_step_stops_with_its_exit_code() -> None:
    console = Console(file=io.StringIO(), width=200)
    step = demo.Step("fail", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(SystemExit) as stopped:
        demo.run_step(console, 4, step)
    assert stopped.value.code == 3
    assert "step 4 failed with exit code 3" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_step_prints_a_command_that_can_be_copied() -> None:
    console = Console(file=io.StringIO(), width=20)
    step = demo.Step("say", (sys.executable, "-c", "import engine, loaders"))
    assert demo.run_step(console, 1, step) > 0
    assert f"$ {step.text}" in console.file.getvalue()  # type: ignore[attr-defined]


def play(config: demo.Config, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a simulated demo up to step `last`, which fails; step 2 creates the pack."""

    def step(console: Console, number: int, step: demo.Step, num_threads: int) -> float:
        if number == last:
            raise SystemExit(1)
        if number == 2:
            config.pack.mkdir(parents=True)
            (config.pack / "manifest.json").write_text("of the demo")
        return 0.0

    monkeypatch.setattr(demo, "run_step", step)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(config.out), "--pack", str(config.pack)])
    with pytest.raises(SystemExit):
        demo.main()


def test_only_what_a_demo_made_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, foreign = demo.Config(out=tmp_path / "runs" / "demo", pack=tmp_path / "pack"), tmp_path / "mine"
    for last in (1, 4, 2):
        play(config, last, monkeypatch)
        (config.out / "file").touch()
    play(config, 1, monkeypatch)
    assert [path.name for path in config.out.iterdir()] == [demo.MARKER]
    assert not config.pack.exists()
    foreign.mkdir()
    (foreign / "file").touch()
    with pytest.raises(UserError, match="found other content"):
        demo.make_room(foreign)
    assert (foreign / "file").exists()


@pytest.mark.parametrize("last", [1, 4])
def test_a_pack_of_the_users_own_in_the_place_of_the_demo_s_stays(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = demo.Config(out=tmp_path / "run", pack=tmp_path / "pack")
    play(config, last, monkeypatch)
    own = config.pack / "manifest.json"
    own.parent.mkdir(exist_ok=True)
    own.write_text("of mine")
    with pytest.raises(
        UserError, match=r"^demo: expected .*pack to be empty .*, found other content; move it"
    ):
        demo.make_room(config.pack)
    assert own.read_text() == "of mine"


@pytest.mark.parametrize("option", ["out", "pack"])
@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_the_working_folder_is_no_place_for_a_demo(option: str, folder: str) -> None:
    with pytest.raises(UserError, match=rf"^{option}: expected a folder of its own, found "):
        demo.Config(**{option: Path(folder)})  # type: ignore[arg-type]


def test_a_stopped_demo_says_that_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_step", stop)
    monkeypatch.setattr(
        sys, "argv", ["demo", "--out", str(tmp_path / "runs"), "--pack", str(tmp_path / "pack")]
    )
    with pytest.raises(KeyboardInterrupt, match=r"the next demo starts over$"):
        demo.main()

    def stop_in_the_pack(*arguments: object) -> None:
        (tmp_path / "pack").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_step", stop_in_the_pack)
    with pytest.raises(KeyboardInterrupt, match=r"starts over; first remove .*pack, which is unfinished"):
        demo.main()
    assert demo.plan(demo.Config(epochs=3))[3].text.count("--warmup-epochs 1 ") == 1


def test_a_demo_suggests_one_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "from loaders.common.next_step import say_next; print('a step'); say_next('tools/export.py')"
    say = demo.Step("say", (sys.executable, "-c", program))
    monkeypatch.setattr(demo, "plan", lambda config: [say])
    monkeypatch.setattr(demo, "report_step", lambda *arguments: say)
    monkeypatch.setattr(demo, "print_outcome", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "o"), "--pack", str(tmp_path / "p")])
    demo.main()
    out = capfd.readouterr().out
    assert out.count("a step\n") == 2
    assert out.count("next: ") == 1
    assert read_next_line(out)[0] == "tools/pack_dataset.py"
