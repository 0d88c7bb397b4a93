"""Secrets have no place in a configuration file: finds those that were written into one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit

from gkt_plugins._problems import KeyPath, Problem

__all__ = ["find_secrets"]

# "tokens", "eos_token" and the like are no secrets; "hf_token" and "x-api-key" are.
_SECRET_KEY = re.compile(
    r"(.*_)?(api_?key|secret|secret_key|private_key|password|passwd|credentials?)"
    r"|token|(access|auth|bearer|hf|hub|api|secret|refresh)_token|(proxy_)?authorization|bearer"
)


def find_secrets(value: object, path: KeyPath = ()) -> Iterator[Problem]:
    """One problem for each secret in ``value``, which stands at ``path``. No message repeats the secret."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, str) and _SECRET_KEY.fullmatch(_plain(key)):
                yield Problem(
                    (*path, key),
                    "looks like a secret, and secrets are never written here",
                    f"put it into an environment variable and give that variable's name as {_plain(key)}_env",
                )
            else:
                yield from find_secrets(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from find_secrets(inner, (*path, index))
    elif isinstance(value, str) and _has_password(value):
        last = _plain(str(path[-1])) if path else "url"
        yield Problem(
            path,
            "is a URL with a secret inside, and secrets are never written here",
            f"put the whole URL into an environment variable and give that variable's name as {last}_env",
        )


def _plain(key: str) -> str:
    return key.lower().replace("-", "_")


def _has_password(text: str) -> bool:
    if "://" not in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False  # not a URL, so no password of one
    return bool(parts.password) or any(_SECRET_KEY.fullmatch(_plain(name)) for name, _ in parse_qsl(parts.query))
