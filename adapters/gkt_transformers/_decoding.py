"""The one implementation behind all ways into ``generate``: a decoding method over gkt's decode loop.

``generate`` itself has prepared everything (lengths, masks, processors, criteria); the output is what its own method
would have returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_transformers._attachment import attachment_of
from gkt_transformers._generation_options import MODEL_KWARGS, check_generation_config, refuse
from gkt_transformers._processors import row_criteria, split_processors
from gkt_transformers._speculator import Speculator
from gkt_transformers.report import Report

__all__ = ["GenerateSpeculativeOutput", "decode"]


@dataclass
class GenerateSpeculativeOutput(GenerateDecoderOnlyOutput):
    """What ``return_dict_in_generate=True`` gives: as from plain ``generate``, and the report.

    ``past_key_values`` is None: rows had caches of their own.
    """

    report: Report | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: Tensor
    """[n] without padding."""
    padding: Tensor
    """[width - n]"""


def decode(
    model: Any,
    speculator: Speculator,
    input_ids: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    *,
    streamer: Any = None,
    **model_kwargs: Any,
) -> GenerateSpeculativeOutput | Tensor:
    """Decode every row of ``input_ids`` [B, T], as ``GenerationMixin.generate`` hands them to a decoding method.

    :raises ConfigError: an option cannot be honoured; nothing has been computed then.
    :raises GktError: a row failed.
    """
    check_generation_config(generation_config)
    _check_model_kwargs(model_kwargs, input_ids)
    if streamer is not None and len(input_ids) > 1:
        raise refuse("streamer", streamer, "rows of a batch advance by different amounts; stream one row at a time")
    if len(input_ids) > 1 and generation_config._eos_token_tensor is None:
        extra = [c for c in stopping_criteria if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))]
        if extra:
            raise refuse("stopping_criteria", extra, "rows that end early need an eos_token_id to be padded; set one")
    prompts = _unpad(input_ids, model_kwargs.get("attention_mask"))
    requests = _requests(prompts, logits_processor, stopping_criteria, generation_config)

    def stream(row: int, tokens: Sequence[int]) -> None:
        for token in tokens:
            streamer.put(torch.tensor([token]))

    results, report = speculator.decode(requests, on_tokens=stream if streamer is not None else None)
    attachment_of(model).report = report
    if streamer is not None:
        streamer.end()
    sequences = _assemble(input_ids, results, generation_config)
    if generation_config.return_dict_in_generate:
        return GenerateSpeculativeOutput(sequences=sequences, report=report)  # type: ignore[arg-type]  # int64 it is
    return sequences


def _check_model_kwargs(model_kwargs: dict[str, Any], input_ids: Tensor) -> None:
    for name, value in model_kwargs.items():
        if value is None:
            continue
        known = MODEL_KWARGS.get(name)
        if known is None:
            raise refuse(name, value, "the draft would not get this input; leave it out")
        if name == "past_key_values":
            _check_cache(value)
        elif known.treatment == "refused":
            raise refuse(name, value, known.reason)
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    if positions is not None:
        mask = torch.ones_like(input_ids) if mask is None else mask
        counted = (mask.long().cumsum(-1) - 1).to(positions.device)
        if positions.shape != counted.shape or bool(((positions != counted) & (mask != 0)).any()):
            raise refuse("position_ids", positions, "rows are numbered from 0; leave them out")


def _check_cache(cache: Any) -> None:
    """``generate`` always makes a cache; only one that the caller made asks for something."""
    if getattr(cache, "_is_user_defined", False) or cache.get_seq_length():
        raise refuse("past_key_values", cache, MODEL_KWARGS["past_key_values"].reason)


def _unpad(input_ids: Tensor, mask: Tensor | None) -> list[_Prompt]:
    if mask is None:
        return [_Prompt(row, row[:0]) for row in input_ids]
    mask = mask.to(input_ids.device).bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ConfigError(
            "speculation needs prompts padded on the left, got an attention_mask with a gap or padding on the right; "
            "set tokenizer.padding_side = 'left'"
        )
    starts = (~mask).sum(dim=1).tolist()
    return [_Prompt(row[start:], row[:start]) for row, start in zip(input_ids, starts, strict=True)]


def _requests(
    prompts: Sequence[_Prompt], processors: Sequence[Any], criteria: Sequence[Any], config: Any
) -> list[DecodeRequest]:
    split = split_processors(processors, do_sample=bool(config.do_sample))
    eos = config._eos_token_tensor
    width = len(prompts[0].ids) + len(prompts[0].padding)
    # From torch's own generator, so that torch.manual_seed makes a call repeatable, as it does for plain generate.
    seeds = torch.randint(2**62, (len(prompts),)).tolist() if config.do_sample else [None] * len(prompts)
    sampling = replace(split.sampling, max_tokens=config.max_length - width)
    return [
        DecodeRequest(
            prompt.ids.tolist(),
            replace(sampling, seed=seed),
            eos_ids=() if eos is None else tuple(eos.tolist()),
            processors=split.for_row(row, prompt.padding),
            criteria=row_criteria(criteria, prompt.padding),
        )
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]


def _assemble(input_ids: Tensor, results: Sequence[DecodeResult], config: Any) -> Tensor:
    """[B, T + longest answer]; shorter ones are padded on the right, as generate does."""
    longest = max(len(result.token_ids) for result in results)
    pad = config._pad_token_tensor
    answers = input_ids.new_full((len(results), longest), 0 if pad is None else int(pad))
    for row, result in enumerate(results):
        answers[row, : len(result.token_ids)] = input_ids.new_tensor(result.token_ids)
    return torch.cat([input_ids, answers], dim=1)
