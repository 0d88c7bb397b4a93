"""May this draft speak for this target? Padding of the vocabulary is fine; another vocabulary is not."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.errors import ConfigError

__all__ = ["check_vocabularies"]

_PADDING = 1024
"""Models pad their vocabulary to multiples of at most this."""
_SHARE = 0.02
"""Of a vocabulary: the most that may be padding, or special tokens that only one of two tokenizers has."""


def check_vocabularies(target_size: int, draft_size: int, target_tokens: Mapping[str, int] | None = None,
                       draft_tokens: Mapping[str, int] | None = None) -> None:  # fmt: skip
    """Refuse a draft whose token ids mean something else than the target's.

    :param target_tokens: token → id of the target's tokenizer (``get_vocab()``); None where it is not known, and the
        sizes decide alone. ``draft_tokens`` likewise.
    :raises ConfigError: one sentence that names both sizes.
    """
    sizes = f"the draft's vocabulary has {draft_size} entries, the target's {target_size}"
    advice = "use a draft that was trained with the target's tokenizer"
    if target_tokens is not None and draft_tokens is not None:
        names = {token_id: token for token, token_id in target_tokens.items()}
        shared = 0
        for token, token_id in draft_tokens.items():
            if token_id in names and names[token_id] != token:
                raise ConfigError(
                    f"the draft's tokenizer differs from the target's: token {token_id} is {token!r} for the draft and "
                    f"{names[token_id]!r} for the target ({sizes}); {advice}"
                )
            shared += token_id in names
        larger = max(len(target_tokens), len(draft_tokens))
        if larger - shared > max(_SHARE * larger, 8):
            raise ConfigError(
                f"the draft's tokenizer shares only {shared} of {larger} tokens with the target's ({sizes}); {advice}"
            )
    elif abs(target_size - draft_size) > min(_PADDING, _SHARE * max(target_size, draft_size)):
        raise ConfigError(f"{sizes}, which is more than padding; {advice}")
