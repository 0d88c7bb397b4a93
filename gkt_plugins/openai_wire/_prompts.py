"""What is asked, as a :class:`~gkt_plugins.contracts.Prompt`, and what of it no text can say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gkt_plugins.contracts import Message, Prompt
from gkt_plugins.guidance.events import Feature
from gkt_plugins.openai_wire._fields import refuse
from gkt_plugins.openai_wire.errors import InvalidRequest

__all__ = ["Prompts", "read_messages", "read_prompts"]

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MOST_PROMPTS = 128


@dataclass(slots=True)
class Prompts:
    """The questions of one request; a chat is one."""

    prompts: list[Prompt] = field(default_factory=list)
    features: set[Feature] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_messages(value: object) -> Prompts:
    """The ``messages`` of a chat. ``developer`` is called ``system``, which every chat template knows.

    :raises InvalidRequest: they are not messages.
    """
    if not isinstance(value, list) or not value:
        if value is None:
            raise InvalidRequest("messages is missing; give at least one", param="messages", code="missing_key")
        refuse("messages", "a list of at least one message", value)
    read = Prompts()
    messages = tuple([_message(item, f"messages[{position}]", read) for position, item in enumerate(value)])
    read.prompts.append(Prompt(messages=messages))
    return read


def _message(item: object, where: str, read: Prompts) -> Message:
    if not isinstance(item, Mapping):
        refuse(where, "an object with role and content", item)
    role = item.get("role")
    if role not in _ROLES:
        refuse(f"{where}.role", f"one of {', '.join(_ROLES)}", role)
    if role in ("tool", "function") or item.get("tool_calls") or item.get("function_call"):
        read.features.add("tools")
    if item.get("audio"):
        read.features.add("content_parts")
    if item.get("name") and not read.notes:
        read.notes.append("left out: the name of a message, which no chat template is sure to show")
    content = item.get("content")
    if content is None:
        content = item.get("refusal") or ""
        if role != "assistant" and "tools" not in read.features:
            raise InvalidRequest(
                f"{where}.content is missing; give a string or a list of parts",
                param=f"{where}.content",
                code="missing_key",
            )
    text = content if isinstance(content, str) else _text_of_parts(content, f"{where}.content", read)
    return Message("system" if role == "developer" else role, text)


def _text_of_parts(content: object, where: str, read: Prompts) -> str:
    """The text among the parts; images, sound and files are a feature."""
    if not isinstance(content, list):
        refuse(where, "a string or a list of parts", content)
    texts: list[str] = []
    for position, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            refuse(f"{where}[{position}]", "an object with a type", part)
        key = part["type"]
        if key not in ("text", "refusal"):
            read.features.add("content_parts")
            continue
        text = part.get(key)
        if not isinstance(text, str):
            refuse(f"{where}[{position}].{key}", "a string", text)
        texts.append(text)
    return "".join(texts)


def read_prompts(value: object) -> Prompts:
    """The ``prompt`` of a completion: a text, several, token ids, or several lists of them.

    :raises InvalidRequest: it is none of these.
    """
    if value is None:
        raise InvalidRequest(
            "prompt is missing; give a string or a list of strings", param="prompt", code="missing_key"
        )
    items = [value] if isinstance(value, str) or _is_token_ids(value) else value
    if not isinstance(items, list) or not 0 < len(items) <= _MOST_PROMPTS:
        refuse("prompt", f"a string, token ids, or a list of 1 to {_MOST_PROMPTS} of these", value)
    read = Prompts()
    for position, item in enumerate(items):
        if isinstance(item, str):
            read.prompts.append(Prompt(item))
        elif _is_token_ids(item):
            read.features.add("token_ids")
            read.prompts.append(Prompt(""))
        else:
            refuse(f"prompt[{position}]", "a string or token ids", item)
    return read


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)
