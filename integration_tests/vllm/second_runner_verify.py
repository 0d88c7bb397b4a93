"""The rejection sampler of vLLM's second model runner, lenient, on a batch of blocks that all have the same p and q.

Blocks differ as adaptive verification and the end of an answer make them: none to ``gamma`` drafted tokens each.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["verify"]


def verify(
    target: list[float], draft: list[float], blocks: list[dict[str, Any]], gamma: int, seed: int
) -> dict[str, Any]:
    """What each block became.

    :param target: [V] logits of the target at every position; -inf, as a grammar makes it, is None.
    :param draft: [V] logits of the draft at every position.
    :param blocks: ``{"drafted": n, "epsilon": e, "temperature": t, "placeholders": m}``; the last m drafted tokens are
        vLLM's own stopgap, -1.
    :returns: ``tokens``, of each block; ``first``, its first drafted token, or None; ``restored``, whether the logits
        are as they were, bit by bit.
    """
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    from gkt_plugins.speculation.leniency import linear
    from gkt_vllm import leniency_v2
    from gkt_vllm.asked import Leniency

    leniency_v2.install()
    generator = torch.Generator().manual_seed(seed)
    count = len(blocks)
    slots = torch.randperm(count, generator=generator)
    slot_leniency = leniency_v2.SlotLeniency(Leniency(linear, 1.0, 0.01), count, torch.device("cpu"))
    temperature = torch.empty(count)
    for slot, block in zip(slots.tolist(), blocks, strict=True):
        slot_leniency.fill(slot, block["epsilon"])
        temperature[slot] = block["temperature"]

    rows = torch.tensor([block["drafted"] + 1 for block in blocks])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), rows.cumsum(0)])
    local = torch.cat([torch.arange(n) for n in rows.tolist()])
    q = torch.tensor(draft).softmax(-1)
    drawn = torch.multinomial(q, int(rows.sum()), replacement=True, generator=generator)
    for block, start in zip(blocks, starts.tolist(), strict=False):
        drawn[start] = 0  # a block's first row is the token before it
        end = start + 1 + block["drafted"]
        drawn[end - block["placeholders"] : end] = -1
    logits = torch.tensor([-torch.inf if one is None else one for one in target]).repeat(len(local), 1)
    before = logits.clone()
    with leniency_v2.leniently(slot_leniency):
        tokens, lengths = rejection_sampler.rejection_sample(
            logits,
            torch.tensor(draft).repeat(count, gamma, 1),
            drawn,
            starts.int(),
            local + 5,
            slots,
            slots.repeat_interleave(rows),
            local.int(),
            temperature,
            torch.randint(2**62, (count,), generator=generator),
            gamma,
        )
    kept = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    first = [int(drawn[start + 1]) if n > 1 else None for start, n in zip(starts.tolist(), rows.tolist(), strict=False)]
    return {"tokens": kept, "first": first, "restored": torch.equal(logits, before)}
