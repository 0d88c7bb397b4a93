"""Speculative decoding: a draft proposes, the target verifies, exactly or with declared leniency.

What needs no torch is importable from here: formulas, counts, leniency rules. The loop, the verifiers and the
drafters are in their own modules, and load torch.
"""

from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.formulas import acceptance_tv, best_gamma, block_efficiency, mbsu, speedup
from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square

__all__ = [
    "CappedRule",
    "Counts",
    "acceptance_tv",
    "best_gamma",
    "block_efficiency",
    "exponential",
    "linear",
    "mbsu",
    "speedup",
    "square",
]
