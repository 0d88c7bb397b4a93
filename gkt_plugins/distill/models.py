"""The target and the draft, loaded; and a model cut in two, so that its head is computed only where it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gkt_plugins.distill.options import DistillOptions, LoraSection
from gkt_plugins.errors import ConfigError, require
from gkt_plugins.speculation.loading import end_ids, load_causal_model, load_tokenizer
from gkt_plugins.speculation.vocabulary import check_vocabularies

__all__ = ["Halves", "ModelPair", "add_lora", "load_draft", "load_pair"]


class Halves:
    """A causal language model as two functions: token ids → hidden states, and hidden states → logits.

    The head is then computed at the positions that need it only. A model that does more between the two than its head
    (scaling or capping logits, say) is not cut: its "hidden states" are its logits, and its head changes nothing.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._is_cut = _can_be_cut(self._model)
        self._size = _vocab_size(self._model)

    def hidden(self, ids: Tensor) -> Tensor:
        """[B, L, hidden] of ``ids`` [B, L]. Rows are padded on the right, which a model that looks back never sees.

        A token that only the other, padded model has becomes this one's last, as when decoding.
        """
        ids = ids.clamp(max=self._size - 1)
        if self._is_cut:
            states: Tensor = self._model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            return states
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    def head(self, hidden: Tensor) -> Tensor:
        """[n, vocab] logits of [n, hidden]."""
        if not self._is_cut:
            return hidden
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits


@torch.no_grad()
def _can_be_cut(model: Any) -> bool:
    head = model.get_output_embeddings()
    if head is None or not hasattr(model, "get_decoder"):
        return False
    ids = torch.arange(4, device=model.device)[None]
    try:
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, TypeError):
        return False
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.equal(head(hidden), logits) or torch.allclose(head(hidden), logits, rtol=1e-3, atol=1e-3)


@dataclass(frozen=True, slots=True)
class ModelPair:
    """What a distillation works with."""

    target: Any
    """Frozen, in evaluation mode; None where it is behind an endpoint."""
    draft: Any
    """Float32, without dropout; see :attr:`draft_dtype`."""
    tokenizer: Any
    """The target's, which is the draft's as well."""
    eos_ids: tuple[int, ...]
    """Tokens that end an answer of the target."""
    pad_id: int
    draft_dtype: torch.dtype
    """In which the draft was saved, and will be."""
    draft_source: str
    target_source: str


def load_pair(options: DistillOptions) -> ModelPair:
    """Load both models.

    :raises ConfigError: one of them cannot be loaded, or their vocabularies differ; both sizes are named.
    """
    models = options.models
    target_source, draft_source = options.located(models.target), options.located(models.draft)
    remote = models.trust_remote_code
    dtype = "auto" if models.dtype == "auto" else getattr(torch, models.dtype)
    target = None
    if options.endpoint is None:
        target = load_causal_model(
            target_source, key="models.target", extra="distill", dtype=dtype, trust_remote_code=remote
        )
        target.eval().requires_grad_(False)
    tokenizer = load_tokenizer(target_source, extra="distill", trust_remote_code=remote)
    if tokenizer is None:
        raise ConfigError(f"models.target: {target_source!r} has no tokenizer that can be loaded; save one beside it")
    draft, draft_dtype = load_draft(draft_source, trust_remote_code=remote)
    draft_tokenizer = load_tokenizer(draft_source, extra="distill", trust_remote_code=remote)
    check_vocabularies(
        _vocab_size(draft) if target is None else _vocab_size(target),
        _vocab_size(draft),
        tokenizer.get_vocab() if draft_tokenizer is not None else None,
        draft_tokenizer.get_vocab() if draft_tokenizer is not None else None,
    )
    eos_ids = end_ids(draft if target is None else target, tokenizer)
    pad = tokenizer.pad_token_id
    pad_id = pad if pad is not None else eos_ids[0] if eos_ids else 0
    return ModelPair(target, draft, tokenizer, eos_ids, pad_id, draft_dtype, draft_source, target_source)


def load_draft(source: str, *, trust_remote_code: bool = False) -> tuple[Any, torch.dtype]:
    """A draft in float32 and without dropout, and the dtype that it was saved in."""
    draft = load_causal_model(source, key="models.draft", extra="distill", trust_remote_code=trust_remote_code)
    dtype: torch.dtype = draft.dtype
    return draft.float(), dtype


def add_lora(draft: Any, options: LoraSection, seed: int) -> Any:
    """``draft`` with low-rank additions, which alone will train."""
    peft = require("peft", extra="distill")
    modules = options.modules if options.modules == "all-linear" else list(options.modules)
    config = peft.LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM"
    )
    torch.manual_seed(seed)
    try:
        return peft.get_peft_model(draft, config)
    except ValueError as exc:
        raise ConfigError(f"train.lora.modules: {' '.join(str(exc).split())}") from exc


def _vocab_size(model: nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
