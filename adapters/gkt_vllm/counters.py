"""vLLM's counters of speculation, as ours.

| vLLM, ``vllm:spec_decode_num_…`` | ours |
|---|---|
| ``drafts`` | blocks |
| ``draft_tokens`` | drafted |
| ``accepted_tokens`` | accepted |
| ``accepted_tokens_per_pos[i]`` | blocks that kept more than i drafted tokens; gives tested and bonus |

vLLM's "draft acceptance rate" is accepted / drafted, ours is accepted / tested: of the tokens that were looked at. Its
"mean acceptance length" is our block efficiency.
"""

from __future__ import annotations

from collections.abc import Sequence

from gkt_plugins.speculation.counts import Counts

__all__ = ["counts_of"]


def counts_of(drafts: int, draft_tokens: int, accepted_tokens: int, accepted_per_position: Sequence[int]) -> Counts:
    """The counts of blocks that were all drafted to the same length, ``len(accepted_per_position)``.

    Blocks that were cut shorter (at the model's length, or by a request's own gamma) make ``tested`` too large by at
    most one each, and ``bonus`` too small: vLLM does not count them apart.
    """
    kept = list(accepted_per_position)
    return Counts(
        drafted=draft_tokens,
        tested=drafts + sum(kept[:-1]),
        accepted=accepted_tokens,
        bonus=kept[-1] if kept else 0,
        blocks=drafts,
    )
