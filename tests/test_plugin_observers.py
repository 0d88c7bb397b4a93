"""Observers are told off the caller's thread, and none of them can hurt the host or another one."""

from __future__ import annotations

import threading

from gkt_plugins.contracts import TraceEvent, Usage, UsageRecord
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.testing.plugins import plugins_from

RECORD = UsageRecord("r", 0, "student", 0, "edge", "small", "final", Usage())
EVENT = TraceEvent("r", (1, 2), (2,), 1)


class Observing:
    """Hands every record to a function."""

    GKT_CONTRACT = 1

    def __init__(self, observe):
        self._observe = observe

    @hookimpl
    def gkt_usage(self, record):
        self._observe(record)


def test_an_observer_that_raises_is_logged_and_the_others_are_told(caplog):
    def fail(record):
        raise RuntimeError("boom")

    seen = []
    plugins = plugins_from(names={"bad": Observing(fail), "good": Observing(seen.append)})
    plugins.record_usage(RECORD)
    plugins.record_usage(RECORD)
    plugins.close()
    assert seen == [RECORD, RECORD]
    assert caplog.text.count("gkt_usage of bad 0 (plugin 'bad') raised; the request is not affected") == 2


def test_an_observer_may_leave_out_arguments_that_it_does_not_need():
    calls = []

    class Counting:
        GKT_CONTRACT = 1

        @hookimpl
        def gkt_usage(self):
            calls.append(1)

    plugins = plugins_from(Counting())
    plugins.record_usage(RECORD)
    plugins.close()
    assert calls == [1]


def test_an_observer_that_cannot_keep_up_loses_records_which_are_counted_and_nobody_waits(caplog):
    started, proceed = threading.Event(), threading.Event()
    seen = []

    def slow(record):
        started.set()
        proceed.wait(60)
        seen.append(record)

    plugins = plugins_from(Observing(slow))
    plugins.record_usage(RECORD)
    assert started.wait(60)
    sent = 10_000
    for _ in range(sent - 1):
        plugins.record_usage(RECORD)
    lost = plugins.dropped
    assert lost > 0
    proceed.set()
    plugins.close(timeout_s=60)
    assert len(seen) == sent - lost
    assert f"observers lost {lost} records" in caplog.text


def test_closing_twice_is_safe_and_what_comes_later_is_counted_as_lost():
    seen = []
    plugins = plugins_from(Observing(seen.append))
    plugins.record_usage(RECORD)
    plugins.close()
    plugins.close()
    plugins.record_usage(RECORD)
    assert (len(seen), plugins.dropped) == (1, 1)


def test_an_observer_that_hangs_does_not_keep_the_host_from_closing():
    forever = threading.Event()
    plugins = plugins_from(Observing(lambda record: forever.wait(60)))
    plugins.record_usage(RECORD)
    plugins.close(timeout_s=0.01)
    forever.set()


def test_without_observers_no_thread_is_started():
    before = set(threading.enumerate())
    plugins = plugins_from()
    plugins.record_usage(RECORD)
    assert set(threading.enumerate()) <= before
    plugins.close()


def test_what_an_observer_tells_others_is_told_before_the_thread_ends():
    seen = []
    plugins = plugins_from(names={"other": Observing(seen.append)})
    plugins.observer("first", plugins.record_usage)(RECORD)
    plugins.close()
    assert seen == [RECORD]
    assert plugins.dropped == 0
