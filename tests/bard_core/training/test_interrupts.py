"""Requests to checkpoint or stop: seen once, and given back."""

import os
import signal

from bard_core.training.interrupts import Interrupts, Wish, ask_to_stop, withdraw


def test_a_node_that_goes_is_one_checkpoint_and_a_request_is_a_stop(tmp_path):
    calls = []

    def losing_node():
        calls.append(1)
        return len(calls) > 1

    interrupts = Interrupts(str(tmp_path), losing_node, pause_s=0.0)
    assert [interrupts.poll() for _ in range(4)] == [Wish.NONE, Wish.CHECKPOINT, Wish.NONE, Wish.NONE]
    assert len(calls) == 2  # once told, nobody is asked again
    ask_to_stop(str(tmp_path))
    assert interrupts.poll() is Wish.STOP
    withdraw(str(tmp_path))
    assert interrupts.poll() is Wish.NONE
    interrupts.close()


def test_sigterm_is_a_stop_and_goes_back_to_its_owner(tmp_path):
    owner = signal.getsignal(signal.SIGTERM)
    interrupts = Interrupts(str(tmp_path), pause_s=3600.0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.poll() is Wish.STOP
    interrupts.close()
    assert signal.getsignal(signal.SIGTERM) is owner
