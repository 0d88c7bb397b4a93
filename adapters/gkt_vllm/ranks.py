"""What tensor-parallel workers have to do alike."""

from __future__ import annotations

__all__ = ["agreed", "is_first_rank"]


def is_first_rank() -> bool:
    """Whether this worker is the one that acts for all."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)


def agreed(gamma: int) -> int:
    """The first rank's draft length, in every rank: each measures times of its own."""
    from vllm.distributed import get_tp_group

    return int(get_tp_group().broadcast_object(gamma))
