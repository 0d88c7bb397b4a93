"""Errors in OpenAI's shape."""

from __future__ import annotations

import pytest

from gkt_plugins.errors import BackendError, ConfigError, EngineError, GktError
from gkt_plugins.openai_wire.errors import ApiError, InvalidRequest, error_body


class EndpointError(EngineError):
    """As adapters may make them."""

    def __init__(self, message: str, *, code: str, status: int | None = None, retryable: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.code = code
        self.status = status


def around(cause: EngineError) -> EngineError:
    error = EngineError(f"the student failed: {cause}", retryable=cause.retryable)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("x", param="n", code="invalid_value"), 400, "invalid_value"),
        (InvalidRequest("x", status=404, code="model_not_found"), 404, "model_not_found"),
        (ApiError("x", status=429, kind="requests", code="rate_limit_exceeded"), 429, "rate_limit_exceeded"),
        (GktError("the prompt is empty"), 400, "invalid_request"),
        (ConfigError("x"), 400, "invalid_request"),
        (EngineError("x", retryable=True), 503, "upstream_unavailable"),
        (EngineError("x"), 502, "upstream_error"),
        (EndpointError("x", code="upstream_timeout", retryable=True), 504, "upstream_timeout"),
        (EndpointError("x", code="upstream_refused", status=400), 400, "upstream_refused"),
        (EndpointError("x", code="upstream_key_refused", status=401), 502, "upstream_key_refused"),
        (around(EndpointError("x", code="upstream_timeout", retryable=True)), 504, "upstream_timeout"),
        (BackendError("the disk is full"), 503, "backend_unavailable"),
    ],
)
def test_each_error_has_its_status_and_code(error, status, code):
    found, body, _ = error_body(error)
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"]["message"] == str(error)
    assert body["error"].keys() == {"message", "type", "param", "code"}


def test_the_key_that_is_wrong_is_the_param():
    assert error_body(InvalidRequest("x", param="n"))[1]["error"]["param"] == "n"


def test_when_to_come_back_is_a_header_of_whole_seconds():
    assert error_body(EngineError("x", retryable=True, retry_after_s=1.2))[2] == {"retry-after": "2"}
    assert error_body(around(EngineError("x", retryable=True, retry_after_s=0.1)))[2] == {"retry-after": "1"}
    assert error_body(EngineError("x"))[2] == {}


def test_headers_of_a_refusal_are_kept():
    error = ApiError("x", status=401)
    error.headers["www-authenticate"] = "Bearer"
    assert error_body(error)[2] == {"www-authenticate": "Bearer"}


def test_our_own_fault_says_nothing_of_itself():
    status, body, _ = error_body(KeyError("sk-secret"))
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "secret" not in str(body)


def test_an_error_that_is_its_own_cause_is_told_like_any_other():
    error = EngineError("the engine failed", retryable=True)
    error.__cause__ = error
    assert error_body(error)[0] == 503
