"""Memory of batches stays intact while anyone holds it, is reused afterwards, and exits without errors."""

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

from loaders.backends import buffers
from loaders.backends.buffers import BufferPool

BUSY_AT_EXIT = """
import sys
import threading
from loaders.backends.buffers import BufferPool

sys.setswitchinterval(1e-6)
pool = BufferPool((4,), "float32")
others = [pool.take() for _ in range(20000)]

def work():
    kept = []
    while True:
        kept.append(pool.take())
        if len(kept) > 5:
            kept.clear()

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
"""


def _address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_only_when_its_last_user_is_gone():
    pool = BufferPool((2, 3), np.float32)
    first = pool.take()
    place = _address(first)
    tensor = torch.from_numpy(first)[1:]
    del first
    assert _address(pool.take()) != place
    del tensor
    assert {_address(one) for one in (pool.take(), pool.take())} >= {place}


def test_memory_that_comes_back_in_a_moment_is_waited_for(monkeypatch):
    monkeypatch.setattr(buffers, "_PATIENCE_S", 60)  # long enough on a busy machine
    pool = BufferPool((2, 3), np.float32, usual=2)
    held = [pool.take(), pool.take()]
    places = {_address(one) for one in held}
    threading.Timer(0.02, held.clear).start()
    assert _address(pool.take()) in places


def test_users_who_keep_memory_are_waited_for_once(monkeypatch):
    pool = BufferPool((2, 3), np.float32, usual=1)
    kept = [pool.take(), pool.take()]
    monkeypatch.setattr(pool, "_wait", lambda: pytest.fail("waited a second time"))
    kept += [pool.take() for _ in range(5)]
    assert len({_address(one) for one in kept}) == 7


def test_a_pool_is_freed_without_garbage_collection():
    gc.disable()
    try:
        pool = BufferPool((2, 3), np.float32)
        lent = pool.take()
        gone = weakref.ref(pool)
        del pool
        assert gone() is None
        lent[:] = 1  # lent memory outlives its pool
        memory = weakref.ref(lent.base)
        del lent
        assert memory() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("tries", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_process_may_exit_while_batches_come_and_go(tries):
    for _ in range(tries):  # one try alone finds the fault in two of five cases
        done = subprocess.run(
            [sys.executable, "-c", BUSY_AT_EXIT], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
