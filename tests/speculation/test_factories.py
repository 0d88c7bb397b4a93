"""What ships for speculation can be listed without torch, and built by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gkt_plugins.contracts import BuildContext, Sampling
from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.factories import DRAFTERS, LENIENCY_RULES, LOSSLESS_VERIFIERS, VERIFIERS
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest
from gkt_plugins.speculation.target import TransformersModel


def build(factories, name, resources=None, base_dir=None, **options):
    factory = factories[name]
    return factory.build(factory.options(**options), BuildContext(base_dir=base_dir, resources=resources or {}))


def test_listing_loads_neither_torch_nor_an_engine():
    code = (
        "import sys, gkt_plugins.speculation, gkt_plugins.speculation.factories as f;"
        "assert f.DRAFTERS and f.VERIFIERS and f.LENIENCY_RULES;"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_draft_folder_is_found_beside_the_configuration(tmp_path, tiny, perturbed):
    perturbed("llama").save_pretrained(tmp_path / "draft")
    target = TransformersModel(tiny("llama"))
    drafter = build(DRAFTERS, "model", {"target": target}, tmp_path, draft="draft")
    (result,) = DecodeLoop(target, drafter=drafter, gamma=3).run([DecodeRequest([1, 2], Sampling(max_tokens=12))])
    assert result.counts.accepted > 0


@pytest.mark.parametrize("draft", ["./missing", "/missing/draft"])
def test_a_missing_draft_folder_is_named(draft, tmp_path, tiny):
    with pytest.raises(ConfigError, match=r"speculation.draft: there is no folder .*missing"):
        build(DRAFTERS, "model", {"target": TransformersModel(tiny("llama"))}, tmp_path, draft=draft)


def test_a_corrupt_draft_folder_is_named(tmp_path, tiny, perturbed):
    folder = Path(tmp_path / "draft")
    perturbed("llama").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=r"speculation.draft: no causal language model could be loaded from .*draft"):
        build(DRAFTERS, "model", {"target": TransformersModel(tiny("llama"))}, tmp_path, draft="draft")


def test_a_draft_of_another_vocabulary_is_refused_with_both_sizes(tmp_path, tiny):
    target = TransformersModel(tiny("llama"))
    resources = {"target": target, "draft_model": tiny("llama", vocab_size=90)}
    with pytest.raises(ConfigError, match="the draft's vocabulary has 90 entries, the target's 64"):
        build(DRAFTERS, "model", resources, tmp_path, draft="draft")


@pytest.mark.parametrize("rule", LENIENCY_RULES)
def test_every_rule_serves_the_lenient_verifier(rule):
    assert build(VERIFIERS, "lenient", rule=rule, epsilon=0.5) is not None


def test_an_unknown_rule_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="expected one of linear, square, exponential, capped, got 'cubic'"):
        build(VERIFIERS, "lenient", rule="cubic")


def test_a_rule_of_a_plugin_is_used():
    calls = []

    def rule(p, epsilon):
        calls.append(epsilon)
        return p

    import torch

    from gkt_plugins.contracts import Noise, Proposal
    from gkt_plugins.speculation.scores import KnownScores

    verifier = build(VERIFIERS, "lenient", {"rule": rule}, rule="theirs", epsilon=0.5)
    noise = Noise(torch.zeros(1, 1), torch.zeros(1))
    verifier.verify(
        Proposal(torch.zeros(1, 1, dtype=torch.int64), None), KnownScores(torch.full((1, 2, 2), 0.5)), noise
    )
    assert calls == [0.5]


@pytest.mark.parametrize("epsilon", [0, -1, 1.5])
def test_leniency_out_of_range_is_refused_by_its_options(epsilon):
    with pytest.raises(ValidationError, match="epsilon"):
        VERIFIERS["lenient"].options(rule="linear", epsilon=epsilon)


def test_prompt_lookup_and_lossless_verifiers_need_no_options():
    assert build(DRAFTERS, "prompt_lookup") is not None
    assert all(build(VERIFIERS, name) is not None for name in LOSSLESS_VERIFIERS)
