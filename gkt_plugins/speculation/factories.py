"""What ships for speculation, by name. Listing it loads no torch; building does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from gkt_plugins.contracts import BuildContext, Drafter, Factory, LeniencyRule, Options, Verifier
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.leniency import CappedRule, exponential, linear, square
from gkt_plugins.speculation.loading import load_causal_model, load_tokenizer
from gkt_plugins.speculation.vocabulary import check_vocabularies

__all__ = [
    "DRAFTERS",
    "LENIENCY_RULES",
    "LOSSLESS_VERIFIERS",
    "VERIFIERS",
    "CappedOptions",
    "LenientOptions",
    "ModelOptions",
    "PromptLookupOptions",
]


class ModelOptions(Options):
    """``drafter = "model"``."""

    draft: str
    """Folder of a causal language model with the target's vocabulary, or its name on the Hub."""
    dtype: str = "auto"
    """As for ``from_pretrained``: ``auto``, ``float32``, ``bfloat16``, …"""


class PromptLookupOptions(Options):
    """``drafter = "prompt_lookup"``."""

    max_ngram: PositiveInt = 3
    """Longest run of tokens that is looked up in the row's own text."""


class CappedOptions(Options):
    """``rule = "capped"``."""

    delta: float = Field(0.1, ge=0, le=1)
    """How much the rule may add to a token's probability at most."""


class LenientOptions(Options):
    """``verifier = "lenient"``."""

    rule: str = "exponential"
    """A leniency rule."""
    epsilon: float = Field(1.0, gt=0, le=1)
    """Leniency in (0, 1]; 1 is lossless, smaller accepts more draft tokens."""
    delta: float = Field(0.1, ge=0, le=1)
    """Of the rule ``capped``."""


def _model(options: ModelOptions, context: BuildContext) -> Drafter:
    """``context.resources``: ``target``, the loop's target (required); ``tokenizer``, the target's (checked against the
    draft's); ``draft_model``, a loaded model that stands in for the folder."""
    from gkt_plugins.speculation.draft_model import ModelDrafter
    from gkt_plugins.speculation.target import TransformersModel

    target = context.resources["target"]
    model = context.resources.get("draft_model")
    tokens = None
    if model is None:
        model, tokens = _load(options, context, target.device)
    draft = TransformersModel(model)
    tokenizer = context.resources.get("tokenizer")
    check_vocabularies(target.vocab_size, draft.vocab_size, tokenizer.get_vocab() if tokenizer else None, tokens)
    return ModelDrafter(draft, target.vocab_size)


def _load(options: ModelOptions, context: BuildContext, device: Any) -> tuple[Any, Mapping[str, int] | None]:
    """The draft model, and token → id of its tokenizer where the folder has one."""
    folder = ((context.base_dir or Path()) / options.draft).absolute()
    named_folder = folder.is_dir() or Path(options.draft).is_absolute() or options.draft.startswith(".")
    source = str(folder) if named_folder else options.draft
    model = load_causal_model(source, key="speculation.draft", dtype=options.dtype)
    tokenizer = load_tokenizer(source)
    return model.to(device).eval(), tokenizer.get_vocab() if tokenizer else None


def _prompt_lookup(options: PromptLookupOptions, context: BuildContext) -> Drafter:
    from gkt_plugins.speculation.prompt_lookup import PromptLookupDrafter

    return PromptLookupDrafter(options.max_ngram)


def _exact(options: Options, context: BuildContext) -> Verifier:
    from gkt_plugins.speculation.verifiers import ExactVerifier

    return ExactVerifier()


def _block(options: Options, context: BuildContext) -> Verifier:
    from gkt_plugins.speculation.block_verifier import BlockVerifier

    return BlockVerifier()


def _lenient(options: LenientOptions, context: BuildContext) -> Verifier:
    """``context.resources["rule"]``: a rule built by somebody else, for a name that is not ours."""
    from gkt_plugins.speculation.verifiers import LenientVerifier

    rule = context.resources.get("rule")
    if rule is None:
        factory = LENIENCY_RULES.get(options.rule)
        if factory is None:
            raise ConfigError(f"speculation.rule: expected one of {', '.join(LENIENCY_RULES)}, got {options.rule!r}")
        own = CappedOptions(delta=options.delta) if factory.options is CappedOptions else Options()
        rule = factory.build(own, context)
    return LenientVerifier(rule, options.epsilon)


DRAFTERS: dict[str, Factory[Drafter]] = {
    "model": Factory(_model, ModelOptions, "a small model with the target's vocabulary, with its own cache"),
    "prompt_lookup": Factory(_prompt_lookup, PromptLookupOptions, "no model: repeats what the row said before"),
}
VERIFIERS: dict[str, Factory[Verifier]] = {
    "exact": Factory(_exact, Options, "keeps the target's distribution; greedy output is the target's own"),
    "block": Factory(_block, Options, "keeps the target's distribution and more of each block; greedy as exact"),
    "lenient": Factory(_lenient, LenientOptions, "accepts more than the target would; the output drifts"),
}
LOSSLESS_VERIFIERS = frozenset({"exact", "block"})
"""Of the verifiers, those whose answers are the target's own; all others are declared with every answer."""
LENIENCY_RULES: dict[str, Factory[LeniencyRule]] = {
    "linear": Factory(lambda options, context: linear, Options, "p / epsilon"),
    "square": Factory(lambda options, context: square, Options, "p / epsilon²"),
    "exponential": Factory(lambda options, context: exponential, Options, "p to the power epsilon"),
    "capped": Factory(lambda options, context: CappedRule(options.delta), CappedOptions, "min(p / epsilon, p + delta)"),
}
