"""What a step computes, which draft is kept, and what becomes of input that cannot be used."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from gkt_plugins.distill.divergences import divergence
from gkt_plugins.distill.loss import DraftWithLoss
from gkt_plugins.distill.models import Halves, load_pair
from gkt_plugins.distill.run import distill
from gkt_plugins.distill.samples import PromptItem, Sample, read_prompts
from gkt_plugins.distill.stream import SampleStream, parts_of
from gkt_plugins.distill.trainer import learning_rate_factor
from gkt_plugins.errors import BackendError, ConfigError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ------------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "tv"])
def test_the_first_loss_is_the_mean_divergence_over_all_answer_tokens_without_dropout(tiny_options, tiny_models, name):
    options = tiny_options(
        data={"policy": "ground_truth"}, loss={"divergence": name, "beta": 0.3}, train={"steps": 1, "batch_size": 32}
    )  # 40 prompts, of which 8 are held out: the batch is all that is left
    report = distill(options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "target")
    target, draft = (AutoModelForCausalLM.from_pretrained(tiny_models / model).eval() for model in ("target", "draft"))
    items = read_prompts(tiny_models / "prompts.jsonl", tokenizer, max_prompt_tokens=64)
    parts = []
    for item in trained_on(options, items):
        ids = torch.tensor([[*item.ids, *item.answer]])
        at = slice(len(item.ids) - 1, -1)
        with torch.no_grad():
            p, q = (model(ids).logits[0, at] for model in (target, draft))
        parts.append(divergence(name, p, q, beta=0.3))
    assert report.losses[0][1] == pytest.approx(torch.cat(parts).mean().item(), abs=1e-5)
    assert report.tokens == len(torch.cat(parts))


def trained_on(options, items):
    """The items that the run's own split leaves for training."""
    from gkt_plugins.distill.run import _prompts

    return _prompts(options, load_pair(options), items, None)[0]


def test_working_through_a_batch_in_parts_changes_nothing(tiny_options):
    whole = distill(tiny_options("whole", data={"policy": "ground_truth"}))
    parts = distill(tiny_options("parts", data={"policy": "ground_truth"}, train={"accumulation": 4}))
    # the same sums of some hundred float32 numbers in another order, over 7 steps
    assert [loss for _, loss in parts.losses] == pytest.approx([loss for _, loss in whole.losses], abs=1e-4)
    assert parts.tokens == whole.tokens


def test_the_loss_falls(tiny_options):
    report = distill(tiny_options(loss={"divergence": "tv"}, train={"steps": 40, "batch_size": 16, "save_steps": 40}))
    losses = [loss for _, loss in report.losses]
    # at 16 answers of 8 tokens the mean of 5 steps varies by some 0.01
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    assert report.after.value > report.before.value + 0.05


def test_neither_the_target_nor_the_draft_to_start_from_is_touched(tiny_options, tiny_models):
    before = weights(tiny_models / "target"), weights(tiny_models / "draft")
    report = distill(tiny_options())
    assert same(before[0], weights(tiny_models / "target"))
    assert same(before[1], weights(tiny_models / "draft"))
    assert not same(before[1], weights(report.output))


def test_selective_training_uses_the_chosen_share_of_tokens_alone(tiny_options, tiny_models):
    pair = load_pair(tiny_options())
    options = tiny_options(loss={"keep": 0.25, "reference": str(tiny_models / "target")}).loss
    samples = [Sample((5, 6, 7), (8, 9, 10, 11), "draft"), Sample((5,), (6, 7, 8, 9), "draft")]
    (part,) = parts_of(samples, pair.pad_id, torch.device("cpu"))
    target = Halves(pair.target)
    states = target.hidden(part.ids).flatten(0, 1)[part.picked]
    each = divergence("forward_kl", target.head(states), Halves(pair.draft).head(_picked(pair.draft, part)))
    # the reference is the target itself, whose own loss is 0: the tokens of greatest loss are chosen, 2 of 8
    expected = each.topk(2).values.sum() * 4
    got = DraftWithLoss(pair.draft, target, target, options)([part], [states])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def _picked(model, part):
    return Halves(model).hidden(part.ids).flatten(0, 1)[part.picked]


def test_a_model_that_does_more_than_its_head_is_not_cut():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    halves, ids = Halves(model), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(halves.head(halves.hidden(ids)), model(ids).logits)
        assert halves.head(halves.hidden(ids)).abs().max() <= 0.5


# --------------------------------------------------------------------------------------------------------- the schedule


def test_the_learning_rate_warms_up_stays_and_falls_to_a_tenth():
    factors = [learning_rate_factor(step, 300, 5, 0.5) for step in range(301)]
    assert factors[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert set(factors[5:151]) == {1.0}
    assert factors[225] == pytest.approx(0.55)
    assert factors[300] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[150:]))


# ---------------------------------------------------------------------------------------------------------- the batches


class Recorded:
    """A policy that answers each prompt with its own number."""

    def __init__(self):
        self.seeds = []

    def samples(self, prompts, *, seed):
        self.seeds.append(seed)
        return [Sample(item.ids, item.ids, "draft") for item in prompts]


def test_every_prompt_comes_once_before_any_comes_again():
    items = [PromptItem((n,), "") for n in range(12)]
    stream = SampleStream(items, Recorded(), batch_size=4, steps_per_rollout=3, seed=0)
    first = [sample.prompt for _ in range(3) for sample in stream.step()]
    second = [sample.prompt for _ in range(3) for sample in stream.step()]
    assert sorted(first) == sorted(second) == [(n,) for n in range(12)]
    assert first != second


def test_processes_share_the_prompts_out_and_draw_with_seeds_of_their_own():
    items = [PromptItem((n,), "") for n in range(12)]
    policies = [Recorded(), Recorded()]
    streams = [
        SampleStream(items, policy, batch_size=3, steps_per_rollout=2, seed=0, process=n, processes=2)
        for n, policy in enumerate(policies)
    ]
    prompts = [sample.prompt for stream in streams for _ in range(2) for sample in stream.step()]
    assert sorted(prompts) == [(n,) for n in range(12)]
    assert policies[0].seeds != policies[1].seeds


def test_rows_are_grouped_by_length_and_every_answer_token_is_picked_once():
    samples = [Sample((2,) * n, (3,) * m, "draft") for n, m in [(40, 9), (2, 3), (3, 1), (41, 8), (2, 2)]]
    parts = parts_of(samples, 0, torch.device("cpu"))
    assert [part.ids.shape for part in parts] == [(3, 8), (2, 56)]
    for part in parts:
        following = part.ids.flatten()[part.picked + 1]
        assert following.tolist() == [3] * sum(len(sample.answer) for sample in part.samples)


def test_steps_without_a_token_to_train_on_are_counted_and_made_up_for(tiny_options):
    options = tiny_options(
        data={"policy": "correct_only", "scorer": f"{__name__}_scorer:some"}, train={"batch_size": 1}
    )
    report = distill(options)
    assert report.steps == 7
    assert report.skipped > 0


def test_a_run_of_steps_without_a_token_to_train_on_is_an_error(tiny_options):
    options = tiny_options(data={"policy": "correct_only", "scorer": f"{__name__}_scorer:none"})
    with pytest.raises(BackendError, match="20 batches in a row had no token to train on"):
        distill(options)


@pytest.fixture(autouse=True)
def _scorers(monkeypatch):
    """Scorers under an importable name."""
    import sys
    from types import ModuleType

    module = ModuleType(f"{__name__}_scorer")
    module.some = lambda item, text: item.ids[0] % 3 == 0
    module.none = lambda item, text: False
    monkeypatch.setitem(sys.modules, module.__name__, module)


# --------------------------------------------------------------------------------------------------------- what is kept


class Spoil(TrainerCallback):
    """Multiplies the draft's weights after one step, when the next one's answers are written already."""

    def __init__(self, step: int, factor: float) -> None:
        self._step, self._factor = step, factor

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self._step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(self._factor)


class SpoilGradient(TrainerCallback):
    """Makes the gradient of one step infinite."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self._step:
            next(model.parameters()).register_hook(lambda gradient: gradient + math.inf)


def test_the_best_draft_is_the_one_of_greatest_acceptance_not_the_last(tiny_options):
    report = distill(tiny_options(train={"steps": 9}), callbacks=[Spoil(7, 30.0)])
    measured = dict(report.acceptance)
    assert report.best_step == max(measured, key=lambda step: measured[step].value) in (3, 6)
    assert report.after.value == pytest.approx(measured[report.best_step].value)
    assert report.after.value > measured[9].value


def test_a_draft_that_no_step_made_better_is_written_as_it_was(tiny_options, tiny_models):
    report = distill(tiny_options(train={"steps": 3}), callbacks=[Spoil(1, 30.0)])
    assert report.best_step == 0
    assert same(weights(report.output), weights(tiny_models / "draft"))
    assert report.after == report.before


@pytest.mark.parametrize(("what", "spoil"), [("loss", Spoil(5, math.nan)), ("gradient", SpoilGradient(6))])
def test_what_is_not_finite_stops_the_run_with_the_last_good_checkpoint_named(tiny_options, what, spoil):
    options = tiny_options()
    sentence = rf"the {what} of step 6 is not a number or infinite.*checkpoint-3,"
    with pytest.raises(BackendError, match=sentence) as caught:
        distill(options, callbacks=[spoil])
    assert "\n" not in str(caught.value)
    kept = weights(options.output_dir / "checkpoints" / "checkpoint-3")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_low_rank_additions_are_merged_into_a_draft_of_the_same_shape(tiny_options, tiny_models):
    report = distill(
        tiny_options(loss={"divergence": "tv"}, train={"steps": 30, "save_steps": 30, "lora": {"rank": 4}})
    )
    assert weights(report.output).keys() == weights(tiny_models / "draft").keys()
    assert report.best_step
    assert report.after.value == pytest.approx(dict(report.acceptance)[report.best_step].value, abs=1e-5)


def test_the_draft_is_written_in_the_precision_that_it_had(tiny_options, tiny_models, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_models / "draft", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_models / "draft").save_pretrained(tmp_path / "half")
    report = distill(tiny_options(models={"draft": str(tmp_path / "half")}))
    assert {tensor.dtype for tensor in weights(report.output).values()} == {torch.bfloat16}


def test_the_provenance_says_how_the_weights_were_made(tiny_options, tiny_models):
    options = tiny_options()
    report = distill(options, command=["gkt", "distill", "--config", "a b.toml"])
    told = json.loads((report.output / "provenance.json").read_text())
    assert told["command"] == "gkt distill --config 'a b.toml'"
    assert told["options"] == options.model_dump(mode="json", by_alias=True)
    assert told["versions"]["torch"] == torch.__version__
    assert told["target"]["name"] == str(tiny_models / "target")
    assert len({told[model]["sha256"] for model in ("target", "start_draft")}) == 2
    assert (told["data"]["prompts"], told["data"]["held_out_prompts"]) == (32, 8)
    assert told["acceptance"]["before"]["value"] == report.before.value
    assert told["acceptance"]["after"]["low"] <= told["acceptance"]["after"]["value"] == report.after.value
    assert told["block_efficiency"]["gamma"] == 7
    assert told["block_efficiency"]["after"]["value"] == report.efficiency_after.value
    assert told["tokens"] == report.tokens


# ------------------------------------------------------------------------------------------------------------ bad input


def test_another_vocabulary_is_refused_with_both_sizes(tiny_options, save_tiny, tmp_path):
    words = ["<pad>", "<eos>", *"zyxwvu"]
    save_tiny(tmp_path / "other", hidden=8, layers=1, seed=0, vocab_size=len(words), words=words)
    with pytest.raises(ConfigError, match=r"the draft's vocabulary has 8 entries, the target's 400") as caught:
        distill(tiny_options(models={"draft": str(tmp_path / "other")}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padded", ["target", "draft"])
def test_a_padded_head_is_no_obstacle(tiny_options, save_tiny, tmp_path, padded):
    sizes = {"target": (16, 2), "draft": (8, 1)}[padded]
    save_tiny(tmp_path / "padded", hidden=sizes[0], layers=sizes[1], seed=3, vocab_size=408)
    report = distill(
        tiny_options(models={padded: str(tmp_path / "padded")}, loss={"divergence": "tv"}, train={"steps": 20})
    )
    assert report.losses[-1][1] < report.losses[0][1]


@pytest.mark.parametrize(("role", "key"), [("target", r"models\.target"), ("draft", r"models\.draft")])
def test_a_model_that_is_not_there_is_one_sentence(tiny_options, role, key):
    with pytest.raises(ConfigError, match=rf"^{key}: there is no folder /none; give one") as caught:
        distill(tiny_options(models={role: "/none"}))
    assert "\n" not in str(caught.value)


def test_without_prompts_it_says_where_they_belong(tiny_options):
    with pytest.raises(ConfigError, match=r"data\.prompts is missing"):
        distill(tiny_options(data={"prompts": None}))


def test_too_few_prompts_say_how_many_are_needed(tiny_options):
    with pytest.raises(ConfigError, match="0 prompts to train on and 1 to measure on, and at least 1 and 2 are needed"):
        distill(tiny_options(), prompts=[PromptItem((2, 3), "")])


def test_bfloat16_computes_about_the_same_and_trains_float32_weights(tiny_options):
    whole = distill(tiny_options("whole", data={"policy": "ground_truth"}))
    half = distill(tiny_options("half", data={"policy": "ground_truth"}, train={"precision": "bfloat16"}))
    # bfloat16 keeps 8 bits: a logit of some units is off by some hundredths
    assert [loss for _, loss in half.losses] == pytest.approx([loss for _, loss in whole.losses], rel=0.05)
    assert half.losses != whole.losses
    kept = weights(half.output / "checkpoints" / "checkpoint-7")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
