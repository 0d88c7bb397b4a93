"""What speculation does with every option of ``generate``: honoured, refused with a sentence, or without effect.

The table has a row for every field of ``GenerationConfig``; a test compares it with the installed release, and a field
that is in no row is refused as soon as it has a value, so nothing is ever ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gkt_plugins.errors import ConfigError

__all__ = ["ARGUMENTS", "FIELDS", "MODEL_KWARGS", "Field", "check_generation_config", "refuse"]


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one option."""

    treatment: Literal["honoured", "refused", "harmless"]
    reason: str
    """Honoured: by what. Refused: what to do instead. Harmless: why it has no effect on the output."""
    neutral: tuple[Any, ...] = (None,)
    """Values of a refused field that ask for nothing."""


def _honoured(how: str, *names: str) -> dict[str, Field]:
    return {name: Field("honoured", how) for name in names}


def _harmless(why: str, *names: str) -> dict[str, Field]:
    return {name: Field("harmless", why) for name in names}


def _refused(instead: str, *names: str, neutral: tuple[Any, ...] = ()) -> dict[str, Field]:
    return {name: Field("refused", instead, (None, *neutral)) for name in names}


_PLAIN = "call gkt_transformers.disable(model) and use plain generate for it"
_FROM_CONFIG = "name the drafter under [speculation] in gkt.toml instead"

FIELDS: Mapping[str, Field] = {
    # ------------------------------------------------------------------------------------------------------- length
    **_honoured("each row's token budget", "max_length", "max_new_tokens"),
    **_honoured("generate's own logits processor", "min_length", "min_new_tokens"),
    **_honoured("generate's own stopping criterion, asked after every kept token", "max_time", "stop_strings"),
    # ----------------------------------------------------------------------------------------------------- strategy
    **_honoured("greedy rows compare tokens, sampled rows compare probabilities", "do_sample"),
    **_refused(f"beams cannot be verified block by block; {_PLAIN}", "num_beams", "num_beam_groups", neutral=(1,)),
    **_refused(f"beams cannot be verified block by block; {_PLAIN}", "constraints", "force_words_ids"),
    **_refused(f"beams cannot be verified block by block; {_PLAIN}", "diversity_penalty", neutral=(0.0,)),
    **_harmless("of beam search only, which is refused", "early_stopping", "length_penalty"),
    **_refused(f"contrastive search is another method; {_PLAIN}", "penalty_alpha", neutral=(0.0,)),
    **_refused(f"layer contrast is another method; {_PLAIN}", "dola_layers"),
    **_refused(f"it needs a second pass of the target per token; {_PLAIN}", "guidance_scale", neutral=(1, 1.0)),
    **_refused("heal the prompt before the call", "token_healing", neutral=(False,)),
    # -------------------------------------------------------------------------------------------------------- cache
    **_refused("rows keep what was verified in a cache; leave it on", "use_cache", neutral=(True,)),
    **_refused("rows have a cache of their own; leave it out", "cache_implementation", neutral=("dynamic",)),
    **_refused("rows have a cache of their own; leave it out", "cache_config", "max_cache_len", "prefill_chunk_size"),
    **_refused(f"it is generate_batch's; {_PLAIN}", "continuous_batching_config"),
    **_harmless("of contrastive search only, which is refused", "low_memory"),
    # ------------------------------------------------------------------------------------------------------- logits
    **_honoured(
        "generate's own logits processor, for target and draft alike",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "sequence_bias",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
        "remove_invalid_values",
        "renormalize_logits",
    ),
    **_refused("it is for encoder-decoder models", "encoder_repetition_penalty", neutral=(1, 1.0)),
    **_refused("it is for encoder-decoder models", "encoder_no_repeat_ngram_size", neutral=(0,)),
    **_refused(f"a watermark depends on how tokens are drawn; {_PLAIN}", "watermarking_config"),
    # ------------------------------------------------------------------------------------------------------- output
    **_honoured("rows are repeated, each with draws of its own", "num_return_sequences"),
    **_honoured("the output carries the report as well", "return_dict_in_generate"),
    **_refused(
        f"blocks are scored several tokens at a time and not kept; {_PLAIN}",
        "output_scores",
        "output_logits",
        "output_attentions",
        "output_hidden_states",
        neutral=(False,),
    ),
    # ----------------------------------------------------------------------------------------------- special tokens
    **_honoured("ends, begins and pads rows as generate does", "eos_token_id", "bos_token_id", "pad_token_id"),
    **_harmless("of encoder-decoder models only, which are refused", "decoder_start_token_id"),
    # ------------------------------------------------------------------------------------------ assisted generation
    **_refused(_FROM_CONFIG, "prompt_lookup_num_tokens", "assistant_early_exit", "speculation_type"),
    **_refused(_FROM_CONFIG, "use_mtp", "is_assistant", neutral=(False,)),
    **_refused('ask for leniency in gkt.toml: speculation.verifier = "lenient"', "assistant_ensemble_weight"),
    **_harmless(
        "tunes an assistant, and assistants are refused",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "max_matching_ngram_size",
    ),
    # -------------------------------------------------------------------------------------------------- compilation
    **_harmless("concerns static caches only, which are refused", "compile_config", "disable_compile"),
    # ----------------------------------------------------------------------------------------------------- metadata
    **_harmless("says where the configuration came from", "transformers_version"),
}

ARGUMENTS: Mapping[str, Field] = {
    **_honoured("generate prepares them", "inputs", "generation_config"),
    **_honoured(
        "each row's own ids, without padding; must depend on ids and scores alone",
        "logits_processor",
        "prefix_allowed_tokens_fn",
    ),
    **_honoured("asked after every kept token of a row, with the row as generate pads it", "stopping_criteria"),
    **_honoured("receives the tokens of a block one by one; one row, as in generate", "streamer"),
    **_honoured("needed by stop_strings", "tokenizer"),
    **_refused(_FROM_CONFIG, "assistant_model", "assistant_tokenizer"),
    **_refused(
        "it belongs to guidance_scale, which is refused", "negative_prompt_ids", "negative_prompt_attention_mask"
    ),
    **_refused(f"rows of several processes cannot wait for each other here; {_PLAIN}", "synced_gpus", neutral=(False,)),
}
"""Arguments of ``generate`` that are not fields of ``GenerationConfig``."""

MODEL_KWARGS: Mapping[str, Field] = {
    **_honoured("padding on the left is taken off each row", "attention_mask"),
    **_honoured("as generate makes them from the mask; others are refused", "position_ids"),
    **_refused("pass input_ids; the draft has embeddings of its own", "inputs_embeds"),
    **_refused("pass the whole text as input_ids; rows have a cache of their own", "past_key_values"),
    **_harmless("set by generate", "use_cache", "logits_to_keep", "return_dict"),
}
"""Inputs of the model that ``generate`` passes through; any other that has a value is refused."""


def refuse(name: str, value: Any, reason: str) -> ConfigError:
    """The error for an option that speculation cannot honour."""
    shown = repr(value) if isinstance(value, (bool, int, float, str, list)) else f"a {type(value).__name__}"
    shown = shown if len(shown) <= 60 else f"a {type(value).__name__}"
    return ConfigError(f"speculation cannot honour {name}={shown}: {reason}")


def check_generation_config(config: Any) -> None:
    """Refuse what speculation cannot honour; ``config`` is a prepared ``GenerationConfig``.

    :raises ConfigError: a refused field, or a field that this release of gkt does not know, asks for something.
    """
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        field = FIELDS.get(name)
        if field is None:
            if value is not None:
                raise refuse(name, value, "this option is not known here; leave it out")
        elif field.treatment == "refused" and not _is_neutral(value, field.neutral):
            raise refuse(name, value, field.reason)


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(value is one or (value == one and isinstance(value, (bool, int, float, str))) for one in neutral)
