"""A batch that is told to end (by `kill`, a queue, a closed terminal) ends as by Ctrl+C: in order,
with nothing left behind.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDINGS = ("SIGTERM", "SIGHUP")  # Windows has the first one only


class Ended(KeyboardInterrupt):
    """The signal of this number asked for the end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def end_in_order() -> Iterator[None]:
    """While the block lasts, SIGTERM and SIGHUP raise `Ended` in it, unless somebody sees to them
    already (`nohup`, say).
    """
    numbers = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets no other thread set handlers
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number, frame):
        for other in taken:
            # a closed terminal says so twice; the second must not break the end off
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
