"""The OpenAPI 3.1 document: every route, parameter and error, with examples.

What it says stands in openapi.json, beside this file. Here only what repeats is put in: an operation names the statuses of its
`errors`, each of which is described once. Does not look at the app: a test holds the two together.
"""

from pathlib import Path
from typing import Any

import orjson

Document = dict[str, Any]


def document(version: str) -> Document:
    """The whole document, for this `version` of the server. Reads a file: call it once."""
    whole: Document = orjson.loads(Path(__file__).with_suffix(".json").read_bytes())
    whole["info"] |= {"version": version, "description": "\n".join(whole["info"]["description"])}
    errors, responses = whole.pop("errors"), whole["components"]["responses"]
    responses |= {status: failure(error, "Error") for status, error in errors.items()}
    answers = [(response, name not in UNCOUNTED) for name, response in responses.items()]
    for path, item in whole["paths"].items():
        for operation in (item[method] for method in ("get", "post", "delete") if method in item):
            failures = operation.pop("errors")
            answers.append((operation["responses"]["200"], 429 in failures))
            for status in failures:
                name = str(status)
                if path == "/ask":
                    name = f"ask.{status}"
                    responses[name] = failure(errors[str(status)], "AskError")
                    answers.append((responses[name], True))
                operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    for response, counted in answers:
        if "$ref" not in response:
            names = ["x-request-id", *LIMITS] if counted else ["x-request-id"]
            response.setdefault("headers", {}).update({name: header(name) for name in names})
    return whole


UNCOUNTED = {"Health", "Page", "408", "431"}  # no rate limit counts them
LIMITS = [f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")]


def header(name: str) -> Document:
    return {"$ref": f"#/components/headers/{name}"}


def failure(error: Document, schema: str) -> Document:
    """The response of one status, in OpenAI's envelope (Error) or in the form of /ask (AskError)."""
    message, kind, param, code = error["error"]
    body: Document = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    if schema == "AskError":
        body = {"role": "assistant", "content": message, "error": kind, "details": code or param}
    headers = {name: header(name) for name in error.get("headers", ())}
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": body}
    }
    return {"description": error["description"], "headers": headers, "content": content}
