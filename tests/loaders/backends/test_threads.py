"""Threads that may be left behind when they hang."""

import subprocess
import sys
import threading
import time

import pytest

from loaders.backends.threads import WorkerPool, result_until
from loaders.common.errors import LoaderError

EXITS = """
import sys, types
import loaders
package = types.ModuleType("loaders.backends")  # without its __init__, which imports torch for seconds
package.__path__ = [loaders.__path__[0] + "/backends"]
sys.modules["loaders.backends"] = package
import threading
from loaders.backends.threads import WorkerPool
pool = WorkerPool(2, "test")
pool.submit(threading.Event().wait)
print(pool.submit(lambda: "done").result(30), flush=True)
"""


def test_results_and_errors_come_back_and_close_ends_the_threads():
    before = threading.active_count()
    pool = WorkerPool(3, "test")
    assert [pool.submit(pow, 2, k).result(10) for k in range(20)] == [2**k for k in range(20)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(10)
    pool.close(10)
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(pow, 2, 2)


def test_a_wait_that_is_over_is_one_line_and_an_error_of_the_work_is_its_own():
    pool, release = WorkerPool(1, "test"), threading.Event()

    def slow():
        release.wait(30)
        raise TimeoutError("of the storage")

    future = pool.submit(slow)
    with pytest.raises(
        LoaderError, match=r"^it took longer than 0\.1 s: it hangs; raise timeout_s if it is only slow$"
    ):
        result_until(future, time.monotonic() + 0.1, 0.1, "it", "it hangs")
    release.set()
    with pytest.raises(TimeoutError, match="of the storage"):
        result_until(future, time.monotonic() + 30, 30, "it", "it hangs")
    pool.close(10)


def test_a_pool_that_nobody_closed_ends_with_its_last_reference():
    pool = WorkerPool(2, "test-forgotten")
    pool.submit(pow, 2, 2).result(10)
    del pool
    end = time.monotonic() + 10
    while any("test-forgotten" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_close_drops_what_was_not_begun_and_warns_of_what_hangs():
    release = threading.Event()
    pool = WorkerPool(1, "test")
    pool.submit(release.wait, 60)
    waiting = pool.submit(pow, 2, 2)
    try:
        with pytest.warns(RuntimeWarning, match="1 of 1 threads test still hang after 0.2 s"):
            pool.close(0.2)
        assert waiting.cancelled()
    finally:
        release.set()


def test_a_hung_thread_does_not_keep_the_process():
    run = subprocess.run([sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
