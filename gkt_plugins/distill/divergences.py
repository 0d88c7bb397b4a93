"""How far the draft's distributions are from the target's: four divergences, and two losses made for acceptance.

p is the target's distribution, q the draft's. The readable form is :func:`divergence`; training uses
:func:`chunked_divergence`, which has the same value and gradient.
"""

from __future__ import annotations

import math
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
_CHUNK_BYTES = 2**28
"""Of a float32 [chunk, V] tensor, unless the caller says otherwise. Two exist at a time, three for the gradient."""
_BLOCK_BYTES = 2**20
"""Of a float32 [rows, V] tensor that is worked on at once: on a CPU, what a core's cache holds a few of."""
_BLOCK_BYTES_ELSEWHERE = 2**26


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
    target_logits, draft_logits = _comparable(target_logits.detach(), draft_logits, temperature)
    log_p = _likeliest(target_logits) if temperature == 0 else target_logits.log_softmax(-1)
    log_q = draft_logits.log_softmax(-1)
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    if name == "jsd":
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
    if name == "lk_alpha":
        return -torch.minimum(log_p, log_q).logsumexp(-1)
    variation = (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    if name == "tv":
        return variation
    share = _kl_share(variation)
    return share * _kl(log_p, log_q) + (1 - share) * variation


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
    total: Tensor = _WeightedSum.apply(  # type: ignore[no-untyped-call]
        draft_head(draft_hidden), target_hidden, target_head, weights, name, beta, temperature
    )
    return total


class _WeightedSum(torch.autograd.Function):
    """Computes the gradient along with the value, and all but that gradient for a block of rows at a time."""

    @staticmethod
    def forward(ctx: Any, draft_logits: Tensor, target_hidden: Tensor, target_head: Head, weights: Tensor,
                name: DivergenceName, beta: float, temperature: float) -> Tensor:  # fmt: skip
        bytes_at_once = _BLOCK_BYTES if draft_logits.device.type == "cpu" else _BLOCK_BYTES_ELSEWHERE
        rows = max(1, bytes_at_once // (4 * draft_logits.shape[-1]))
        slopes = torch.zeros_like(draft_logits) if ctx.needs_input_grad[0] else None
        total = draft_logits.new_zeros((), dtype=_precise(draft_logits))
        for begin in range(0, len(draft_logits), rows):
            here = slice(begin, begin + rows)
            logits = _comparable(target_head(target_hidden[here]), draft_logits[here], temperature)
            value, slope = _value_and_slope(name, *logits, beta, peaked=temperature == 0)
            total += (value * weights[here]).sum()
            if slopes is not None:
                slope *= weights[here, None] / (temperature or 1.0)
                slopes[here, : slope.shape[-1]] = slope  # padding has none
        ctx.save_for_backward(slopes)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0].to(slopes.dtype), None, None, None, None, None, None


def _comparable(target_logits: Tensor, draft_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both over the smaller vocabulary, precise enough, and divided by the temperature."""
    size = min(target_logits.shape[-1], draft_logits.shape[-1])
    dtype = _precise(draft_logits)
    target_logits, draft_logits = target_logits[..., :size].to(dtype), draft_logits[..., :size].to(dtype)
    if temperature in (0, 1):
        return target_logits, draft_logits
    return target_logits / temperature, draft_logits / temperature


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _likeliest(logits: Tensor) -> Tensor:
    """[n, V] log-probabilities of a model that says its likeliest token only."""
    return torch.full_like(logits, -torch.inf).scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[n] Σ p log(p/q); a token with p = 0 adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _kl_share(variation: Tensor) -> Tensor:
    return torch.exp(-_LK_ETA * (1 - variation)).detach()


def _value_and_slope(name: DivergenceName, target_logits: Tensor, draft_logits: Tensor, beta: float, *,
                     peaked: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The divergence [n] and its derivative by the draft's logits [n, V], in as few passes as each needs.

    With g the derivative by log q, the derivative by the logits is g − q Σ g. ``peaked``: the target says its likeliest
    token only.
    """
    log_p = log_q = p = q = draft_logits
    if name != "tv":
        least = torch.finfo(draft_logits.dtype).min / 4  # finite: 0 · log 0 is to be 0
        log_p = (_likeliest(target_logits) if peaked else target_logits.log_softmax(-1)).clamp_(min=least)
        log_q = draft_logits.log_softmax(-1).clamp_(min=least)
    if name != "lk_alpha":
        p = _likeliest(target_logits).exp_() if peaked else target_logits.softmax(-1)
    q = draft_logits.softmax(-1)
    if name == "forward_kl":
        return _dot(p, log_p.sub_(log_q)), q.sub_(p)
    if name == "reverse_kl":
        ratio = log_q.sub_(log_p)
        value = _dot(q, ratio)
        return value, ratio.sub_(value[:, None]).mul_(q)
    if name == "jsd":
        # The floor keeps log m finite where both p and q are too small for a float.
        log_m = (beta * p + (1 - beta) * q).clamp_(min=torch.finfo(q.dtype).tiny).log_()
        ratio = log_q.sub_(log_m)
        there, back = _dot(p, log_p.sub_(log_m)), _dot(q, ratio)
        return beta * there + (1 - beta) * back, ratio.sub_(back[:, None]).mul_(q).mul_(1 - beta)
    if name == "lk_alpha":
        lagging = ((log_p - log_q).sign_() + 1) / 2  # where the draft says a token too seldom; ties count half
        overlap = torch.minimum(log_p, log_q)
        rising = lagging.mul_(overlap.softmax(-1))
        return -overlap.logsumexp(-1), q.mul_(rising.sum(-1, keepdim=True)).sub_(rising)
    excess = q - p
    variation = excess.abs().sum(-1) / 2
    sign = torch.sign(excess)
    slope = sign.sub_(_dot(q, sign)[:, None]).mul_(q).div_(2)
    if name == "tv":
        return variation, slope
    share = _kl_share(variation)
    value = share * _dot(p, log_p.sub_(log_q)) + (1 - share) * variation
    return value, slope.mul_(1 - share[:, None]).add_(excess.mul_(share[:, None]))


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(weights, values)
    return product
