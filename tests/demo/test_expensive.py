import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gkt_plugins.demo.expensive import EXPENSIVE, Size, make_expensive


def small_model(*, tied: bool, key_value_heads: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=211, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=key_value_heads, max_position_embeddings=128, tie_word_embeddings=tied, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: their scale is part of what must survive
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize(("tied", "key_value_heads"), [(True, 3), (False, 3), (False, 1)])
def test_the_enlarged_model_gives_the_logits_of_the_small_one(tied: bool, key_value_heads: int) -> None:
    small = small_model(tied=tied, key_value_heads=key_value_heads)
    large = make_expensive(small, Size(hidden=192, intermediate=320, layers=4))
    ids = torch.randint(0, 211, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, got = small(ids).logits, large(ids).logits
    # logits have a spread of about 5; float32 sums over 192 instead of 96 terms move them by about 1e-5
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)
    assert large.num_parameters() > 3 * small.num_parameters()


def test_every_added_matrix_is_full_of_numbers_so_that_nothing_is_cheaper_than_it_looks() -> None:
    large = make_expensive(small_model(tied=True), Size(hidden=192, intermediate=320, layers=3))
    for name, weight in large.model.layers[2].named_parameters():
        if "o_proj" not in name and "down_proj" not in name:
            assert (weight != 0).float().mean() > 0.99, name


def test_the_benchmark_size_of_the_packaged_target_is_what_the_documents_say_and_computes_the_same() -> None:
    from gkt_plugins.demo.models import model_dir

    small = LlamaForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32).eval()
    large = make_expensive(small, EXPENSIVE)
    assert 100e6 <= large.num_parameters() <= 120e6
    ids = torch.randint(0, small.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=2e-3, rtol=1e-3)


def test_a_size_below_the_small_model_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the model"):
        make_expensive(small_model(tied=True), Size(hidden=64, intermediate=320, layers=4))
