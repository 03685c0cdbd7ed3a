"""Requests, checked by hand (checks.py has a check for each field)."""

import time
from typing import Any

import orjson

from rewrap.api.checks import (
    CHECKS,
    check_messages,
    check_metadata,
    check_model,
    invalid,
    missing,
    named,
)
from rewrap.ids import random_hex
from rewrap.types import APIError, ChatRequest


def parse_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises APIError."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
        raise APIError(400, message) from None
    if type(payload) is not dict:
        raise APIError(
            400, f"Invalid type for the body: expected an object, but got {named(payload)} instead."
        )
    return payload


def parse_chat(body: bytes, default_model: str = "", path_model: str = "") -> ChatRequest:
    """A request for a chat completion. Raises APIError."""
    chat = chat_from(
        parse_object(body), path_model or default_model, named_by_path=bool(path_model)
    )
    chat.body, chat.relay = body, True
    return chat


def chat_from(payload: dict[str, Any], model: str, *, named_by_path: bool = False) -> ChatRequest:
    """A payload, checked in OpenAI's order: model, messages, then the rest by name. Raises APIError.

    null counts as absent. Fields that are not known are kept: they go on to the upstream.
    """
    model = model if named_by_path else payload.get("model") or model
    if not model:
        raise invalid("you must provide a model parameter", None, None)
    check_model("model", model)
    if payload.get("messages") is None:
        raise missing("messages")
    check_messages("messages", payload["messages"])
    for name, check in CHECKS.items():
        if (value := payload.get(name)) is not None:
            check(name, value)
    if payload.get("top_logprobs") and not payload.get("logprobs"):
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise invalid(message, "top_logprobs", None)
    return ChatRequest(
        model,
        payload["messages"],
        payload,
        stream=payload.get("stream") is True,
        include_usage=bool((payload.get("stream_options") or {}).get("include_usage")),
        id=f"chatcmpl-{random_hex()}",
        created=int(time.time()),
    )


def parse_metadata(body: bytes) -> dict[str, str]:
    """A request that changes a stored completion: `{"metadata": {...}}`. Raises APIError."""
    payload = parse_object(body)
    if "metadata" not in payload:
        raise missing("metadata")
    metadata: dict[str, str] = {} if payload["metadata"] is None else payload["metadata"]
    check_metadata("metadata", metadata)
    return metadata


def parse_ask(body: bytes, default_model: str) -> ChatRequest:
    """A request to /ask: `messages` as chat completions have them, or as the AI SDK sends them (`parts`)."""
    payload = parse_object(body)
    lost: list[str] = []
    if isinstance(messages := payload.get("messages"), list):
        messages = [
            m for m in messages if not (isinstance(m, dict) and m.get("role") == "data")
        ]  # for the page alone
        lost = [name for message in messages for name in unsupported_parts(message)]
        payload["messages"] = [from_ui_message(message) for message in messages]
    lost += ["data"] if payload.get("data") is not None else []
    asked = {name: value for name, value in payload.items() if name not in OF_THE_PAGE}
    chat = chat_from(asked | {"stream": True}, default_model)
    chat.dropped = list(dict.fromkeys(lost))
    return chat


OF_THE_PAGE = ("id", "trigger", "messageId", "data")  # useChat's own


def from_ui_message(message: Any) -> Any:
    """`{"id", "role", "parts": [{"type": "text", "text"}]}` as `{"role", "content"}`."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return message
    texts = [
        part.get("text")
        for part in message["parts"]
        if isinstance(part, dict) and part.get("type") == "text"
    ]
    content = message.get("content")
    joined = "".join(text for text in texts if isinstance(text, str))
    return {
        "role": message.get("role"),
        "content": content if isinstance(content, str) and content else joined,
    }


def unsupported_parts(message: Any) -> list[str]:
    """What `from_ui_message` leaves out: files, sources, calls of tools."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return []
    types = [part.get("type") for part in message["parts"] if isinstance(part, dict)]
    types += ["experimental_attachments"] if message.get("experimental_attachments") else []
    return [
        f"messages.{type}"
        for type in types
        if isinstance(type, str) and type not in ("text", "step-start")
    ]
