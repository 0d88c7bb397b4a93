"""An engine's own counters give the counts that our loop would have had."""

import random

from gkt_plugins.speculation.counts import Counts
from gkt_vllm.counters import counts_of


def test_counts_of_equal_blocks_are_recovered_exactly():
    draws = random.Random(0)
    ours, gamma, per_position = Counts(), 4, [0] * 4
    for _ in range(1000):
        accepted = draws.randint(0, gamma)
        ours.add_block(gamma, accepted, bonus=accepted == gamma)
        for position in range(accepted):
            per_position[position] += 1
    assert counts_of(1000, 4000, sum(per_position), per_position) == ours


def test_nothing_drafted_is_nothing_counted():
    assert counts_of(0, 0, 0, []) == Counts()
