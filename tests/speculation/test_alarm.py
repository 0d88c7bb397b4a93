"""The alarm rings once when acceptance leaves its band, and is quiet about what is chance."""

from __future__ import annotations

import logging
import random

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.alarm import AcceptanceAlarm
from gkt_plugins.speculation.counts import Counts

SPECULATION = '[speculation]\ndrafter = "prompt_lookup"\n'


def tell(alarm, rate, answers, *, tested=100):
    for _ in range(answers):
        alarm.observe(Counts(drafted=tested, tested=tested, accepted=round(rate * tested), blocks=tested))


def test_nothing_is_judged_before_the_window_is_full():
    alarm = AcceptanceAlarm(0.8, window=1000)
    tell(alarm, 0.1, 9)
    assert (alarm.acceptance_rate, alarm.state, alarm.note) == (None, "calm", None)
    tell(alarm, 0.1, 1)
    assert alarm.acceptance_rate == pytest.approx(0.1)
    assert alarm.state == "low"


def test_one_warning_names_the_rate_and_the_band(caplog):
    alarm = AcceptanceAlarm(0.8, band=0.05, window=1000)
    with caplog.at_level(logging.WARNING):
        tell(alarm, 0.8, 20)
        assert not caplog.messages
        tell(alarm, 0.6, 30)
    (message,) = caplog.messages
    assert "over the last 1000 tested tokens is below its calibrated band 0.750 to 0.850; measure again" in message
    assert alarm.raised == 1
    assert alarm.note.startswith("acceptance rate 0.600 ")


def test_it_clears_only_well_inside_the_band_and_may_ring_again(caplog):
    alarm = AcceptanceAlarm(0.8, band=0.1, window=1000)
    tell(alarm, 0.6, 10)
    tell(alarm, 0.73, 10)  # inside the band, outside its half
    assert alarm.state == "low"
    tell(alarm, 0.76, 10)
    assert (alarm.state, alarm.note) == ("calm", None)
    tell(alarm, 0.72, 10)  # inside the band: still calm
    assert (alarm.state, alarm.raised) == ("calm", 1)
    tell(alarm, 0.6, 10)
    assert (alarm.state, alarm.raised) == ("low", 2)


def test_acceptance_above_the_band_rings_too():
    alarm = AcceptanceAlarm(0.5, band=0.1, window=100)
    tell(alarm, 0.9, 1)
    assert "above its calibrated band 0.400 to 0.600" in alarm.note
    tell(alarm, 0.1, 1)
    assert (alarm.state, alarm.raised) == ("low", 2)


def test_the_window_holds_as_few_answers_as_fill_it():
    alarm = AcceptanceAlarm(0.5, window=250)
    tell(alarm, 0.0, 50)
    tell(alarm, 1.0, 3)
    assert alarm.acceptance_rate == 1.0  # three answers of 100 are at least 250, and nothing older counts


def test_answers_without_drafted_tokens_change_nothing():
    alarm = AcceptanceAlarm(0.5, window=100)
    tell(alarm, 0.5, 1)
    alarm.observe(Counts())
    assert alarm.acceptance_rate == 0.5


def test_chance_alone_does_not_ring():
    # A band of 4 standard errors over about 50 disjoint windows: rings by chance in less than 1 % of all seeds.
    window, rate = 1000, 0.8
    alarm = AcceptanceAlarm(rate, band=4 * (rate * (1 - rate) / window) ** 0.5, window=window)
    draws = random.Random(0)
    for _ in range(1000):
        tested = 50
        accepted = sum(draws.random() < rate for _ in range(tested))
        alarm.observe(Counts(drafted=tested, tested=tested, accepted=accepted, blocks=tested))
    assert alarm.raised == 0


def test_the_configuration_makes_one_only_where_something_is_expected():
    assert AcceptanceAlarm.from_section(None) is None
    assert AcceptanceAlarm.from_section(load_config(text=SPECULATION, env={}).speculation) is None
    text = SPECULATION + "expected_acceptance = 0.9\nacceptance_band = 0.02\nacceptance_window = 10"
    alarm = AcceptanceAlarm.from_section(load_config(text=text, env={}).speculation)
    assert (alarm.expected, alarm.band, alarm.window) == (0.9, 0.02, 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expected_acceptance = 1.5", r"speculation.expected_acceptance must be in \(0, 1\], got 1.5"),
        ("acceptance_band = 0.1", "speculation has acceptance_band and no expected_acceptance"),
    ],
)
def test_a_wrong_band_says_what_is_expected(line, message):
    with pytest.raises(ConfigError, match=message):
        load_config(text=SPECULATION + line, env={})
