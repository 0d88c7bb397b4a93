"""Tiny random models of every family that is promised to work, each with a tokenizer trained here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB = 320
CONTEXT = 128
CORPUS = [
    "Anna has 12 apples and buys 7 more, so she has 19 apples.",
    "A train travels 60 km in one hour; how far does it go in three hours?",
    "Répondez: l'été dernier, où étiez-vous?",
    "你好，世界。今天天气很好。",
    "def f(x):\n    return x * 2  # twice",
    "🙂🙂 done! 👩‍🚀",
] * 4
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|end|>"]


def _fast(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )
    fast.chat_template = template
    return fast


def byte_level_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """GPT-2's kind: spaces and half characters are tokens like any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer, template)


def metaspace_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Llama's kind: a word carries its leading space, which decoding it alone would strip; begins with ``<s>``."""
    # Listed, not trained: two trainings of a Unigram model differ, and with them what the random models write.
    counts = Counter(word for text in CORPUS for word in text.split())
    letters = sorted({letter for word in counts for letter in word} | set("▁0123456789"))
    words = [f"▁{word}" for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    pieces = [*((name, 0.0) for name in SPECIAL), *((letter, -9.0) for letter in letters)]
    pieces += [(word, -3.0 - 0.01 * rank) for rank, word in enumerate(words) if len(word) > 2]
    known = {piece for piece, _ in pieces}
    pairs = [pair for a in letters for b in letters if (pair := a + b) not in known and "▁" not in pair]
    pieces += [(pair, -6.0) for pair in pairs]  # as many as the models have outputs: every one of them is text
    assert len(pieces) >= VOCAB
    tokenizer = Tokenizer(models.Unigram(pieces[:VOCAB], unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return _fast(tokenizer, template)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Ends every text with ``</s>``."""
    fast = metaspace_tokenizer(None)
    eos = fast.backend_tokenizer.token_to_id("</s>")
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", eos)]
    )
    return fast


def bart_tokenizer() -> PreTrainedTokenizerFast:
    """Wraps every text in ``<s>`` and ``</s>``."""
    fast = byte_level_tokenizer(None)
    ids = {token: fast.backend_tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=list(ids.items())
    )
    return fast


_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WIDE = {**_SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.3}

CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_WIDE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_WIDE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_SHAPE, initializer_range=0.3)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE, intermediate_size=64, initializer_range=0.3)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_WIDE, head_dim=8)),
}
"""Families that promise to speculate."""

_SEQ2SEQ: dict[str, tuple[Callable[[], Any], Callable[[], PreTrainedTokenizerFast]]] = {
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                initializer_factor=4.0, eos_token_id=2, pad_token_id=0, decoder_start_token_id=0,
            )
        ),
        t5_tokenizer,
    ),
    "bart": (
        lambda: BartForConditionalGeneration(
            BartConfig(
                vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=CONTEXT,
                init_std=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2,
                forced_bos_token_id=1, forced_eos_token_id=2,
            )
        ),
        bart_tokenizer,
    ),
}  # fmt: skip


def make_causal(family: str, *, seed: int = 0) -> Any:
    """A random model of ``family`` in evaluation mode."""
    torch.manual_seed(seed)
    return CAUSAL[family]().eval()


def make_hybrid(*, seed: int = 0) -> Any:
    """Gemma 2: every other layer sees a window of 16 tokens only."""
    torch.manual_seed(seed)
    return Gemma2ForCausalLM(Gemma2Config(**_WIDE, head_dim=8, sliding_window=16)).eval()


def noisy_copy(model: Any, scale: float, *, seed: int = 1) -> Any:
    """A draft that often agrees with ``model``."""
    torch.manual_seed(seed)
    copy = type(model)(model.config).eval()
    with torch.no_grad():
        for own, other in zip(copy.parameters(), model.parameters(), strict=True):
            own.copy_(other + scale * other.std() * torch.randn_like(other) if other.numel() > 1 else other)
    return copy


class Tiny:
    """What the tests of this folder build their models with."""

    corpus = CORPUS
    template = TEMPLATE
    vocab = VOCAB
    context = CONTEXT
    families = tuple(CAUSAL)

    byte_level_tokenizer = staticmethod(byte_level_tokenizer)
    metaspace_tokenizer = staticmethod(metaspace_tokenizer)
    causal = staticmethod(make_causal)
    hybrid = staticmethod(make_hybrid)
    noisy_copy = staticmethod(noisy_copy)

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str) -> Path:
        """A model folder, saved once: a family, ``draft`` (of llama), ``hybrid``, ``t5`` or ``bart``."""
        path = self._root / name
        if path.exists():
            return path
        tokenizer: Callable[[], PreTrainedTokenizerFast] = byte_level_tokenizer
        if name in _SEQ2SEQ:
            make, tokenizer = _SEQ2SEQ[name]
            torch.manual_seed(0)
            model = make().eval()
        elif name == "draft":
            model = noisy_copy(make_causal("llama"), 0.05)
        elif name == "hybrid":
            model = make_hybrid()
        else:
            model = make_causal(name)
            tokenizer = metaspace_tokenizer if name == "gemma" else byte_level_tokenizer
        model.save_pretrained(path)
        tokenizer().save_pretrained(path)
        return path

    def load_tokenizer(self, name: str) -> Any:
        """The tokenizer of :meth:`folder`."""
        return PreTrainedTokenizerFast.from_pretrained(self.folder(name))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("models"))
