"""Generate's logits processors and stopping criteria, given to each row by itself.

The decode loop calls processors with one row's own unpadded ids. Those of generate that count positions were set up for
padded rows, so they get the padding back; everybody else sees the row as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as hf
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from gkt_plugins.contracts import Sampling
from gkt_plugins.speculation.requests import StoppingCriterion
from gkt_plugins.speculation.sampling import LogitsProcessor
from gkt_transformers._generation_options import refuse

__all__ = ["SplitProcessors", "row_criteria", "split_processors"]

_COUNT_POSITIONS = (
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
    hf.SuppressTokensAtBeginLogitsProcessor,
)
_NEED_MORE_THAN_A_ROW = (
    hf.ClassifierFreeGuidanceLogitsProcessor,
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    hf.EncoderRepetitionPenaltyLogitsProcessor,
    hf.EncoderNoRepeatNGramLogitsProcessor,
    hf.SynthIDTextWatermarkLogitsProcessor,
    hf.WhisperTimeStampLogitsProcessor,
    hf.WhisperNoSpeechDetection,
)
"""Keep state between calls, or look at other rows or models."""


@dataclass(frozen=True, slots=True)
class SplitProcessors:
    """What the loop does itself for the whole batch, and what is left for each row."""

    sampling: Sampling
    """Without seed, stop strings and budget."""
    rest: tuple[Any, ...]

    def for_row(self, row: int, padding: Tensor) -> tuple[LogitsProcessor, ...]:
        """``row``: its index in the batch. ``padding``: [n] ids that generate's own call has before the row's."""
        return tuple(_at_home(_for_row(processor, row, padding), padding.device) for processor in self.rest)


def split_processors(processors: Sequence[Any], *, do_sample: bool) -> SplitProcessors:
    """Sort a prepared ``LogitsProcessorList``. Order is kept: the loop's own options run where they stood, or not.

    :raises ConfigError: a processor keeps state or needs other rows.
    """
    for processor in processors:
        if isinstance(processor, _NEED_MORE_THAN_A_ROW):
            raise refuse("logits_processor", processor, "it keeps state or needs more than one row's ids; leave it out")
    rest = list(processors)
    options: dict[str, float] = {}
    if (
        rest
        and type(rest[0]) is hf.RepetitionPenaltyLogitsProcessor
        and not isinstance(rest[0].prompt_ignore_length, int)
    ):
        options["repetition_penalty"] = float(rest.pop(0).penalty)
    if do_sample:
        options |= {"temperature": 1.0} | _pop_warpers(rest)
    return SplitProcessors(Sampling(**options), tuple(rest))  # type: ignore[arg-type]  # top_k is an int in there


_WARPERS: tuple[tuple[type, str, str], ...] = (
    (hf.TemperatureLogitsWarper, "temperature", "temperature"),
    (hf.TopKLogitsWarper, "top_k", "top_k"),
    (hf.TopPLogitsWarper, "top_p", "top_p"),
    (hf.MinPLogitsWarper, "min_p", "min_p"),
)
"""In the order in which generate and the loop run them."""


def _pop_warpers(processors: list[Any]) -> dict[str, float]:
    """Take from the end of ``processors`` what the loop does in the same order; anything else keeps them all there."""
    place = {kind: i for i, (kind, _, _) in enumerate(_WARPERS)}
    first = len(processors)
    behind = len(_WARPERS)
    while first and place.get(type(processors[first - 1]), behind) < behind and _plain(processors[first - 1]):
        first -= 1
        behind = place[type(processors[first])]
    taken, processors[first:] = processors[first:], []
    return {name: getattr(w, attribute) for w in taken for kind, name, attribute in _WARPERS if type(w) is kind}


def _plain(warper: Any) -> bool:
    """Whether it removes tokens as the loop does: to minus infinity, and never keeping more than the first."""
    return getattr(warper, "filter_value", -torch.inf) == -torch.inf and getattr(warper, "min_tokens_to_keep", 1) == 1


def _for_row(processor: Any, row: int, padding: Tensor) -> LogitsProcessor:
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor and isinstance(processor.prompt_ignore_length, Tensor):
        return hf.RepetitionPenaltyLogitsProcessor(processor.penalty)  # it ignored the padding
    if isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return hf.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    if isinstance(processor, _COUNT_POSITIONS) and len(padding):
        return lambda ids, scores: processor(torch.cat([padding[None], ids], dim=1), scores)
    return processor  # type: ignore[no-any-return]


def _at_home(processor: LogitsProcessor, device: torch.device) -> LogitsProcessor:
    """Generate sets processors up for the device of its inputs, which need not be the model's."""

    def on_device(ids: Tensor, scores: Tensor) -> Tensor:
        if scores.device == device:
            return processor(ids, scores)
        return processor(ids.to(device), scores.to(device)).to(scores.device)

    return on_device


def row_criteria(criteria: Sequence[Any], padding: Tensor) -> tuple[StoppingCriterion, ...]:
    """What the loop does not do itself; each sees the row as generate's own call has it, padding included."""

    def padded(criterion: Any) -> StoppingCriterion:
        return lambda ids, scores: criterion(torch.cat([padding[None], ids.to(padding.device)], dim=1), scores)

    own = (MaxLengthCriteria, EosTokenCriteria)
    return tuple(padded(criterion) for criterion in criteria if not isinstance(criterion, own))
