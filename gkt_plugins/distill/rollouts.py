"""Answers in bulk, from a model that is being trained.

The decode loop serves rows that come and go; here a whole batch begins together, and all of it is known beforehand. So
prompts are padded on the left, which gives every row the same column in the cache, all noise is drawn at once, and a
step is one forward call and a handful of tensor operations, with nothing per row in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.noise import SAMPLE, uniform
from gkt_plugins.speculation.packed_linear import packed_linears
from gkt_plugins.speculation.sampling import sample
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["Rollouts", "evaluating"]

_LEAVE = 0.75
"""Finished rows leave the batch as soon as no more than this share of it is still being written."""


class Rollouts:
    """Samples answers from ``model``, whose weights may change between calls."""

    def __init__(self, model: Any, *, eos_ids: Collection[int], max_new_tokens: int, max_batch: int) -> None:
        """
        :param eos_ids: tokens that end an answer; the one that did is its last token.
        :param max_new_tokens: the most tokens of an answer.
        :param max_batch: rows that are written side by side.
        :raises ConfigError: the architecture cannot be decoded with rows of different lengths; it says why.
        """
        if max_new_tokens < 1 or max_batch < 1:
            raise ConfigError(f"rollouts need at least 1 new token and 1 row, got {max_new_tokens} and {max_batch}")
        with evaluating(model):
            checked = TransformersModel(model)
        self._model = model
        self._context = checked.context
        self._vocab_size = checked.vocab_size
        self._layout = _Layout(model)
        self._eos_ids = torch.tensor(sorted(eos_ids), dtype=torch.int64)
        self._max_new_tokens = max_new_tokens
        self._max_batch = max_batch

    def write(self, prompts: Sequence[Sequence[int]], *, temperature: float,
              seed: int | Sequence[int]) -> list[list[int]]:  # fmt: skip
        """One answer per prompt, in order. The same weights, prompts and seed give the same tokens.

        The model's training mode and its gradients are left as they are.

        :param prompts: token ids, at least one each, and fewer than the model's context.
        :param temperature: 0 is greedy.
        :param seed: of all rows, each of which has draws of its own; or one for each row, which then depends on
            nothing else.
        :raises ConfigError: a prompt that the model cannot continue.
        """
        for prompt in prompts:
            self._check(prompt)
        if temperature < 0:
            raise ConfigError(f"the temperature of rollouts must be at least 0, got {temperature}")
        noise = self._noise(len(prompts), seed) if temperature else None
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # alike in length: little padding
        with evaluating(self._model), packed_linears(self._model):
            for first in range(0, len(order), self._max_batch):
                rows = order[first : first + self._max_batch]
                part = None if noise is None else noise[rows].to(self._model.device)
                for row, answer in zip(rows, self._batch([prompts[r] for r in rows], part, temperature), strict=True):
                    answers[row] = answer
        return answers

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt or len(prompt) >= self._context:
            raise ConfigError(
                f"expected prompts of 1 to {self._context - 1} tokens, the model's context, got {len(prompt)}"
            )
        if min(prompt) < 0 or max(prompt) >= self._vocab_size:
            raise ConfigError(
                f"expected token ids from 0 to {self._vocab_size - 1}, got {min(prompt)} to {max(prompt)}; "
                "use a draft with the target's tokenizer"
            )

    def _noise(self, rows: int, seed: int | Sequence[int]) -> Tensor:
        """[rows, max_new_tokens] uniform draws."""
        seeds = [seed] * rows if isinstance(seed, int) else list(seed)
        positions = range(rows) if isinstance(seed, int) else [0] * rows
        if len(seeds) != rows:
            raise ValueError(f"expected one seed for each of {rows} prompts, got {len(seeds)}")
        draws = uniform(
            np.array([s % 2**64 for s in seeds], dtype=np.uint64),
            np.array(positions, dtype=np.uint64),
            self._max_new_tokens,
            SAMPLE,
        )
        return torch.from_numpy(draws)

    def _batch(self, prompts: Sequence[Sequence[int]], noise: Tensor | None, temperature: float) -> list[list[int]]:
        """The answers to prompts that are written side by side."""
        device = self._model.device
        eos_ids = self._eos_ids.to(device)
        width = max(map(len, prompts))
        steps = min(self._max_new_tokens, self._context - min(map(len, prompts)))
        batch = _Aligned(self._model, self._layout, prompts, width + steps)
        written = torch.zeros(len(prompts), steps, dtype=torch.int64, device=device)
        rows: Tensor | None = None  # the rows still in the batch; None: all
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        look_every = 1 if device.type == "cpu" else 8  # elsewhere, a look at ``done`` waits for the device
        logits = batch.begin()
        for step in range(steps):
            if noise is None:
                tokens = logits.argmax(-1)
            else:
                probs = torch.softmax(logits.float() / temperature, dim=-1)
                tokens = sample(probs, noise[:, step])
            if rows is None:
                written[:, step] = tokens
            else:
                written[rows, step] = tokens
            if step + 1 == steps:
                break
            done = done | (tokens[:, None] == eos_ids).any(1)
            if (step + 1) % look_every == 0:
                left = len(done) - int(done.sum())
                if left == 0:
                    break
                if left <= _LEAVE * len(done):
                    keep = (~done).nonzero().squeeze(1)
                    batch.keep(keep)
                    rows = keep if rows is None else rows[keep]
                    tokens, done = tokens[keep], done[keep]
                    noise = None if noise is None else noise[keep]
            logits = batch.advance(tokens)
        ends = frozenset(self._eos_ids.tolist())
        limits = [self._context - len(prompt) for prompt in prompts]
        return [_closed(answer[:limit], ends) for answer, limit in zip(written.tolist(), limits, strict=True)]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """``model`` without dropout and without gradients; afterwards every part of it is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference mode: what a model keeps for later calls, its rotary tables say, must be fit for training.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _closed(answer: list[int], eos_ids: frozenset[int]) -> list[int]:
    """``answer`` up to its end-of-sequence token."""
    for place, token in enumerate(answer):
        if token in eos_ids:
            return answer[: place + 1]
    return answer


class _Layout:
    """What a model's attention needs to be told."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        types = getattr(config, "layer_types", None)
        self.window = int(getattr(config, "sliding_window", None) or 0)
        if types is None:
            types = ["sliding_attention" if self.window else "full_attention"]
        self.kinds = tuple(dict.fromkeys(types))
        self.layers = int(config.num_hidden_layers)
        self.context = int(getattr(config, "max_position_embeddings", None) or 2**31)


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [B, heads, capacity, size], of which all rows have the same columns in use."""

    is_sliding = False  # windows are a matter of masks

    def __init__(self, batch: _Aligned) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = batch

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        capacity = self._batch.capacity
        # Zeros: a masked column has weight 0, and 0 times a stray NaN would be NaN.
        self.keys = key_states.new_zeros(*key_states.shape[:2], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        begin, end = self._batch.begin_column, self._batch.end_column
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._batch.end_column, 0

    def get_seq_length(self) -> int:
        return self._batch.begin_column

    def get_max_length(self) -> int:
        return -1


class _Aligned:
    """Rows whose last tokens always stand in the same column: prompts are padded on the left."""

    def __init__(self, model: Any, layout: _Layout, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self._model = model
        self._layout = layout
        self.capacity = capacity
        """Columns of the cache."""
        self.begin_column = 0
        """First column that the current call writes."""
        width = max(map(len, prompts))
        self.end_column = width
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        self._ids = ids.to(model.device)
        self._padding = torch.tensor([width - len(prompt) for prompt in prompts], device=model.device)[:, None]
        dtype = model.dtype
        kind = model.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        self._floor = torch.finfo(dtype).min
        columns = torch.arange(capacity, device=model.device)
        mask = torch.zeros(len(prompts), 1, 1, capacity, dtype=dtype, device=model.device)
        self._mask = mask.masked_fill_((columns < self._padding)[:, None, None], self._floor)
        self._layers = [_Layer(self) for _ in range(layout.layers)]
        self._cache = Cache(layers=list(self._layers))

    def begin(self) -> Tensor:
        """[B, vocab] logits behind the prompts."""
        at = torch.arange(self.end_column, device=self._ids.device)
        positions = (at - self._padding).clamp_(min=0)
        ahead = at > at[:, None]
        return self._forward(self._ids, positions, ahead)

    def advance(self, tokens: Tensor) -> Tensor:
        """[B, vocab] logits behind ``tokens`` [B], the rows' next ones."""
        self.begin_column, self.end_column = self.end_column, self.end_column + 1
        positions = (self.begin_column - self._padding).clamp_(max=self._layout.context - 1)
        return self._forward(tokens[:, None], positions, None)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [n] alone."""
        self._padding = self._padding[rows]
        self._mask = self._mask[rows]
        for layer in self._layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def _forward(self, ids: Tensor, positions: Tensor, ahead: Tensor | None) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks(ahead),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _masks(self, ahead: Tensor | None) -> Any:
        """Additive masks by kind of layer, [B, 1, queries, keys]. ``ahead``: [queries, keys] of more than one query."""
        visible = self._mask[..., : self.end_column]
        if ahead is not None:
            visible = visible.masked_fill(ahead, self._floor)
        masks = {}
        for kind in self._layout.kinds:
            masks[kind] = visible
            if kind == "sliding_attention":
                keys = torch.arange(self.end_column, device=visible.device)
                queries = keys[self.begin_column :]
                masks[kind] = visible.masked_fill(keys <= queries[:, None] - self._layout.window, self._floor)
        return masks if len(masks) > 1 else next(iter(masks.values()))
