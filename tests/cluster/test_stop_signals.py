"""Signals: they end a wait, interrupt everything else, and a doubled one counts once."""

import os
import signal
import threading

import pytest

from moeray.cluster.stop_signals import StopSignals


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    with StopSignals() as signals:
        threading.Timer(0.05, send, [number]).start()
        signals.wait()


def test_a_signal_interrupts_what_is_no_wait() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        send(signal.SIGTERM)


def test_a_doubled_signal_counts_once() -> None:
    with StopSignals() as signals:
        threading.Timer(0.05, send, [signal.SIGINT, signal.SIGINT]).start()
        signals.wait()
        send(signal.SIGINT)


def test_a_later_signal_interrupts_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeray.cluster.stop_signals.DEBOUNCE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        threading.Timer(0.05, send, [signal.SIGINT]).start()
        signals.wait()
        send(signal.SIGINT)


def test_other_signals_do_not_end_the_wait() -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with StopSignals() as signals:
            ended = threading.Event()
            threading.Timer(0.05, send, [signal.SIGUSR1]).start()
            threading.Timer(0.4, lambda: (ended.set(), send(signal.SIGINT))).start()
            signals.wait()
            assert ended.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
