"""Says when live acceptance leaves the band that it was calibrated for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Literal

from gkt_plugins.speculation.counts import Counts

if TYPE_CHECKING:
    from gkt_plugins.config import SpeculationSection

__all__ = ["AcceptanceAlarm"]

_log = logging.getLogger(__name__)


class AcceptanceAlarm:
    """Watches accepted / tested over a sliding window of finished answers.

    It is raised when the rate leaves ``expected ± band``, and cleared when it is back within half the band, so that a
    rate at the edge does not ring again and again. May be told from several threads.
    """

    def __init__(self, expected: float, *, band: float = 0.05, window: int = 2048) -> None:
        """
        :param expected: the calibrated acceptance rate, in [0, 1].
        :param band: how far the rate may be from it, in (0, 1].
        :param window: tested tokens that the rate is taken over, at least 1. The rate's own noise is about
            sqrt(expected · (1 - expected) / window); a band below three times that rings by chance.
        """
        self.expected = expected
        self.band = band
        self.window = window
        self.raised = 0
        """How often the rate has left the band, ever."""
        self.state: Literal["calm", "low", "high"] = "calm"
        self._answers: deque[tuple[int, int]] = deque()
        self._tested = 0
        self._accepted = 0
        self._lock = threading.Lock()

    @classmethod
    def from_section(cls, section: SpeculationSection | None) -> AcceptanceAlarm | None:
        """What ``[speculation]`` says; None where nothing is expected."""
        if section is None or section.expected_acceptance is None:
            return None
        return cls(section.expected_acceptance, band=section.acceptance_band, window=section.acceptance_window)

    @property
    def acceptance_rate(self) -> float | None:
        """Over the window, in [0, 1]; None until it is full."""
        return self._accepted / self._tested if self._tested >= self.window else None

    @property
    def note(self) -> str | None:
        """What is wrong, while the alarm is raised."""
        rate = self.acceptance_rate
        if self.state == "calm" or rate is None:
            return None
        low, high = max(0.0, self.expected - self.band), min(1.0, self.expected + self.band)
        side = "below" if self.state == "low" else "above"
        return (
            f"acceptance rate {rate:.3f} over the last {self._tested} tested tokens is {side} its calibrated band "
            f"{low:.3f} to {high:.3f}"
        )

    def observe(self, counts: Counts) -> None:
        """Take in a finished answer. One that tested nothing changes nothing."""
        if not counts.tested:
            return
        with self._lock:
            self._answers.append((counts.tested, counts.accepted))
            self._tested += counts.tested
            self._accepted += counts.accepted
            while self._tested - self._answers[0][0] >= self.window:  # as few answers as fill the window
                tested, accepted = self._answers.popleft()
                self._tested -= tested
                self._accepted -= accepted
            self._judge()

    def _judge(self) -> None:
        rate = self.acceptance_rate
        if rate is None:
            return
        drift = rate - self.expected
        state = "low" if drift < -self.band else "high" if drift > self.band else None
        if state is not None and state != self.state:
            self.state = "low" if state == "low" else "high"
            self.raised += 1
            _log.warning("%s; measure again with 'gkt acceptance', or distil again from recorded traffic", self.note)
        elif self.state != "calm" and abs(drift) <= self.band / 2:
            self.state = "calm"
            _log.info("acceptance rate %.3f is back in its calibrated band", rate)
