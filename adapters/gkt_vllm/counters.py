"""vLLM's counters of speculation, as ours.

| vLLM, ``vllm:spec_decode_num_…`` | ours |
|---|---|
| ``drafts`` | blocks |
| ``draft_tokens`` | drafted |
| ``accepted_tokens`` | accepted |
| ``accepted_tokens_per_pos[i]`` | blocks that kept more than i drafted tokens; gives tested and bonus |

vLLM's "draft acceptance rate" is accepted / drafted, ours is accepted / tested: of the tokens that were looked at. Its
"mean acceptance length" is our block efficiency. vLLM also counts as accepted what the verifier let pass behind an
answer's end, which our own loop does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gkt_plugins.speculation.counts import Counts

__all__ = ["count_each_request", "counts_of", "counts_of_step", "drafts_of"]


def counts_of(
    drafts: int,
    draft_tokens: int,
    accepted_tokens: int,
    accepted_per_position: Sequence[int],
    drafted_per_position: Sequence[int] | None = None,
) -> Counts:
    """The counts of any number of blocks.

    ``drafted_per_position[i]``: blocks that were drafted further than i; None where all were, to the same length.
    Of lengths that differ (at the model's end, by a request's own gamma, or where a grammar cut a draft) no counter
    says which of them were accepted whole: ``tested`` may then be too large, by at most one for each shorter block.
    """
    drafted = list(drafted_per_position or [drafts] * len(accepted_per_position))
    blocks = drafted[0] if drafted else 0
    # A block's token i is looked at where it was drafted and the i before it were accepted.
    tested = blocks + sum(map(min, accepted_per_position, drafted[1:]))
    # min(accepted + 1, drafted) is accepted + 1 of every block but those that got a bonus token.
    bonus = accepted_tokens + blocks - tested
    return Counts(drafted=draft_tokens, tested=tested, accepted=accepted_tokens, bonus=bonus, blocks=blocks)


def counts_of_step(stats: Any) -> Counts:
    """The counts of one step of an engine, its ``SpecDecodingStats``; exact where one request has drafts in it."""
    return counts_of(
        stats.num_drafts,
        stats.num_draft_tokens,
        stats.num_accepted_tokens,
        stats.num_accepted_tokens_per_pos,
        getattr(stats, "num_draft_tokens_per_pos", None),
    )


def drafts_of(answer: Any) -> tuple[int, int]:
    """Drafted tokens of a ``CompletionOutput`` and, of them, accepted ones; (0, 0) where they were not counted."""
    counted = getattr(answer, "spec_decode_metrics", None)
    if counted is None:
        return 0, 0
    return counted.num_draft_tokens, sum(kept * blocks for kept, blocks in enumerate(counted.histogram))


def count_each_request(vllm_config: Any) -> bool:
    """Have the engine that is made of ``vllm_config``, which has drafts, count those of each request.

    :returns: False where this vLLM cannot. ``detailed``, which the operator asked for, stays.
    """
    observed = vllm_config.observability_config
    level = getattr(observed, "per_request_spec_decode_metrics", None)
    if level == "none":
        observed.per_request_spec_decode_metrics = "summary"
    return level is not None
