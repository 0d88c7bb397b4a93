"""What the target says about samples, kept where it is asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gkt_plugins.distill.samples import Sample, collate

__all__ = ["HiddenStore", "answer_states", "head_of"]


def head_of(model: Any) -> Any:
    """Last hidden states [n, H] → logits [n, V], as ``model`` computes them, parameters shared."""
    return model.get_output_embeddings()


def answer_states(model: Any, ids: Tensor, attention: Tensor, predicts_answer: Tensor) -> Tensor:
    """[n, H] last hidden states at the positions that predict the answer, row after row; with gradient."""
    states = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    found: Tensor = states[predicts_answer]
    return found


class HiddenStore:
    """Last hidden states of a frozen target. Those of samples that come again are kept, the least recent ones leave."""

    def __init__(self, model: Any, *, pad_id: int, max_bytes: int = 2**30, tokens_per_call: int = 8192) -> None:
        self._model = model
        self._pad_id = pad_id
        self._max_bytes = max_bytes
        self._tokens_per_call = tokens_per_call
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def states(self, samples: Sequence[Sample]) -> Tensor:
        """[n, H]: of each sample in order, one per token of its answer: row i is what predicts token i."""
        batch = collate(samples, self._pad_id).to(self._model.device)
        with torch.no_grad():
            return answer_states(self._model, batch.ids, batch.attention, batch.predicts_answer)
