"""Ctrl-C while child processes run."""

import contextlib
import os
import signal

import pytest
from confide_simulations.processes import ProcessGroup


def test_an_interrupt_that_a_library_swallows_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ProcessGroup() as processes:
        processes.check_alive()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        processes.check_alive()
    assert signal.getsignal(signal.SIGINT) is before
