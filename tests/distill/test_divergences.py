import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gkt_plugins.distill.divergences import DIVERGENCES, chunked_divergence, divergence, token_divergences
from gkt_plugins.errors import ConfigError

BETAS = (0.1, 0.5, 0.9)
CASES = [(name, beta) for name in DIVERGENCES for beta in (BETAS if name == "jsd" else (0.5,))]


def logits(n: int = 7, vocab: int = 11, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, draft = (3 * torch.randn(n, vocab, generator=generator, dtype=dtype) for _ in range(2))
    return target, draft


def heads(vocab: int = 11, dtype: torch.dtype = torch.float64, seed: int = 1, surplus: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return nn.Linear(6, vocab, dtype=dtype), nn.Linear(4, vocab + surplus, bias=False, dtype=dtype)


def hidden(n: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(2 * torch.randn(n, size, generator=generator, dtype=dtype) for size in (6, 4))  # type: ignore[return-value]


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs))


# ------------------------------------------------------------------------------------------------- what is computed


def test_each_divergence_is_its_definition_written_out_token_by_token() -> None:
    target, draft = logits()
    p, q = target.softmax(-1).tolist(), draft.softmax(-1).tolist()

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    for i, (a, b) in enumerate(zip(p, q, strict=True)):
        m = [0.3 * x + 0.7 * y for x, y in zip(a, b, strict=True)]
        alpha = sum(map(min, a, b))
        share = math.exp(-3 * alpha)
        expected = {
            "forward_kl": kl(a, b),
            "reverse_kl": kl(b, a),
            "jsd": 0.3 * kl(a, m) + 0.7 * kl(b, m),
            "tv": 1 - alpha,
            "lk_alpha": -math.log(alpha),
            "lk_lambda": share * kl(a, b) + (1 - share) * (1 - alpha),
        }
        for name in DIVERGENCES:
            got = divergence(name, target, draft, beta=0.3)[i].item()
            assert got == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_models_are_at_distance_zero_and_others_are_not(name: Any) -> None:
    target, draft = logits()
    assert torch.allclose(divergence(name, target, target), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert (divergence(name, target, draft) > 1e-3).all()


def test_jsd_tends_to_forward_kl_and_to_reverse_kl_at_the_ends_of_beta() -> None:
    target, draft = logits()
    small = 1e-6
    forward = divergence("jsd", target, draft, beta=small) / small
    reverse = divergence("jsd", target, draft, beta=1 - small) / small
    # The next term of the series is small · ½ Σ (p − q)² / q and the like, of the order of e^3 / small tokens' shares.
    assert torch.allclose(forward, divergence("forward_kl", target, draft), rtol=2e-2)
    assert torch.allclose(reverse, divergence("reverse_kl", target, draft), rtol=2e-2)


def test_jsd_of_one_half_is_symmetric_and_at_most_log_2() -> None:
    target, draft = logits()
    there, back = divergence("jsd", target, draft), divergence("jsd", draft, target)
    assert torch.allclose(there, back, atol=1e-12)
    assert (there < math.log(2)).all()


def test_total_variation_is_one_minus_the_overlap_and_pinsker_holds() -> None:
    target, draft = logits()
    tv = divergence("tv", target, draft)
    overlap = torch.minimum(target.softmax(-1), draft.softmax(-1)).sum(-1)
    assert torch.allclose(tv, 1 - overlap, atol=1e-12)
    assert (tv <= torch.sqrt(divergence("forward_kl", target, draft) / 2)).all()


def test_temperature_divides_both_logits() -> None:
    target, draft = logits()
    for name in DIVERGENCES:
        assert torch.allclose(divergence(name, target, draft, temperature=2.0), divergence(name, target / 2, draft / 2))


def test_at_temperature_0_the_target_has_one_token_and_the_draft_its_own_distribution() -> None:
    target, draft = logits()
    chance = draft.softmax(-1)[torch.arange(7), target.argmax(-1)]
    assert torch.allclose(divergence("tv", target, draft, temperature=0), 1 - chance)
    for name in ("forward_kl", "lk_alpha"):
        assert torch.allclose(divergence(name, target, draft, temperature=0), -chance.log())
    m = 0.5 * (1 + chance)
    jsd = 0.5 * -m.log() + 0.5 * (chance * (chance / m).log() + (1 - chance) * math.log(2))
    assert torch.allclose(divergence("jsd", target, draft, temperature=0), jsd)


def test_what_a_padded_head_gives_to_its_padding_goes_to_its_tokens() -> None:
    target, draft = logits()
    padding = torch.full((7, 5), 1.0, dtype=torch.float64)
    for name in DIVERGENCES:
        plain = divergence(name, target, draft)
        assert torch.equal(divergence(name, target, torch.cat([draft, padding], 1)), plain)
        assert torch.equal(divergence(name, torch.cat([target, padding], 1), draft), plain)


@pytest.mark.parametrize(("name", "beta"), CASES)
def test_far_apart_models_give_finite_values_and_gradients_in_float32(name: Any, beta: float) -> None:
    target = torch.tensor([[300.0, 0.0, -300.0], [0.0, 0.0, 0.0]])
    draft = torch.tensor([[-300.0, 0.0, 300.0], [500.0, 0.0, 0.0]], requires_grad=True)
    identity = nn.Identity()
    direct = divergence(name, target, draft, beta=beta)
    assert torch.isfinite(direct).all()
    chunked = chunked_divergence(name, target, identity, draft, identity, beta=beta)
    for value in (direct.sum(), chunked):
        (slope,) = gradients(value, draft)
        assert torch.isfinite(slope).all()


# ----------------------------------------------------------------------------------------------- the chunked form


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, None])
@pytest.mark.parametrize(("name", "beta"), CASES)
def test_chunks_have_the_value_and_the_gradient_of_the_reference(
    name: Any, beta: float, chunk_tokens: int | None, temperature: float
) -> None:
    if name == "reverse_kl" and temperature == 0:
        with pytest.raises(ConfigError):
            divergence(name, *logits(), temperature=0)
        return
    (target_head, draft_head), (target, draft) = heads(), hidden()
    draft.requires_grad_()
    weights = torch.linspace(0, 2, 7, dtype=torch.float64)
    inputs = (draft, draft_head.weight)
    each = divergence(name, target_head(target), draft_head(draft), beta=beta, temperature=temperature)
    expected = (each * weights).sum()
    got = chunked_divergence(name, target, target_head, draft, draft_head, weights=weights, beta=beta,
                             temperature=temperature, chunk_tokens=chunk_tokens)  # fmt: skip
    assert torch.allclose(got, expected, atol=1e-12)
    for mine, reference in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        assert torch.allclose(mine, reference, atol=1e-10)
    alone = token_divergences(name, target, target_head, draft, draft_head, beta=beta, temperature=temperature,
                              chunk_tokens=chunk_tokens)  # fmt: skip
    assert torch.allclose(alone, each, atol=1e-12)


@pytest.mark.parametrize(("name", "beta"), [case for case in CASES if case[0] != "lk_lambda"])
def test_the_gradient_is_what_finite_differences_say(name: Any, beta: float) -> None:
    # lk_lambda is left out: its share is held fixed on purpose, which finite differences cannot know.
    (target_head, draft_head), (target, draft) = heads(), hidden()
    draft.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: chunked_divergence(name, target, target_head, h, draft_head, beta=beta, chunk_tokens=3), (draft,)
    )


def test_lk_lambda_s_gradient_is_that_of_the_blend_at_its_present_share() -> None:
    target, draft = logits()
    draft.requires_grad_()
    alpha = 1 - divergence("tv", target, draft).detach()
    share = torch.exp(-3 * alpha)
    blend = share * divergence("forward_kl", target, draft) + (1 - share) * divergence("tv", target, draft)
    (expected,) = gradients(blend.sum(), draft)
    (got,) = gradients(divergence("lk_lambda", target, draft).sum(), draft)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize(("name", "beta"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_precisions_are_computed_in_float32(name: Any, beta: float, dtype: torch.dtype) -> None:
    (target_head, draft_head), (target, draft) = heads(dtype=dtype), hidden(dtype=dtype)
    draft.requires_grad_()
    got = chunked_divergence(name, target, target_head, draft, draft_head, beta=beta, chunk_tokens=3)
    expected = divergence(name, target_head(target).double(), draft_head(draft).double(), beta=beta).sum()
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, rtol=1e-5)
    (mine,), (reference,) = gradients(got, draft), gradients(expected, draft)
    assert mine.dtype == dtype
    # bfloat16 has 8 bits: each logit's gradient is rounded once, and the head's multiplication adds a few of them up.
    assert torch.allclose(mine, reference, rtol=1e-4 if dtype == torch.float32 else 0.05, atol=0.02)


def test_a_draft_with_surplus_logits_gets_no_gradient_for_them() -> None:
    (target_head, draft_head), (target, draft) = heads(surplus=5), hidden()
    value = chunked_divergence("tv", target, target_head, draft, draft_head, chunk_tokens=2)
    (slope,) = gradients(value, draft_head.weight)
    assert torch.equal(slope[11:], torch.zeros_like(slope[11:]))
    assert float(slope[:11].abs().sum()) > 0
    assert torch.allclose(value, divergence("tv", target_head(target), draft_head(draft)[:, :11]).sum())


def test_no_chunk_is_larger_than_asked_for_and_no_logits_outlive_it() -> None:
    (target_head, draft_head), (target, draft) = heads(), hidden()
    draft.requires_grad_()
    seen: list[int] = []

    def watched(states: Tensor) -> Tensor:
        seen.append(len(states))
        result: Tensor = draft_head(states)
        return result

    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        value = chunked_divergence("jsd", target, target_head, draft, watched, chunk_tokens=3)
    assert seen == [3, 3, 1]
    assert not any(shape[-1:] == (11,) and len(shape) == 2 for shape in kept)
    value.backward()
    assert seen[3:] == [3, 3, 1] or seen[3:] == [1, 3, 3]  # made again for the gradient


def test_no_gradient_reaches_the_target() -> None:
    (target_head, draft_head), (target, draft) = heads(), hidden()
    target.requires_grad_()
    for chunk_tokens in (None, 2):
        chunked_divergence("forward_kl", target, target_head, draft, draft_head, chunk_tokens=chunk_tokens).backward()
    assert target.grad is None
    assert target_head.weight.grad is None


def test_no_positions_give_zero() -> None:
    (target_head, draft_head), (target, draft) = heads(), hidden()
    assert chunked_divergence("tv", target[:0], target_head, draft[:0], draft_head, chunk_tokens=4).item() == 0


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("forward-kl", {}, "there is no divergence 'forward-kl'; did you mean 'forward_kl'?"),
        ("jsd", {"beta": 1.0}, r"beta of jsd must be in \(0, 1\), got 1.0"),
        ("tv", {"temperature": -1}, "temperature of a divergence must be at least 0, got -1"),
        ("reverse_kl", {"temperature": 0}, "reverse_kl is infinite at temperature 0"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_what_to_do(name: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divergence(name, *logits(), **options)
