"""Child processes of tests: they end with the test, and nothing waits for them without a limit."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

# A child inherits which signals its parent ignores: SIGINT and SIGHUP in `nohup pytest &`
DEFAULT_SIGNALS = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
)


@contextmanager
def start_python(code, **options):
    """Run Python code in a child process, with its output in pipes, and kill it after the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], **(pipes | options))
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


@contextmanager
def start_vitlab(*words, **options):
    """Run `vitlab WORDS` in a child process with the default signal handling of a terminal."""
    code = DEFAULT_SIGNALS + f"from vitlab.cli import app\napp({list(words)!r})"
    with start_python(code, **options) as process:
        yield process


def reap(child, seconds=60):
    """The wait status of a forked child. One that takes longer is killed; TimeoutError."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"process {child} was still running after {seconds} s")


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
