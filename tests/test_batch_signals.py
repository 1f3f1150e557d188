"""Signals that ask a batch to end, and those that somebody else sees to."""

import os
import signal
import sys
import threading

import pytest

from vitlab.batch.signals import Ended, end_in_order

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows ends processes without asking"
)


@pytest.fixture(autouse=True)
def default_signals():
    """As in a terminal, also where this process ignores SIGHUP (`nohup pytest`)."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_interrupt_with_a_number(number):
    with pytest.raises(KeyboardInterrupt) as stop, end_in_order():
        os.kill(os.getpid(), number)
        threading.Event().wait(10)
    assert isinstance(stop.value, Ended) and stop.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_second_signal_does_not_break_off_the_end():
    with end_in_order():
        with pytest.raises(Ended):
            os.kill(os.getpid(), signal.SIGHUP)
            threading.Event().wait(10)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_nohup_has_silenced_stays_silent():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with end_in_order():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_outside_of_the_main_thread_nothing_is_changed():
    found = []

    def look():
        with end_in_order():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert found == [signal.SIG_DFL]
