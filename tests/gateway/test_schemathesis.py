"""Requests that schemathesis makes up from our own OpenAPI document: no 500, and answers as the document has them."""

from __future__ import annotations

from hashlib import sha256

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gkt_plugins.cli.keys import new_key
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Upstream

TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[pipelines.default]
teacher = "cloud"
student = "edge"
[pipelines.default.guidance]
tokens = 4
[gateway.keys.tests]
sha256 = "{digest}"
admin = true
"""
KEY = new_key()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    digest = sha256(KEY.encode()).hexdigest()
    text = "The cat sat on the mat and slept."
    with Upstream(text, model="large") as teacher, Upstream(text, model="small") as student:
        toml = TOML.format(teacher=teacher.url, student=student.url, digest=digest)
        with GatewayProcess(toml, tmp_path_factory.mktemp("gateway")) as process:
            yield process
        assert "Traceback" not in process.log


@pytest.fixture(scope="module")
def document(gateway):
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


made_up = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/ready"),
]

POSTS = [path for method, path in OPERATIONS if method == "POST"]
RESPONSE_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def test_every_address_of_the_document_is_tried(document):
    tried = {(found.ok().method.upper(), found.ok().path) for found in document.get_all_operations()}
    assert tried == set(OPERATIONS)


def answers(operation, mode, change=lambda case: None, checks=None):
    """Every request of ``mode`` that schemathesis thinks of, changed by ``change``, passes ``checks``; None: all."""

    @made_up
    @given(operation.as_strategy(generation_mode=mode))
    def answered(case):
        change(case)
        case.call_and_validate(headers={"authorization": f"Bearer {KEY}"}, checks=checks)

    answered()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_the_document_allows_is_answered_as_it_says(document, method, path):
    answers(document[path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_does_not_allow_is_refused_as_it_says(document, path):
    answers(document[path]["POST"], GenerationMode.NEGATIVE)


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_whatever_comes_for_a_pipeline_that_exists_is_answered_as_the_document_says(document, path, mode):
    def for_the_pipeline(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "gkt/default"

    answers(document[path]["POST"], mode, for_the_pipeline, RESPONSE_CHECKS)
