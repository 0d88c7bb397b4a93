"""Learning from a model behind an endpoint: what its few probabilities are worth, and whole runs of the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.cli import main
from gkt_plugins.contracts import Message
from gkt_plugins.demo.models import model_dir
from gkt_plugins.distill.divergences import divergence
from gkt_plugins.distill.endpoint_answers import Asking, EndpointAnswer, TokenScore, read_answer
from gkt_plugins.distill.endpoint_loss import Scores, known_overlap, truncated_kl
from gkt_plugins.distill.endpoint_tokens import TokenTable
from gkt_plugins.distill.options import load_options
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

ROWS, VOCAB = 64, 50


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def told(target: Tensor, k: int) -> Scores:
    """The ``k`` likeliest tokens of a target, as an endpoint tells them."""
    probs, ids = target.softmax(-1).topk(k)
    return Scores(ids, probs)


# ----------------------------------------------------------------------------------------------------------------- loss


def test_with_every_token_told_the_loss_is_forward_kl():
    target, draft = logits(1), logits(2)
    assert torch.allclose(truncated_kl(told(target, VOCAB), draft), divergence("forward_kl", target, draft), atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_fewer_tokens_never_make_the_loss_greater(k):
    target, draft = logits(1), logits(2)
    assert (truncated_kl(told(target, k), draft) <= divergence("forward_kl", target, draft) + 1e-5).all()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_gradient_is_off_by_at_most_twice_the_mass_that_was_not_told(k):
    target, draft = logits(1), logits(2).requires_grad_()
    scores = told(target, k)
    [found] = torch.autograd.grad(truncated_kl(scores, draft).sum(), draft)
    right = draft.softmax(-1) - target.softmax(-1)
    off = (found - right).abs()
    assert (off.gather(-1, scores.ids) < 1e-5).all()  # at the told tokens nothing is off
    assert (off.sum(-1) <= 2 * scores.rest + 1e-5).all()
    assert (off.sum(-1) > scores.rest / 10).any()  # and the bound is of the right size


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_acceptance_lies_between_its_known_part_and_that_with_the_tail(k):
    target, draft = logits(1), logits(2)
    low, tail = known_overlap(told(target, k), draft)
    right = torch.minimum(target.softmax(-1), draft.softmax(-1)).sum(-1)
    assert (low <= right + 1e-5).all()
    assert (right <= low + tail + 1e-5).all()


def test_text_alone_is_cross_entropy():
    draft = logits(2)
    tokens = torch.arange(ROWS) % VOCAB
    scores = Scores(tokens[:, None], torch.ones(ROWS, 1))
    assert torch.allclose(
        truncated_kl(scores, draft), torch.nn.functional.cross_entropy(draft, tokens, reduction="none")
    )


def test_a_row_with_fewer_tokens_than_others_is_not_moved_by_the_padding():
    draft = logits(2)[:1]
    narrow, wide = Scores(torch.tensor([[3]]), torch.tensor([[0.6]])), Scores(
        torch.tensor([[3, 0, 0]]), torch.tensor([[0.6, 0.0, 0.0]]))  # fmt: skip
    assert torch.equal(truncated_kl(narrow, draft), truncated_kl(wide, draft))


# --------------------------------------------------------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_dir("teacher"))


def scored(text: str, tokenizer, *, wrong: str = "") -> EndpointAnswer:
    """``text`` as an endpoint with this tokenizer tells it; ``wrong``: one more alternative for each token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, done = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end])
        pieces.append(whole[len(done) :])
        done = whole
    extra = ((wrong, math.log(0.25)),) if wrong else ()
    return EndpointAnswer(text, True, tuple(TokenScore(p, ((p, math.log(0.5)), *extra)) for p in pieces))


def test_the_endpoints_tokens_become_the_drafts_and_a_finished_answer_is_closed(tokenizer):
    table = TokenTable(tokenizer, tokenizer.eos_token_id)
    found = table.scored(PromptItem((5,), "?"), scored("Tom has 14 apples.", tokenizer))
    ids = tokenizer("Tom has 14 apples.", add_special_tokens=False)["input_ids"]
    assert found.sample.answer == (*ids, tokenizer.eos_token_id)
    assert found.known == (*[True] * len(ids), False)
    assert found.scores.rest.tolist() == pytest.approx([*[0.5] * len(ids), 0.0])


def test_an_alternative_that_is_no_token_of_the_draft_stays_in_the_unknown_mass(tokenizer):
    table = TokenTable(tokenizer, tokenizer.eos_token_id)
    found = table.scored(PromptItem((5,), "?"), scored("Tom has", tokenizer, wrong="no token of ours"))
    assert found.scores.rest.tolist()[:-1] == pytest.approx([0.5] * (len(found.known) - 1))


def test_an_answer_in_other_tokens_is_learnt_from_as_text(tokenizer):
    answer = EndpointAnswer(
        "Tom has", False, (TokenScore("Tom h", (("Tom h", -0.1),)), TokenScore("as", (("as", -0.1),)))
    )
    found = TokenTable(tokenizer, tokenizer.eos_token_id).scored(PromptItem((5,), "?"), answer)
    assert found.sample.answer == tuple(tokenizer("Tom has", add_special_tokens=False)["input_ids"])
    assert not any(found.known)
    assert found.scores.rest.tolist() == [0.0] * len(found.known)


def numbered(ids, text: str) -> EndpointAnswer:
    """An answer whose tokens have come as numbers; behind the vocabulary are numbers that padding has."""
    padding = ("token_id:99999", math.log(0.25))
    return EndpointAnswer(
        text, True, tuple(TokenScore(f"token_id:{one}", ((f"token_id:{one}", math.log(0.5)), padding)) for one in ids)
    )


def test_tokens_that_come_as_numbers_are_known_also_where_one_is_a_piece_of_a_character(tokenizer):
    text = "Élan: 3 +4.\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert any("\ufffd" in tokenizer.decode([one]) for one in ids)
    found = TokenTable(tokenizer, tokenizer.eos_token_id).scored(PromptItem((5,), "?"), numbered(ids, text))
    assert found.sample.answer == (*ids, tokenizer.eos_token_id)
    assert found.known == (*[True] * len(ids), False)
    assert found.scores.probs[:-1, 0].tolist() == pytest.approx([0.5] * len(ids))
    assert found.scores.probs[:-1].sum(-1).tolist() == pytest.approx([0.5] * len(ids))  # padding is no token


def test_numbers_of_another_vocabulary_are_not_believed(tokenizer):
    text = "The answer is 7."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = TokenTable(tokenizer, None).scored(PromptItem((5,), "?"), numbered([one + 1 for one in ids], text))
    assert found.sample.answer == tuple(ids)
    assert not any(found.known)


def test_probabilities_that_add_up_to_more_than_one_are_not_believed(tokenizer):
    answer = EndpointAnswer("Tom", False, (TokenScore("Tom", (("Tom", -0.01), (" has", -0.01))),))
    assert not any(TokenTable(tokenizer, None).scored(PromptItem((5,), "?"), answer).known)


@pytest.mark.parametrize(
    "response", [{}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, {"choices": [3]}]
)
def test_a_response_without_text_is_one_sentence(response):
    with pytest.raises(EngineError, match="must answer with text, and sent something else"):
        read_answer(response, "chat", "cloud")


# ----------------------------------------------------------------------------------------------------------- whole runs

ANSWER = "w5 w9 w5 w9 w7 w5"

DISTILL = """\
output = "out"
[models]
target = "{models}/target"
draft = "{models}/draft"
device = "cpu"
[endpoint]
engine = "cloud"
logprobs = {logprobs}
concurrency = 4
[data]
prompts = "{prompts}"
policy = "target"
max_new_tokens = 8
held_out = 0.2
[train]
steps = 12
batch_size = 8
learning_rate = 0.02
optimizer = "adamw"
save_steps = 100
[evaluation]
every = 6
"""


@pytest.fixture
def folder(tmp_path, tiny_models, monkeypatch):
    """``folder(upstream, logprobs=…)`` writes both configurations here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))

    def folder(upstream: Upstream, *, logprobs: int, prompts: Path | None = None) -> Path:
        (tmp_path / "gkt.toml").write_text(
            f'[engines.cloud]\nadapter = "openai"\nbase_url = "{upstream.url}"\nmodel = "{upstream.model}"\n'
            f'[prices.{upstream.model}]\ninput_per_million = "1"\noutput_per_million = "2"\n'
        )
        (tmp_path / "distill.toml").write_text(
            DISTILL.format(models=tiny_models, logprobs=logprobs, prompts=prompts or tiny_models / "prompts.jsonl")
        )
        return tmp_path

    return folder


def run(*arguments: str) -> int:
    try:
        main(["distill", *arguments])
    except SystemExit as exc:
        return int(exc.code or 0)
    return 0


@pytest.mark.parametrize(("logprobs", "says"), [(3, "told a mass of 0.8"), (0, "text of 32 answers alone, as SeqKD")])
def test_a_draft_learns_what_an_endpoint_says_and_the_report_states_what_was_not_known(folder, capsys, logprobs, says):
    with Upstream(ANSWER) as upstream:
        folder(upstream, logprobs=logprobs)
        assert run("--json") == 0
        assert len(upstream.received) == 40
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["low"] > report["before"]["high"]
    assert report["efficiency_after"]["value"] > report["efficiency_before"]["value"]
    assert says in report["notes"][0]
    assert "acceptance_tv" in report["notes"][-1]
    provenance = json.loads(Path("out/provenance.json").read_text())
    assert provenance["target"]["name"] == "upstream-model"


def test_every_answer_is_asked_for_once_also_after_an_interruption_and_is_on_record(folder, capsys):
    with Upstream([*[ANSWER] * 20, Reply("", status=400), ANSWER]) as upstream:
        place = folder(upstream, logprobs=3)
        assert run("--set", "endpoint.concurrency=1") == 2
        assert "status 400" in capsys.readouterr().err
        kept = len((place / "out" / "answers.jsonl").read_text().splitlines())
        with (place / "out" / "answers.jsonl").open("a") as file:
            file.write('{"key": "half a li')  # as kill -9 leaves it
        asked = len(upstream.received)
        assert run("--resume", "--set", "endpoint.concurrency=1") == 0
        assert len(upstream.received) == asked + 40 - kept
        assert kept == 20
    ledger = Ledger.open(f"sqlite:///{place / 'gkt.db'}")
    records = list(ledger.records())
    ledger.close()
    assert {record.role for record in records} == {"target"}
    assert [record.status for record in records].count("final") == 40
    assert all(record.cost_nano for record in records if record.status == "final")


def test_what_was_answered_when_another_answer_failed_is_kept_whatever_the_order(folder, capsys):
    def script(asked):
        bad = asked.body["prompt"].startswith("w2") and not mended
        return Reply("", status=400, first_token_s=0.05) if bad else Reply(ANSWER, first_token_s=0.01)

    mended = False
    with Upstream(script) as upstream:
        place = folder(upstream, logprobs=0)
        assert run() == 2
        good = sum(received.finished is not None for received in upstream.received)
        kept = len((place / "out" / "answers.jsonl").read_text().splitlines())
        mended = True
        asked = len(upstream.received)
        assert run("--resume") == 0
        assert len(upstream.received) == asked + 40 - kept
    assert 0 < kept <= good


def test_an_answer_that_fails_for_a_moment_is_asked_for_again(folder):
    with Upstream(
        [Reply("", status=503, retry_after_s=0.01), Reply(ANSWER, fault=Fault(drop_after=0)), ANSWER]
    ) as upstream:
        folder(upstream, logprobs=0)
        assert run() == 0
        assert len(upstream.received) == 42


def test_a_conversation_goes_to_the_endpoints_own_template_and_a_text_as_it_is():
    asking = Asking("m", temperature=1.0, max_new_tokens=8, logprobs=3, seed=5)
    route, body = asking.body(PromptItem((1,), "[user] hi", messages=(Message("user", "hi"),)), 2)
    assert (route, body["messages"], body["top_logprobs"]) == ("chat", [{"role": "user", "content": "hi"}], 3)
    route, body = asking.body(PromptItem((1,), "Q: hi"), 2)
    assert (route, body["prompt"], body["logprobs"], body["seed"]) == ("completions", "Q: hi", 3, 7)


def test_the_name_of_an_engine_that_is_not_there_is_answered_with_those_that_are(folder, capsys):
    with Upstream(ANSWER) as upstream:
        folder(upstream, logprobs=0)
        assert run("--set", "endpoint.engine=clod") == 2
    assert "endpoint.engine must name an engine of gkt.toml, got 'clod'; it has cloud" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.policy=draft", "data.policy must be 'target'"),
        ("loss.divergence=tv", "loss.divergence must be 'forward_kl'"),
    ],
)
def test_what_an_endpoint_cannot_give_is_refused_with_the_file(folder, override, says):
    with Upstream(ANSWER) as upstream:
        place = folder(upstream, logprobs=0)
        with pytest.raises(ConfigError, match=says):
            load_options(place / "distill.toml", [override])
