"""The demo target at the price of a real one: 100–120 M parameters that compute exactly what the small model computes.

A target of 3 M parameters costs less than the Python around it, so nothing can be learnt from timing it. Here its
matrices are set into larger ones. What is added costs full arithmetic and contributes zero:

- wider rows: the residual stream gets dimensions that stay zero, because every projection into them is zero;
- RMSNorm divides by the mean over all dimensions, so its weight is scaled by sqrt(h/H) and epsilon by h/H;
- more heads and more MLP units: random, but the output projection ignores them;
- more layers: random, but their output projections are zero, so the residual stream passes through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["EXPENSIVE", "Size", "make_expensive"]


@dataclass(frozen=True, slots=True)
class Size:
    """Dimensions of the enlarged model. The head size stays the small model's own."""

    hidden: int
    intermediate: int
    layers: int


EXPENSIVE = Size(hidden=1024, intermediate=2816, layers=9)
"""The one configuration of all benchmarks: about 117 M parameters with the demo target's vocabulary."""


def make_expensive(small: Any, size: Size = EXPENSIVE) -> Any:
    """A float32 ``LlamaForCausalLM`` of ``size`` whose logits equal those of ``small`` up to float rounding.

    :raises ValueError: ``size`` is smaller than ``small``, or not divisible into its heads.
    """
    old = small.config
    head = old.head_dim or old.hidden_size // old.num_attention_heads
    queries_per_key = old.num_attention_heads // old.num_key_value_heads
    if (
        size.hidden < old.hidden_size
        or size.intermediate < old.intermediate_size
        or size.layers < old.num_hidden_layers
    ):
        raise ValueError(f"{size} is smaller than the model it should hold")
    if size.hidden % (head * queries_per_key):
        raise ValueError(f"hidden size {size.hidden} is no multiple of {queries_per_key} heads of {head}")
    heads = size.hidden // head
    config = LlamaConfig.from_dict(
        {
            **old.to_dict(),
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // queries_per_key,
            "head_dim": head,
            "rms_norm_eps": old.rms_norm_eps * old.hidden_size / size.hidden,
            "dtype": "float32",
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        large: Any = LlamaForCausalLM(config).train(False)
    norm_scale = (old.hidden_size / size.hidden) ** 0.5
    with torch.no_grad():
        _fill(large.model.embed_tokens.weight, small.model.embed_tokens.weight, zero_columns=True)
        if not old.tie_word_embeddings:
            _fill(large.lm_head.weight, small.lm_head.weight)
        _fill_norm(large.model.norm, small.model.norm, norm_scale)
        for index, layer in enumerate(large.model.layers):
            inner = small.model.layers[index] if index < old.num_hidden_layers else None
            for name in ("input_layernorm", "post_attention_layernorm"):
                if inner is not None:
                    _fill_norm(getattr(layer, name), getattr(inner, name), norm_scale)
            for block, inputs, output in (
                ("self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj"),
                ("mlp", ("gate_proj", "up_proj"), "down_proj"),
            ):
                if inner is not None:
                    for name in inputs:
                        _fill(_weight(layer, block, name), _weight(inner, block, name))
                _weight(layer, block, output).zero_()
                if inner is not None:
                    _fill(_weight(layer, block, output), _weight(inner, block, output))
    large.generation_config = small.generation_config
    return large


def _weight(layer: nn.Module, block: str, name: str) -> Tensor:
    weight: Tensor = layer.get_submodule(block).get_parameter(f"{name}.weight")
    return weight


def _fill(large: Tensor, small: Tensor, *, zero_columns: bool = False) -> None:
    """Set ``small`` into the upper left corner; with ``zero_columns`` the dimensions to its right become zero."""
    rows, columns = small.shape
    if zero_columns:
        large[:, columns:] = 0
    large[:rows, :columns] = small.float()


def _fill_norm(large: nn.Module, small: nn.Module, scale: float) -> None:
    weight = small.get_parameter("weight")
    large.get_parameter("weight")[: weight.numel()] = weight.float() * scale
