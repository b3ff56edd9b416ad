"""Tests of signal handlers for a block."""

import os
import signal
import threading

from iclevr_diffusion.utils.signals import handling


def test_the_earlier_handler_is_restored():
    received = []
    before = signal.getsignal(signal.SIGTERM)
    with handling([signal.SIGTERM], lambda signum, frame: received.append(signum)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with handling([signal.SIGTERM], lambda signum, frame: None):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
