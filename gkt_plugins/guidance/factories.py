"""The policies that ship, by name."""

from __future__ import annotations

from pydantic import NonNegativeInt

from gkt_plugins.contracts import BuildContext, CuttingPolicy, Factory, LengthPolicy, Options
from gkt_plugins.guidance.policies import FixedLength, RawCut, SentenceCut, WordCut

__all__ = ["CUTTING_POLICIES", "LENGTH_POLICIES", "FixedOptions"]


class FixedOptions(Options):
    """Keys of ``length = "fixed"``."""

    tokens: NonNegativeInt = 40
    """Guidance tokens for every prompt, at least 0; 0 leaves the answer to the student."""


def _fixed(options: FixedOptions, context: BuildContext) -> LengthPolicy:
    return FixedLength(options.tokens)


def _word(options: Options, context: BuildContext) -> CuttingPolicy:
    return WordCut()


def _sentence(options: Options, context: BuildContext) -> CuttingPolicy:
    return SentenceCut()


def _raw(options: Options, context: BuildContext) -> CuttingPolicy:
    return RawCut()


LENGTH_POLICIES: dict[str, Factory[LengthPolicy]] = {
    "fixed": Factory(_fixed, FixedOptions, "the same number of guidance tokens for every prompt"),
}

CUTTING_POLICIES: dict[str, Factory[CuttingPolicy]] = {
    "word": Factory(_word, summary="up to the last whole word"),
    "sentence": Factory(_sentence, summary="up to the last whole sentence, else the last whole word"),
    "raw": Factory(_raw, summary="everything but a broken last character"),
}
