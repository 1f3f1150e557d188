"""Children of a test process that can neither go on as a second copy of it nor keep it waiting."""

import os
import time


def fork(work):
    """The process id of a child that does this work and ends. Not after torch has trained: its
    threads do not survive a fork."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def wait_until(condition, seconds=60):
    """Wait for the condition; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(0.01)
