"""How far the draft's distributions are from the target's: four divergences, and two losses made for acceptance.

p is the target's distribution, q the draft's. The readable form is :func:`divergence`; training uses
:func:`chunked_divergence`, which has the same value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gkt_plugins._wording import suggestion
from gkt_plugins.errors import ConfigError

__all__ = [
    "DIVERGENCES", "DivergenceName", "Head", "check_divergence", "chunked_divergence", "divergence",
    "token_divergences",
]  # fmt: skip

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "tv", "lk_alpha", "lk_lambda"]
"""
==============  ================================================================  ====================================
forward_kl      Σ p log(p/q)                                                      covers all that the target may say
reverse_kl      Σ q log(q/p)                                                      keeps to what the target surely says
jsd             β KL(p, m) + (1 − β) KL(q, m), m = β p + (1 − β) q                between the two
tv              ½ Σ abs(p − q) = 1 − Σ min(p, q)                                  what is rejected when decoding
lk_alpha        −log α, α = Σ min(p, q)                                           total variation, its gradient over α
lk_lambda       λ KL(p, q) + (1 − λ) (1 − α), λ = exp(−3 α), held fixed           forward KL first, then 1 − α
==============  ================================================================  ====================================

Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461; the last two: Samarin et al. 2026 (LK losses),
arXiv:2602.23881.
"""
DIVERGENCES: tuple[DivergenceName, ...] = get_args(DivergenceName)

Head: TypeAlias = Callable[[Tensor], Tensor]
"""Last hidden states [n, H] → logits [n, V]."""

_LK_ETA = 3.0
"""How soon ``lk_lambda`` turns to total variation; the paper's best setting."""
_CHUNK_BYTES = 2**27
"""Of one float32 [chunk, V] tensor, unless the caller says otherwise; about six of them exist at a time."""


def check_divergence(name: str, *, beta: float = 0.5, temperature: float = 1.0) -> None:
    """Refuse what cannot be computed.

    :raises ConfigError: an unknown name, ``beta`` out of (0, 1), a negative temperature, or an infinite divergence.
    """
    if name not in DIVERGENCES:
        raise ConfigError(f"there is no divergence {name!r}; {suggestion(name, DIVERGENCES)}")
    if name == "jsd" and not 0 < beta < 1:
        raise ConfigError(f"beta of jsd must be in (0, 1), got {beta!r}; at its ends use forward_kl or reverse_kl")
    if not temperature >= 0:
        raise ConfigError(f"the temperature of a divergence must be at least 0, got {temperature!r}")
    if name == "reverse_kl" and temperature == 0:
        raise ConfigError("reverse_kl is infinite at temperature 0, where the target has one token; use forward_kl")


def divergence(name: DivergenceName, target_logits: Tensor, draft_logits: Tensor, *, beta: float = 0.5,
               temperature: float = 1.0) -> Tensor:  # fmt: skip
    """[n] divergence of each position, in nats ("tv": in [0, 1]); in float32, or float64 where the draft's logits are.

    No gradient reaches the target.

    Where one model's head is padded, the smaller vocabulary counts: logits of the padding are left out before the
    softmax, so what a model gives to it goes to its tokens in proportion. That is how the decode loop treats a draft
    with surplus tokens; a target gives its own padding next to nothing.

    :param target_logits: [n, V], ``draft_logits`` likewise.
    :param beta: of "jsd" only: the target's share of the mixture, in (0, 1).
    :param temperature: divides both logits; 0 compares the target's likeliest token with the draft at temperature 1.
    :raises ConfigError: see :func:`check_divergence`.
    """
    check_divergence(name, beta=beta, temperature=temperature)
    log_p, log_q = _log_probs(target_logits.detach(), draft_logits, temperature)
    return _value(name, log_p, log_q, beta)


def chunked_divergence(name: DivergenceName, target_hidden: Tensor, target_head: Head, draft_hidden: Tensor,
                       draft_head: Head, *, weights: Tensor | None = None, beta: float = 0.5,
                       temperature: float = 1.0, chunk_tokens: int | None = None) -> Tensor:  # fmt: skip
    """Weighted sum over n positions of what :func:`divergence` gives; a scalar, from last hidden states.

    Logits exist for one chunk at a time: they are made again for the gradient, unless one chunk holds everything.

    :param target_hidden: [n, H]; no gradient reaches it or ``target_head``.
    :param draft_hidden: [n, H'], H' may differ from H.
    :param weights: [n], without gradient; None weighs every position 1.
    :param chunk_tokens: positions to a chunk; None: as many as make tensors of moderate size.
    :raises ConfigError: see :func:`check_divergence`.
    """
    check_divergence(name, beta=beta, temperature=temperature)
    count = len(draft_hidden)
    if weights is None:
        weights = torch.ones(count, device=draft_hidden.device)
    part = partial(_chunk, name, target_head, draft_head, beta, temperature)
    total = draft_hidden.new_zeros((), dtype=_precise(draft_hidden))
    size = chunk_tokens or _chunk_tokens(target_head, target_hidden)
    for begin in range(0, count, size):
        arguments = [it[begin : begin + size] for it in (target_hidden, draft_hidden, weights)]
        if count <= size:
            total = total + part(*arguments)
        else:
            total = total + checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False)
    return total


@torch.no_grad()
def token_divergences(name: DivergenceName, target_hidden: Tensor, target_head: Head, draft_hidden: Tensor,
                      draft_head: Head, *, beta: float = 0.5, temperature: float = 1.0,
                      chunk_tokens: int | None = None) -> Tensor:  # fmt: skip
    """[n] what :func:`divergence` gives, from last hidden states, chunk by chunk and without gradient."""
    check_divergence(name, beta=beta, temperature=temperature)
    size = chunk_tokens or _chunk_tokens(target_head, target_hidden)
    found = [
        divergence(name, target_head(target), draft_head(draft), beta=beta, temperature=temperature)
        for target, draft in zip(torch.split(target_hidden, size), torch.split(draft_hidden, size), strict=True)
    ]
    return torch.cat(found)


def _chunk_tokens(head: Head, hidden: Tensor) -> int:
    with torch.no_grad():
        vocab_size = head(hidden[:1]).shape[-1]
    return max(1, _CHUNK_BYTES // (4 * vocab_size))


def _chunk(name: DivergenceName, target_head: Head, draft_head: Head, beta: float, temperature: float,
           target_hidden: Tensor, draft_hidden: Tensor, weights: Tensor) -> Tensor:  # fmt: skip
    with torch.no_grad():
        target_logits = target_head(target_hidden)
    total: Tensor = _WeightedSum.apply(  # type: ignore[no-untyped-call]
        draft_head(draft_hidden), target_logits, weights, name, beta, temperature
    )
    return total


class _WeightedSum(torch.autograd.Function):
    """Computes the gradient along with the value: one tensor [n, V] is kept, where autograd would keep about eight."""

    @staticmethod
    def forward(ctx: Any, draft_logits: Tensor, target_logits: Tensor, weights: Tensor, name: DivergenceName,
                beta: float, temperature: float) -> Tensor:  # fmt: skip
        log_p, log_q = _log_probs(target_logits, draft_logits, temperature)
        value = (_value(name, log_p, log_q, beta) * weights).sum()
        if ctx.needs_input_grad[0]:
            slope = _slope(name, log_p, log_q, beta)
            slope -= log_q.exp_() * slope.sum(-1, keepdim=True)  # through the log-softmax
            slope *= weights[:, None] / (temperature or 1.0)
            surplus = draft_logits.shape[-1] - slope.shape[-1]
            ctx.save_for_backward(torch.nn.functional.pad(slope, (0, surplus)).to(draft_logits.dtype))
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0]).to(slope.dtype), None, None, None, None, None


def _log_probs(target_logits: Tensor, draft_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both [n, V] as log-probabilities over the smaller vocabulary."""
    size = min(target_logits.shape[-1], draft_logits.shape[-1])
    dtype = _precise(draft_logits)
    target_logits, draft_logits = target_logits[..., :size].to(dtype), draft_logits[..., :size].to(dtype)
    if temperature == 0:
        log_p = torch.full_like(target_logits, -torch.inf)
        log_p.scatter_(-1, target_logits.argmax(-1, keepdim=True), 0.0)
        return log_p, draft_logits.log_softmax(-1)
    if temperature != 1:
        target_logits, draft_logits = target_logits / temperature, draft_logits / temperature
    return target_logits.log_softmax(-1), draft_logits.log_softmax(-1)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _value(name: DivergenceName, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """[n]"""
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    if name == "jsd":
        log_m = _log_mixture(log_p, log_q, beta)
        return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
    if name == "lk_alpha":
        return -torch.minimum(log_p, log_q).logsumexp(-1)
    variation = (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    if name == "tv":
        return variation
    share = _kl_share(variation)
    return share * _kl(log_p, log_q) + (1 - share) * variation


def _slope(name: DivergenceName, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """[n, V] derivative of :func:`_value` by ``log_q``, up to a multiple of q, which the softmax takes out again."""
    q = log_q.exp()
    if name == "forward_kl":
        return -log_p.exp()
    if name == "reverse_kl":
        return torch.where(q > 0, q * (log_q - log_p), 0.0)
    if name == "jsd":
        log_m = _log_mixture(log_p, log_q, beta)
        return (1 - beta) * torch.where(q > 0, q * (log_q - log_m), 0.0)
    if name == "lk_alpha":
        overlap = torch.minimum(log_p, log_q)
        lagging = ((log_p - log_q).sign() + 1) / 2  # where the draft says a token too seldom; ties count half
        return -lagging * overlap.softmax(-1)
    p = log_p.exp()
    towards = q * (q - p).sign() / 2
    if name == "tv":
        return towards
    share = _kl_share((p - q).abs().sum(-1) / 2)[..., None]
    return (1 - share) * towards - share * p


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[n] Σ p log(p/q); a token with p = 0 adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    weight = torch.tensor([beta, 1 - beta], dtype=log_q.dtype, device=log_q.device).log()
    return torch.logaddexp(log_p + weight[0], log_q + weight[1])


def _kl_share(variation: Tensor) -> Tensor:
    return torch.exp(-_LK_ETA * (1 - variation)).detach()
