"""The model below the loop: token ids in, logits out, with one cached row per slot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.cache import RowCache
from gkt_plugins.speculation.packed_linear import packed_linears

__all__ = ["CausalTarget", "TransformersModel"]


class CausalTarget(Protocol):
    """What the decode loop asks of a model. Rows live in numbered slots, from 0."""

    vocab_size: int
    context: int
    """Positions that the model has; a row never grows beyond."""
    device: torch.device
    seconds: float
    """Time spent in :meth:`forward` so far."""

    def forward(self, ids: Tensor, starts: Sequence[int], *, slots: Sequence[int] | None = None,
                last: Sequence[int] | None = None) -> Tensor:  # fmt: skip
        """Run ``ids`` [n, k], row i at positions ``starts[i]`` and following, after what its slot holds before them.

        ``slots``: [n], or None for slots 0 to n - 1. What a slot held from ``starts[i]`` on is forgotten, which is how
        rejected tokens are rolled back; so ids of padding at a row's end do no harm.

        :returns: [n, k, vocab] logits; with ``last`` [n], [n, vocab]: of each row, those at that index of its k.
        """
        ...

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` cached tokens of one slot to another."""
        ...


class TransformersModel:
    """A transformers causal language model with a row cache of its own; target or draft.

    Several of these may share one model's weights. Full and sliding-window attention are served, through the
    implementations ``sdpa`` and ``eager``; what is not is refused when the object is made.
    """

    def __init__(self, model: Any) -> None:
        """:raises ConfigError: the architecture cannot be decoded with rows of different lengths; it says why."""
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.vocab_size = (
            int(model.get_output_embeddings().weight.shape[0]) if _has_head(model) else int(config.vocab_size)
        )
        self.context = int(getattr(config, "max_position_embeddings", None) or 2**31)
        self.device = model.device
        self.seconds = 0.0
        self._kinds = _attention_kinds(model, config)
        self._window = int(getattr(config, "sliding_window", None) or 0)
        self._cache = RowCache(config.num_hidden_layers)
        self._floor = torch.finfo(model.dtype).min
        self._plain_single = self._kinds == ("full_attention",) and config._attn_implementation == "sdpa"
        model.eval()
        _self_check(self)

    def forward(self, ids: Tensor, starts: Sequence[int], *, slots: Sequence[int] | None = None,
                last: Sequence[int] | None = None) -> Tensor:  # fmt: skip
        """See :meth:`CausalTarget.forward`."""
        begun = time.perf_counter()
        n, k = ids.shape
        with torch.inference_mode(), packed_linears(self.model):
            self._cache.reserve(n if slots is None else max(slots) + 1, max(starts) + k)
            positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(k, device=self.device)
            chosen = None if slots is None else torch.tensor(slots, device=self.device)
            self._cache.begin(starts, k, chosen, positions)
            keep, pick = _logits_to_keep(last, self.device)
            output = self.model(
                input_ids=ids,
                attention_mask=self._mask(starts, positions),
                position_ids=positions.clamp(max=self.context - 1),
                past_key_values=self._cache,
                use_cache=True,
                return_dict=True,
                logits_to_keep=keep,
            )
            logits: Tensor = output.logits
            if pick is not None:
                logits = logits[torch.arange(n, device=self.device), pick]
        self.seconds += time.perf_counter() - begun
        return logits

    def move(self, source: int, destination: int, length: int) -> None:
        """See :meth:`CausalTarget.move`."""
        with torch.inference_mode():
            self._cache.move(source, destination, length)

    def _mask(self, starts: Sequence[int], positions: Tensor) -> Any:
        """Additive masks by kind of layer; None where the model's own causal attention is right as it is."""
        n, k = positions.shape
        if not any(starts) or (n == k == 1 and self._plain_single):
            return None
        keys = torch.arange(max(starts) + k, device=self.device)
        masks = {}
        for kind in self._kinds:
            visible = keys <= positions[..., None]
            if kind == "sliding_attention":
                visible &= keys > positions[..., None] - self._window
            mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=self.device)
            masks[kind] = mask.masked_fill_(~visible, self._floor)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _has_head(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and hasattr(head, "weight")


def _logits_to_keep(last: Sequence[int] | None, device: torch.device) -> tuple[Any, Tensor | None]:
    """Which positions need logits, and which of those belongs to each row. The head is the dearest layer of all."""
    if last is None:
        return 0, None
    wanted = sorted(set(last))
    place = {position: i for i, position in enumerate(wanted)}
    return torch.tensor(wanted, device=device), torch.tensor([place[position] for position in last], device=device)


def _attention_kinds(model: Any, config: Any) -> tuple[str, ...]:
    """The kinds of attention layers, in a fixed order; refuses what rows of different lengths cannot share."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ConfigError(f"speculation needs a decoder-only model, got the encoder-decoder {name}; leave it out there")
    if getattr(model, "_is_stateful", False):
        raise ConfigError(f"{name} keeps a recurrent state that cannot be rolled back; leave speculation out there")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"the decode loop needs attn_implementation 'sdpa' or 'eager', {name} has {config._attn_implementation!r}; "
            "load it with one of them"
        )
    types = getattr(config, "layer_types", None)
    if types is None:
        types = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConfigError(f"{name} has layers of type {unknown[0]!r}, which the decode loop cannot roll back per row")
    return tuple(kind for kind in ("full_attention", "sliding_attention") if kind in types)


def _self_check(target: TransformersModel) -> None:
    """Compare with the model's own forward call, after a rollback, for rows of different lengths.

    Positions or masks that an architecture takes from elsewhere would otherwise give wrong text without any error.
    """
    name = type(target.model).__name__
    size = min(6, target.context)
    row = torch.arange(size, device=target.device) % target.vocab_size
    first, second = size // 2, size // 2 - 1  # where the two rows go on, after what they had from there was rejected
    width = size - first
    try:
        with torch.inference_mode():
            expected = target.model(input_ids=row[None], use_cache=False).logits[0]
        rejected = row.flip(0)
        target.forward(
            torch.stack([torch.cat([row[:n], rejected[n:]]) for n in (first, second)]),
            [0, 0],
        )
        got = target.forward(torch.stack([row[n : n + width] for n in (first, second)]), [first, second])
    except Exception as exc:  # whatever the architecture stumbles over, it cannot be served
        raise ConfigError(f"{name} cannot be run with rows of different lengths: {exc!r}") from exc
    finally:
        target.seconds = 0.0
    scale = float(expected.float().std()) or 1.0
    tolerance = 0.01 if expected.dtype == torch.float32 else 0.2
    wanted = torch.stack([expected[n : n + width] for n in (first, second)])
    if float((got - wanted).float().abs().max()) > tolerance * scale:
        raise ConfigError(
            f"{name} computes something else when rows have different lengths, so it would write wrong text"
        )
