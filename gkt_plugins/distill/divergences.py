"""How far the draft's distributions are from the target's: four divergences and two losses made for acceptance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from gkt_plugins.errors import ConfigError

__all__ = ["DIVERGENCES", "DivergenceName", "Head", "chunked_divergence", "divergence"]

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "tv", "lk_alpha", "lk_lambda"]
DIVERGENCES: tuple[DivergenceName, ...] = get_args(DivergenceName)

Head: TypeAlias = Callable[[Tensor], Tensor]
"""Last hidden states [n, H] → logits [n, V]."""

_LK_ETA = 3.0
"""How soon ``lk_lambda`` turns from forward KL to total variation; the paper's best setting."""


def divergence(name: DivergenceName, target_logits: Tensor, draft_logits: Tensor, *, beta: float = 0.5,
               temperature: float = 1.0) -> Tensor:  # fmt: skip
    """[n] divergence of each position, in nats ("tv": in [0, 1]). Readable rather than fast; float32 at least.

    :param target_logits: [n, V]. Where one model's head is padded, the smaller size counts for both, and what each
        model gives to the padding is shared out among its tokens, as when decoding.
    :param beta: of "jsd" only, the target's share of the mixture, in (0, 1).
    :param temperature: divides both logits; 0 compares the target's likeliest token with the draft at temperature 1.
    """
    _check(name, beta, temperature)
    size = min(target_logits.shape[-1], draft_logits.shape[-1])
    log_p, log_q = _log_probs(target_logits[..., :size], draft_logits[..., :size], temperature)
    p, q = log_p.exp(), log_q.exp()
    if name == "forward_kl":
        return _kl(p, log_p, log_q)
    if name == "reverse_kl":
        return _kl(q, log_q, log_p)
    if name == "jsd":
        log_m = (beta * p + (1 - beta) * q).log()
        return beta * _kl(p, log_p, log_m) + (1 - beta) * _kl(q, log_q, log_m)
    variation = (p - q).abs().sum(-1) / 2
    if name == "tv":
        return variation
    if name == "lk_alpha":
        return -torch.minimum(p, q).sum(-1).log()
    share = torch.exp(-_LK_ETA * (1 - variation)).detach()
    return share * _kl(p, log_p, log_q) + (1 - share) * variation


def chunked_divergence(name: DivergenceName, target_hidden: Tensor, target_head: Head, draft_hidden: Tensor,
                       draft_head: Head, *, weights: Tensor | None = None, beta: float = 0.5,
                       temperature: float = 1.0, chunk_tokens: int = 4096) -> Tensor:  # fmt: skip
    """Weighted sum of the divergence over all positions, from last hidden states [n, H]."""
    each = divergence(name, target_head(target_hidden).detach(), draft_head(draft_hidden), beta=beta,
                      temperature=temperature)  # fmt: skip
    return (each if weights is None else each * weights).sum()


def _check(name: str, beta: float, temperature: float) -> None:
    if name not in DIVERGENCES:
        raise ConfigError(f"unknown divergence {name!r}; known: {', '.join(DIVERGENCES)}")
    if name == "jsd" and not 0 < beta < 1:
        raise ConfigError(f"beta of jsd must be in (0, 1), got {beta!r}; at the ends, use forward_kl or reverse_kl")
    if temperature < 0:
        raise ConfigError(f"the temperature of a divergence must be at least 0, got {temperature!r}")
    if name == "reverse_kl" and temperature == 0:
        raise ConfigError("reverse_kl at temperature 0 is infinite; use forward_kl, jsd or tv")


def _log_probs(target_logits: Tensor, draft_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both as log-probabilities, in float32 or float64."""
    dtype = torch.promote_types(draft_logits.dtype, torch.float32)
    target_logits, draft_logits = target_logits.to(dtype), draft_logits.to(dtype)
    if temperature == 0:
        log_p = torch.full_like(target_logits, -torch.inf)
        log_p.scatter_(-1, target_logits.argmax(-1, keepdim=True), 0.0)
        return log_p, draft_logits.log_softmax(-1)
    return (target_logits / temperature).log_softmax(-1), (draft_logits / temperature).log_softmax(-1)


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """[n] KL(p, q); a token with p = 0 adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
