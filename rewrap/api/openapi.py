"""The OpenAPI 3.1 document: every route, parameter and error, with examples.

The texts are in openapi.json, beside this file. This module adds the parts that repeat: an
operation there lists only the statuses of its `errors`, each of which is described once. It does
not look at the app; a test compares the two.
"""

from collections.abc import Iterable
from pathlib import Path

import orjson

from rewrap.types import JSONObject

UNCOUNTED = frozenset(["Health", "Icon", "Page", "408", "431"])  # answers that no rate limit counts
LIMIT_HEADERS = [f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")]
METHODS = ("get", "post", "delete")


def document(version: str) -> JSONObject:
    """The whole document for this `version` of the server. Reads a file: call it once."""
    file = Path(__file__).with_suffix(".json")
    whole: JSONObject = orjson.loads(file.read_bytes())
    info = whole["info"]
    info["version"] = version
    info["description"] = "\n".join(info["description"])
    errors: JSONObject = whole.pop("errors")
    responses: JSONObject = whole["components"]["responses"]
    for status, error in errors.items():
        responses[status] = failure_response(error, "Error")
    for name, response in responses.items():
        add_headers(response, counted=name not in UNCOUNTED)
    for path, item in whole["paths"].items():
        for method in METHODS:
            if method in item:
                complete(item[method], path, errors, responses)
    return whole


def complete(operation: JSONObject, path: str, errors: JSONObject, responses: JSONObject) -> None:
    """Replace the `errors` of an operation by references to their responses."""
    statuses: list[int] = operation.pop("errors")
    for response in operation["responses"].values():
        add_headers(response, counted=429 in statuses)
    for status in statuses:
        name = str(status)
        if path == "/ask":
            name = f"ask.{status}"
            responses[name] = failure_response(errors[str(status)], "AskError")
            add_headers(responses[name], counted=True)
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}


def add_headers(response: JSONObject, *, counted: bool) -> None:
    """The headers of every answer, and those of the rate limit if it counts the request."""
    if "$ref" in response:
        return
    names = ["x-request-id"]
    if counted:
        names += LIMIT_HEADERS
    headers = response.setdefault("headers", {})
    headers.update(header_references(names))


def header_references(names: Iterable[str]) -> JSONObject:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def failure_response(error: JSONObject, schema: str) -> JSONObject:
    """The response of one status, in OpenAI's envelope (Error) or in that of /ask (AskError)."""
    message, kind, param, code = error["error"]
    example: JSONObject = {
        "error": {"message": message, "type": kind, "param": param, "code": code}
    }
    if schema == "AskError":
        example = {
            "role": "assistant",
            "content": message,
            "error": kind,
            "details": code or param or message,
        }
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    return {
        "description": error["description"],
        "headers": header_references(error.get("headers", ())),
        "content": {"application/json": content},
    }
