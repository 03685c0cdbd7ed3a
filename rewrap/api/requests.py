"""Bodies of requests, parsed and checked by hand. checks.py has a check for each parameter.

Every parser raises APIError in OpenAI's words. `null` counts as absent. Unknown parameters are kept: they go to the upstream.
"""

from collections.abc import Mapping, Sequence

from rewrap import large_json
from rewrap.api.checks import (
    PARAMETER_CHECKS,
    check_messages,
    check_metadata,
    check_model,
    invalid,
    missing,
    object_rows,
    type_name,
)
from rewrap.api.duplicates import check_unique
from rewrap.ids import owner_id
from rewrap.types import APIError, ChatRequest, Checks, JSONObject

NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP library"
    " correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
)
LOGPROBS_OFF = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
PAGE_MEMBERS = frozenset(["id", "trigger", "messageId", "data"])  # useChat's own, not the chat's
VISIBLE_PARTS = frozenset(["text", "step-start"])


def parse_object(body: bytes, values: int | None = None) -> JSONObject:
    """The JSON object of a body. `values`: how many it has, if they were counted."""
    try:
        payload = large_json.loads_large(body, values)
    except ValueError:
        raise APIError(400, NOT_JSON) from None
    if type(payload) is not dict:
        name = type_name(payload)
        raise APIError(
            400, f"Invalid type for the body: expected an object, but got {name} instead."
        )
    check_unique(body, payload)
    return payload


def chat_request(
    payload: JSONObject,
    model: str,
    client_headers: Mapping[str, str],
    *,
    body: bytes = b"",
    relay: bool = False,
    unsupported: Sequence[str] = (),
    api: str = "chat",
    checks: Checks = Checks.OPENAI,
    identity: str = "",
) -> ChatRequest:
    """A checked request. `body` has the bytes of `payload`, if they may go to an upstream as they are.

    `identity` is that of the authenticated client. `model` is checked by `model_of`. Raises APIError.
    """
    check_chat(payload, checks)
    return ChatRequest(
        model,
        payload["messages"],
        payload,
        body=body,
        stream=payload.get("stream") is True,
        include_usage=wants_usage(payload),
        relay=relay,
        client_headers=client_headers,
        unsupported=tuple(unsupported),
        api=api,
        owner=owner_id(identity) if identity else "",
    )


def parse_ask(payload: JSONObject) -> tuple[JSONObject, list[str]]:
    """The chat payload of a request to /ask, and the parts that it leaves out.

    `messages` are as chat completions have them, or as the AI SDK sends them (`parts`).
    """
    unsupported: list[str] = []
    chat = {name: value for name, value in payload.items() if name not in PAGE_MEMBERS}
    messages = payload.get("messages")
    if isinstance(messages, list):
        messages = [message for message in messages if not is_page_data(message)]
        for message in messages:
            unsupported += unsupported_parts(message)
        chat["messages"] = [from_ui_message(message) for message in messages]
    if payload.get("data") is not None:
        unsupported.append("data")
    chat["stream"] = True
    return chat, list(dict.fromkeys(unsupported))


def parse_metadata(body: bytes) -> dict[str, str]:
    """A change of a stored completion: `{"metadata": {...}}`."""
    payload = parse_object(body)
    if "metadata" not in payload:
        raise missing("metadata")
    metadata = payload["metadata"]
    if metadata is None:
        return {}
    check_metadata("metadata", metadata)
    result: dict[str, str] = metadata
    return result


def looks_like_responses(payload: JSONObject) -> bool:
    """Whether a body at /v1/chat/completions is a Responses request: some editors send those."""
    return "input" in payload and "messages" not in payload


def looks_like_chat(payload: JSONObject) -> bool:
    """Whether a body at /v1/responses is a chat completions request."""
    return "messages" in payload and "input" not in payload


def model_of(payload: JSONObject, default: str, path_model: str = "") -> str:
    """The model in the path, else the payload's, else the default. Raises APIError."""
    model: object = path_model or payload.get("model")
    if model is None or model == "":
        model = default
    if not model:
        raise invalid("you must provide a model parameter", None, None)
    check_model("model", model)
    return str(model)


def check_chat(payload: JSONObject, checks: Checks) -> None:
    """Check a payload in OpenAI's order: messages, then the other parameters by name."""
    messages = payload.get("messages")
    if messages is None:
        raise missing("messages")
    if checks is Checks.ROUTING:
        object_rows(messages, "messages")
    else:
        check_messages("messages", messages, strict=checks is Checks.OPENAI)
    parameter_checks = PARAMETER_CHECKS[checks]
    try:
        # The members of the payload are fewer than the checks: 2 µs less.
        for name, value in payload.items():
            if name in parameter_checks and value is not None:
                parameter_checks[name](name, value)
    except APIError:
        for name, check in parameter_checks.items():  # the first error in OpenAI's order
            if payload.get(name) is not None:
                check(name, payload[name])
    if checks is Checks.OPENAI and payload.get("top_logprobs") and not payload.get("logprobs"):
        raise invalid(LOGPROBS_OFF, "top_logprobs", None)


def wants_usage(payload: JSONObject) -> bool:
    options = payload.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


# The AI SDK's messages.


def is_page_data(message: object) -> bool:
    """Whether a message is for the page only."""
    return isinstance(message, dict) and message.get("role") == "data"


def from_ui_message(message: object) -> object:
    """`{"id", "role", "parts": [{"type": "text", "text"}]}` as `{"role", "content"}`."""
    parts = ai_sdk_parts(message)
    if parts is None or not isinstance(message, dict):
        return message
    content = message.get("content")
    if not isinstance(content, str) or not content:
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    return {"role": message.get("role"), "content": content}


def unsupported_parts(message: object) -> list[str]:
    """The parts that `from_ui_message` leaves out: files, sources, tool calls."""
    parts = ai_sdk_parts(message)
    if parts is None or not isinstance(message, dict):
        return []
    types = [part.get("type") for part in parts]
    if message.get("experimental_attachments"):
        types.append("experimental_attachments")
    return [
        f"messages.{type}" for type in types if isinstance(type, str) and type not in VISIBLE_PARTS
    ]


def ai_sdk_parts(message: object) -> list[JSONObject] | None:
    """The parts of a message in the AI SDK's form; None if it has another form."""
    parts = message.get("parts") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return None
    return [part for part in parts if isinstance(part, dict)]
