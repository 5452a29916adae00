"""Budgets of processor time: the steps that a budget allows, and that only processor time counts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.forked import run_forked
from tools.comparison.cpu_budget import CommandFailed, Cost, calibrate


@pytest.mark.parametrize("per_epoch", [0.0, 3.0])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.3, 60.0])
def test_the_most_steps_that_fit(per_epoch: float, seconds: float) -> None:
    cost = Cost(base=1.5, per_step=0.25, per_epoch=per_epoch, steps_per_epoch=10)
    fitting = [n for n in range(1, 1000) if 1.5 + 0.25 * n + per_epoch * ((n - 1) // 10) <= seconds]
    assert cost.steps_within(seconds) == max(fitting, default=1)


def test_two_short_runs_tell_the_cost() -> None:
    def run(steps: int) -> float:
        return 4.0 + 0.5 * steps

    assert calibrate(run, (8, 40), 1.0, 100, epochwise=False) == Cost(4.0, 0.5, 0.0, 100)
    assert calibrate(run, (8, 40), 1.0, 100, epochwise=True) == Cost(4.0, 0.5, 3.0, 100)
    with pytest.raises(CommandFailed, match=r"40 steps took 3\.0 s, 8 took 3\.0 s"):
        calibrate(lambda steps: 3.0, (8, 40), 1.0, 100, epochwise=False)


SCRIPTS = {
    "busy.py": "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass\n",
    "idle.py": "import sys, time\ntime.sleep(float(sys.argv[1]))\n",
    "wrong.py": "print('about to fail')\nraise ValueError('no such thing')\n",
    "exit.py": "import sys\nsys.exit(3)\n",
    "endless.py": "while True: pass\n",
    "patient.py": "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\ntime.sleep(60)\n",
}
DRIVER = """
import os, pathlib, signal, sys, threading
from tools.comparison import cpu_budget
cpu_budget.ROOT = pathlib.Path(sys.argv[1])
for script, argument in (("busy.py", "0.4"), ("idle.py", "0.4"), ("wrong.py", ""), ("exit.py", "")):
    try:
        print(script, cpu_budget.cpu_seconds(script, (argument,), cpu_budget.ROOT / "logs" / "log"))
    except cpu_budget.CommandFailed as failed:
        print(script, "failed:", failed)
try:
    cpu_budget.cpu_seconds("endless.py", (), cpu_budget.ROOT / "logs" / "log", limit_s=0.2)
except cpu_budget.CommandFailed as failed:
    print("endless", failed.code, failed.seconds)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
try:
    cpu_budget.cpu_seconds("patient.py", (), cpu_budget.ROOT / "logs" / "log")
except cpu_budget.CommandStopped as stopped:
    print("stopped", stopped.seconds)
"""


def test_processor_time_counts_and_waiting_does_not(tmp_path: Path) -> None:
    # Run in a fork of a process without threads, since forks should not inherit any.
    for name, source in SCRIPTS.items():
        (tmp_path / name).write_text(source)
    # The processor clock of a fork starts at zero, so busy.py works for 0.4 s itself.
    ran = run_forked("-c", DRIVER, tmp_path)
    assert ran.returncode == 0, ran.stderr
    busy, idle, wrong, ended, endless, stopped = ran.stdout.splitlines()
    assert 0.4 <= float(busy.split()[1]) < 1.5
    assert float(idle.split()[1]) < 0.2
    log = tmp_path / "logs" / "log"
    assert wrong == f"wrong.py failed: wrong.py ended with code 1, see {log}"
    assert ended == f"exit.py failed: exit.py ended with code 3, see {log}"
    _, code, seconds = endless.split()
    assert int(code) == -signal.SIGXCPU
    assert 0.9 <= float(seconds) < 3.0  # the system counts whole seconds
    assert stopped.startswith("stopped ")
    assert "about to fail" in log.read_text()
    assert "ValueError: no such thing" in log.read_text()
