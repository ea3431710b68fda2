"""SIGTERM: graceful where somebody saves, at once elsewhere."""

from __future__ import annotations

import os
import signal

import pytest

from ensemble_kd.errors import StoppedError
from ensemble_kd.termination import Termination


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_outside_of_training_it_ends_the_run_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    termination = Termination()
    with pytest.raises(StoppedError, match="run again to go on") as caught, termination.handled():
        sigterm()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_saves_is_only_told_and_a_second_one_does_not_wait() -> None:
    termination = Termination()
    with termination.handled():
        with pytest.raises(StoppedError), termination.graceful():
            sigterm()
            assert termination.asked.is_set()  # and still here
            sigterm()
        with pytest.raises(StoppedError):
            sigterm()


def test_a_handler_that_was_replaced_is_put_back() -> None:
    """As `ray.init` does."""
    termination = Termination()
    with termination.handled():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        termination.install()
        with pytest.raises(StoppedError):
            sigterm()
