"""The reduced copy of TGI's contract: what it was made from, that it is whole, and that it forbids what it should."""

from __future__ import annotations

import json

import pytest

from gkt_plugins.testing import tgi_contract
from gkt_plugins.testing.tgi_contract import Contract, fingerprint, load_contract, reduced

MADE_OF = "8609720a6c423da6c3598c8dc7f32d585b62ecfa8e7035c3c7ce4a50ca6fbf52"
"""Fingerprint of the copy as it was made from the published document, whose own is in ``tgi_contract.PUBLISHED``."""

CHUNK = {"id": "", "created": 1, "model": "m", "system_fingerprint": "3", "choices": []}


def test_the_copy_is_unchanged_since_it_was_made_from_the_published_document():
    assert fingerprint(load_contract()) == MADE_OF


def test_the_copy_is_whole_and_nothing_in_it_is_more_than_the_routes_reach():
    assert reduced(load_contract()) == load_contract()


def test_making_a_copy_leaves_out_what_binds_nobody_and_keeps_properties_with_such_names():
    document = load_contract()
    schema = document["components"]["schemas"]["GenerateRequest"]
    schema |= {"description": "words", "example": 1}
    schema["properties"]["description"] = {"type": "string", "description": "words"}
    document["paths"]["/metrics"] = {"get": {}}
    made = reduced(document)
    assert made["components"]["schemas"]["GenerateRequest"]["properties"]["description"] == {"type": "string"}
    assert made["components"]["schemas"]["GenerateRequest"].keys() == {"type", "required", "properties"}
    assert "/metrics" not in made["paths"]


def test_a_published_document_is_held_against_the_copy_on_the_command_line(tmp_path, capsys, monkeypatch):
    same, other = tmp_path / "same.json", tmp_path / "other.json"
    document = load_contract()
    same.write_text(json.dumps(document))
    document["components"]["schemas"]["GenerateRequest"]["required"].append("model")
    other.write_text(json.dumps(document))
    copied = tmp_path / "copy.json"
    copied.write_text(tgi_contract.CONTRACT.read_text())
    monkeypatch.setattr(tgi_contract, "CONTRACT", copied)
    assert tgi_contract.compare([str(same)]) == 0
    assert tgi_contract.compare([str(other)]) == 1
    assert "NOT what" in capsys.readouterr().out
    assert tgi_contract.compare([str(other), "--write"]) == 0
    assert json.loads(copied.read_text()) == document


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"inputs": "a"}, None),
        ({"inputs": "a", "parameters": {"temperature": None, "stop": ["a"] * 4}}, None),
        ({"parameters": {}}, "'inputs' is a required property"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, "$.parameters.temperature"),
        ({"inputs": "a", "parameters": {"top_p": 1.1}}, "$.parameters.top_p"),
        ({"inputs": "a", "parameters": {"seed": 0}}, "$.parameters.seed"),
        ({"inputs": "a", "parameters": {"stop": ["a"] * 5}}, "$.parameters.stop"),
        ({"inputs": ["a"]}, "$.inputs"),
        ("a", "$: 'a' is not of type 'object'"),
    ],
)
def test_requests_are_held_against_types_ranges_and_lengths(body, wrong):
    said = Contract().wrong_request("/generate", body)
    assert said == wrong if wrong is None else wrong in (said or "")


def test_responses_are_held_against_their_status_and_kind():
    contract = Contract()
    assert contract.wrong_response("/v1/chat/completions", CHUNK | {"usage": None}, kind="text/event-stream") is None
    assert "'usage' is a required" in (contract.wrong_response("/v1/chat/completions", CHUNK) or "")
    assert contract.wrong_response("/generate", {"error": "x", "error_type": "y"}, status=429) is None
    assert contract.wrong_response("/generate", {"error": "x"}, status=429) is not None
    assert "the contract has nothing at" in (contract.wrong_response("/generate", {}, status=418) or "")
