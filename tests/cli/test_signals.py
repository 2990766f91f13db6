from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from tournant.cli.signals import StopOnSignals


class Run:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def drain(self) -> None:
        self.asked.append("drain")

    def cancel(self) -> None:
        self.asked.append("cancel")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_the_second_cancels(number: signal.Signals) -> None:
    run, said = Run(), list[str]()
    before = signal.getsignal(number)
    with StopOnSignals(said.append) as stop:
        stop.attach(run)
        assert (stop.interrupted, stop.cancelled) == (False, False)
        os.kill(os.getpid(), number)
        assert run.asked == ["drain"]
        assert (stop.interrupted, stop.cancelled) == (True, False)
        os.kill(os.getpid(), number)
        assert run.asked == ["drain", "cancel"]
        assert stop.cancelled
    assert signal.getsignal(number) is before
    assert "to cancel" in said[0]
    assert ("Ctrl-C" in said[0]) == (number == signal.SIGINT)
    assert said[1].startswith("Cancelling")


def test_the_two_signals_count_together() -> None:
    run = Run()
    with StopOnSignals(lambda _: None) as stop:
        stop.attach(run)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert run.asked == ["drain", "cancel"]


def test_a_third_ctrl_c_is_what_it_always_was() -> None:
    run = Run()
    with StopOnSignals(lambda _: None) as stop:
        stop.attach(run)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert run.asked == ["drain", "cancel"]


def test_before_there_is_a_run_a_signal_interrupts() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with StopOnSignals(lambda _: None), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopOnSignals(lambda _: None):
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopOnSignals(lambda _: None):
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_it_watches_for_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopOnSignals(lambda _: None) as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.interrupted])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


END = """
import os, signal
from tournant.cli.signals import end_on_signals
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_on_signals(130)
os.kill(os.getpid(), signal.SIGTERM)
print("still here", flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("no longer")
"""


def test_while_the_program_ends_another_ctrl_c_ends_it_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", END], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "still here\n", "")
