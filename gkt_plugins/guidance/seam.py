"""Where the teacher's text ends and the student's begins, as two pure functions.

Both apply the cutting policy until nothing that it leaves is half: a cut may reopen a span that the whole text had
closed, or end with the beginning of a stop string that the whole text had ruled out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from gkt_plugins.contracts import CuttingPolicy
from gkt_plugins.guidance.graphemes import BROKEN, whole_characters
from gkt_plugins.guidance.markers import closed_markup
from gkt_plugins.guidance.stops import held_from

__all__ = ["handed_over", "released"]


def handed_over(text: str, policy: CuttingPolicy) -> int:
    """Length of the prefix of the teacher's whole ``text`` that the student is to continue."""
    return _cut(text, policy, finished=True, stops=())


def released(text: str, policy: CuttingPolicy, stops: Sequence[str] = ()) -> int:
    """Length of the prefix of the teacher's ``text`` so far that is certain to be part of the answer.

    It begins no stop string, so one that the student completes cannot reach back into it.
    """
    return _cut(text, policy, finished=False, stops=stops)


def _cut(text: str, policy: CuttingPolicy, *, finished: bool, stops: Sequence[str]) -> int:
    text = text.rstrip(BROKEN)
    limit = closed_markup(text)
    while True:
        cut = min(limit, _last_cut(text, limit, policy, finished=finished))
        limit = min(whole_characters(text, cut), closed_markup(text[:cut]), held_from(text[:cut], stops))
        if limit >= cut:
            return cut


def _last_cut(text: str, limit: int, policy: CuttingPolicy, *, finished: bool) -> int:
    """The policy's last cut at or before ``limit``, found among those it made while ``text`` grew.

    What follows the limit is real text, so it may show that a word before it is whole; but it cannot be kept.
    """
    cut = policy.releasable(text, finished=finished)
    if cut <= limit:
        return cut

    def earlier(length: int) -> int:
        return min(length, policy.releasable(text[:length], finished=False))

    length = bisect_right(range(limit, len(text) + 1), limit, key=earlier) - 1 + limit
    return max(earlier(length), min(limit, policy.releasable(text[:limit], finished=finished)))
