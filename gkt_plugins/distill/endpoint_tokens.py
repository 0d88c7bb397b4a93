"""An endpoint's tokens, which it tells as text, as the draft's token ids.

A server may name a token by its number, ``token_id:17``, as vLLM does for ``return_tokens_as_token_ids``. That says
which token it is also where its text does not, as for a piece of a character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch

from gkt_plugins.distill.endpoint_answers import EndpointAnswer, TokenScore
from gkt_plugins.distill.endpoint_loss import Scores
from gkt_plugins.distill.samples import PromptItem, Sample, fixed_key

__all__ = ["ScoredSample", "TokenTable"]

_NUMBERED = re.compile(r"token_id:(\d+)")
_MOST = 1.001
"""Probabilities of one token's alternatives may add up to this, by rounding."""


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """An answer to train on, and what is known of the endpoint at each of its tokens."""

    sample: Sample
    scores: Scores
    """[tokens, k]."""
    known: tuple[bool, ...]
    """[tokens] True: the endpoint told probabilities; False: the token alone."""


class TokenTable:
    """Which text is which token. Texts that several tokens share, such as pieces of a character, are none."""

    def __init__(self, tokenizer: Any, eos_id: int | None) -> None:
        """``eos_id``: closes an answer that ended by itself."""
        self._tokenizer = tokenizer
        self._eos_id = eos_id
        self._size = size = len(tokenizer)
        # Behind another token, for some tokenizers leave out the space that a text begins with.
        [anchor, *_] = tokenizer("a", add_special_tokens=False)["input_ids"] or [0]
        before = len(tokenizer.decode([anchor]))
        texts = tokenizer.batch_decode([[anchor, token] for token in range(size)])
        self._ids: dict[str, int | None] = {}
        for token, text in enumerate(texts):
            piece = text[before:]
            self._ids[piece] = None if piece in self._ids else token

    def scored(self, item: PromptItem, answer: EndpointAnswer) -> ScoredSample:
        """``answer`` in tokens. Where the endpoint's are not all the draft's, only the text is taken."""
        ids = self._mapped(answer.tokens)
        if ids is None or not self._says(ids[0], answer):
            tokens = self._tokenizer(answer.text, add_special_tokens=False)["input_ids"]
            rows = [{token: 1.0} for token in tokens]
            known = [False] * len(tokens)
        else:
            tokens, rows = ids
            known = [True] * len(tokens)
        if answer.finished and self._eos_id is not None and (not tokens or tokens[-1] != self._eos_id):
            tokens, rows, known = [*tokens, self._eos_id], [*rows, {self._eos_id: 1.0}], [*known, False]
        width = max(map(len, rows), default=1)
        scores = Scores(
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64).reshape(-1, width),
            torch.tensor([[*row.values(), *[0.0] * (width - len(row))] for row in rows]).reshape(-1, width),
        )
        sample = Sample(item.ids, tuple(tokens), "endpoint", fixed_key(item.ids, tokens))
        return ScoredSample(sample, scores, tuple(known))

    def _mapped(self, tokens: Sequence[TokenScore]) -> tuple[list[int], list[dict[int, float]]] | None:
        """Token ids and {id: probability} of each; None: one of the tokens is not known, or there are none."""
        ids: list[int] = []
        rows: list[dict[int, float]] = []
        for place, token in enumerate(tokens):
            chosen = self._id(token.text, first=place == 0)
            if chosen is None:
                return None
            row: dict[int, float] = {}
            for text, logprob in token.top:  # an alternative that is not known stays in the rest
                other = self._id(text, first=place == 0)
                if other is not None and logprob <= 0:
                    row[other] = row.get(other, 0.0) + exp(logprob)
            if not row or sum(row.values()) > _MOST:
                return None
            ids.append(chosen)
            rows.append(row)
        return (ids, rows) if ids else None

    def _says(self, ids: Sequence[int], answer: EndpointAnswer) -> bool:
        """Do numbers, where tokens have come as such, mean the same to the draft?

        A piece of a character may be left over at the end, and servers differ in what they do with outer spaces.
        """
        if not any(_NUMBERED.fullmatch(token.text) for token in answer.tokens):
            return True
        texts = (self._tokenizer.decode(ids, skip_special_tokens=True), answer.text)
        meant, said = (text.rstrip("\ufffd").strip() for text in texts)
        return meant == said

    def _id(self, text: str, *, first: bool) -> int | None:
        if numbered := _NUMBERED.fullmatch(text):
            number = int(numbered[1])
            return number if number < self._size else None
        found = self._ids.get(text)
        # An answer's first word may come without the space that its token has.
        return self._ids.get(f" {text}") if found is None and first else found
