"""The request bodies of Ollama, Anthropic, Gemini and Cohere, as their references describe them.

JSON schemas refuse members that the references do not name; `problems` also checks the rules that a
schema cannot hold: alternation, results that belong to calls, texts that are not empty.
Sources: github.com/ollama/ollama docs/api.md; docs.anthropic.com api/messages;
ai.google.dev/api/generate-content; docs.cohere.com/reference/chat.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jsonschema

Body = dict[str, Any]


def strict(required: str = "", /, **members: Any) -> Body:
    """An object with these members only."""
    return {
        "type": "object",
        "properties": members,
        "required": required.split(),
        "additionalProperties": False,
    }


def array(items: Body) -> Body:
    return {"type": "array", "items": items, "minItems": 1}


def either(*schemas: Body) -> Body:
    return {"anyOf": list(schemas)}


TEXT = {"type": "string"}
FILLED = {"type": "string", "pattern": r"\S"}
BASE64 = {"type": "string", "pattern": "^[A-Za-z0-9+/]+=*$"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
FLAG = {"type": "boolean"}
OBJECT = {"type": "object"}
TEXTS = array(TEXT)


def const(value: object) -> Body:
    return {"const": value}


OPENAI_FUNCTION = strict("name", name=FILLED, description=TEXT, parameters=OBJECT)

OLLAMA = strict(
    "model messages",
    model=FILLED,
    messages=array(
        strict(
            "role content",
            role={"enum": ["system", "user", "assistant", "tool"]},
            content=TEXT,
            thinking=TEXT,
            images=array(BASE64),
            tool_calls=array(
                strict("function", function=strict("name arguments", name=FILLED, arguments=OBJECT))
            ),
            tool_name=FILLED,
        )
    ),
    tools=array(strict("type function", type=const("function"), function=OPENAI_FUNCTION)),
    format=either(const("json"), OBJECT),
    options=OBJECT,
    stream=FLAG,
    think=either(FLAG, {"enum": ["low", "medium", "high"]}),
    keep_alive=either(TEXT, NUMBER),
)

ANTHROPIC_SOURCE = either(
    strict("type media_type data", type=const("base64"), media_type=FILLED, data=BASE64),
    strict("type url", type=const("url"), url={"type": "string", "pattern": "^https?://"}),
)
ANTHROPIC_ID = {"type": "string", "pattern": "^[a-zA-Z0-9_-]+$"}
ANTHROPIC_TEXT = strict("type text", type=const("text"), text=FILLED)
ANTHROPIC_IMAGE = strict("type source", type=const("image"), source=ANTHROPIC_SOURCE)
ANTHROPIC_BLOCK = either(
    ANTHROPIC_TEXT,
    ANTHROPIC_IMAGE,
    strict("type source", type=const("document"), source=ANTHROPIC_SOURCE),
    strict(
        "type id name input", type=const("tool_use"), id=ANTHROPIC_ID, name=FILLED, input=OBJECT
    ),
    strict(
        "type tool_use_id",
        type=const("tool_result"),
        tool_use_id=ANTHROPIC_ID,
        content=either(FILLED, array(either(ANTHROPIC_TEXT, ANTHROPIC_IMAGE))),
        is_error=FLAG,
    ),
)
ANTHROPIC = strict(
    "model max_tokens messages",
    model=FILLED,
    max_tokens=INTEGER,
    system=FILLED,
    messages=array(
        strict(
            "role content",
            role={"enum": ["user", "assistant"]},
            content=either(FILLED, array(ANTHROPIC_BLOCK)),
        )
    ),
    tools=array(
        strict("name input_schema", name=FILLED, description=TEXT, input_schema=OBJECT, strict=FLAG)
    ),
    tool_choice=either(
        strict("type", type={"enum": ["auto", "any"]}, disable_parallel_tool_use=FLAG),
        strict("type", type=const("none")),
        strict("type name", type=const("tool"), name=FILLED, disable_parallel_tool_use=FLAG),
    ),
    thinking=either(
        strict("type", type={"enum": ["adaptive", "disabled"]}),
        strict("type budget_tokens", type=const("enabled"), budget_tokens=INTEGER),
    ),
    output_config=strict(
        format=strict("type schema", type=const("json_schema"), schema=OBJECT),
        effort={"enum": ["low", "medium", "high", "xhigh", "max"]},
    ),
    stream=FLAG,
    temperature={"type": "number", "maximum": 1},
    top_p=NUMBER,
    top_k=INTEGER,
    stop_sequences=TEXTS,
    metadata=strict(user_id=TEXT),
)

GEMINI_DATA = strict("mimeType data", mimeType=FILLED, data=BASE64)
GEMINI_CALL = strict("name", id=FILLED, name=FILLED, args=OBJECT)
GEMINI_RESULT = strict("name response", id=FILLED, name=FILLED, response=OBJECT)
GEMINI_FILE = strict("fileUri", fileUri=FILLED, mimeType=FILLED)
GEMINI_PART = either(
    strict("text", text=FILLED),
    strict("inlineData", inlineData=GEMINI_DATA),
    strict("fileData", fileData=GEMINI_FILE),
    strict("functionCall", functionCall=GEMINI_CALL, thoughtSignature=FILLED),
    strict("functionResponse", functionResponse=GEMINI_RESULT),
)
# An OpenAPI schema: without additionalProperties, $ref and lists of types.
GEMINI_SCHEMA: Body = strict(
    type=TEXT,
    format=TEXT,
    title=TEXT,
    description=TEXT,
    nullable=FLAG,
    enum=TEXTS,
    items={"$ref": "#/$defs/schema"},
    properties={"type": "object", "additionalProperties": {"$ref": "#/$defs/schema"}},
    required=TEXTS,
    anyOf=array({"$ref": "#/$defs/schema"}),
    minimum=NUMBER,
    maximum=NUMBER,
    minItems=INTEGER,
    maxItems=INTEGER,
)
GEMINI = {
    **strict(
        "contents",
        contents=array(
            strict("role parts", role={"enum": ["user", "model"]}, parts=array(GEMINI_PART))
        ),
        systemInstruction=strict("parts", parts=array(strict("text", text=FILLED))),
        tools=array(
            strict(
                functionDeclarations=array(
                    strict(
                        "name",
                        name=FILLED,
                        description=TEXT,
                        parameters={"$ref": "#/$defs/schema"},
                        parametersJsonSchema=OBJECT,
                    )
                )
            )
        ),
        toolConfig=strict(
            functionCallingConfig=strict(
                mode={"enum": ["AUTO", "ANY", "NONE"]}, allowedFunctionNames=TEXTS
            )
        ),
        generationConfig=strict(
            temperature=NUMBER,
            topP=NUMBER,
            topK=INTEGER,
            maxOutputTokens=INTEGER,
            stopSequences=TEXTS,
            seed=INTEGER,
            presencePenalty=NUMBER,
            frequencyPenalty=NUMBER,
            responseMimeType={"enum": ["text/plain", "application/json"]},
            responseSchema={"$ref": "#/$defs/schema"},
            responseJsonSchema=OBJECT,
            thinkingConfig=strict(thinkingBudget=INTEGER, includeThoughts=FLAG),
        ),
    ),
    "$defs": {"schema": GEMINI_SCHEMA},
}

COHERE_CONTENT = array(
    either(
        strict("type text", type=const("text"), text=TEXT),
        strict(
            "type image_url",
            type=const("image_url"),
            image_url=strict("url", url=FILLED, detail=TEXT),
        ),
    )
)
COHERE = strict(
    "model messages",
    model=FILLED,
    messages=array(
        either(
            strict("role content", role=const("system"), content=FILLED),
            strict("role content", role=const("user"), content=either(FILLED, COHERE_CONTENT)),
            strict(
                "role",
                role=const("assistant"),
                content=FILLED,
                tool_plan=TEXT,
                tool_calls=array(
                    strict(
                        "id type function",
                        id=FILLED,
                        type=const("function"),
                        function=strict("name arguments", name=FILLED, arguments=FILLED),
                    )
                ),
            ),
            strict(
                "role tool_call_id content",
                role=const("tool"),
                tool_call_id=FILLED,
                content=TEXT,
            ),
        )
    ),
    tools=array(
        strict(
            "type function",
            type=const("function"),
            function=strict("name parameters", name=FILLED, description=TEXT, parameters=OBJECT),
        )
    ),
    tool_choice={"enum": ["REQUIRED", "NONE"]},
    response_format=either(
        strict("type", type=const("text")),
        strict("type", type=const("json_object"), json_schema=OBJECT),
    ),
    thinking=strict("type", type={"enum": ["enabled", "disabled"]}, token_budget=INTEGER),
    stream=FLAG,
    max_tokens=INTEGER,
    temperature=NUMBER,
    p=NUMBER,
    k=INTEGER,
    seed=INTEGER,
    stop_sequences=TEXTS,
    frequency_penalty=NUMBER,
    presence_penalty=NUMBER,
)
SCHEMAS = {"ollama": OLLAMA, "anthropic": ANTHROPIC, "gemini": GEMINI, "cohere": COHERE}


def problems(product: str, body: Body) -> list[str]:
    """The reasons for which a product would reject a request."""
    validator = jsonschema.Draft202012Validator(SCHEMAS[product])
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in validator.iter_errors(body)
    ]
    return found or RULES[product](body)


def alternation(turns: list[Body], first: str = "user") -> list[str]:
    roles = [turn["role"] for turn in turns]
    if roles[0] != first:
        return [f"the first role is {roles[0]}"]
    same = [n for n, pair in enumerate(pairwise(roles)) if pair[0] == pair[1]]
    return [f"the turns {n} and {n + 1} have one role" for n in same]


def blocks(turn: Body, type: str) -> list[Body]:
    content = turn["content"]
    return [block for block in content if block["type"] == type] if type and content else []


def anthropic_rules(body: Body) -> list[str]:
    found = alternation(body["messages"])
    for turn, after in zip(body["messages"], [*body["messages"][1:], None], strict=True):
        if isinstance(turn["content"], str):
            continue
        calls = {block["id"] for block in blocks(turn, "tool_use")}
        results = set()
        if after is not None and not isinstance(after["content"], str):
            results = {block["tool_use_id"] for block in blocks(after, "tool_result")}
        if calls != results:
            found.append(f"calls {calls} have the results {results}")
        types = [block["type"] == "tool_result" for block in turn["content"]]
        if types != sorted(types, reverse=True):
            found.append("tool results come after other blocks")
    return found


def gemini_rules(body: Body) -> list[str]:
    found = alternation(body["contents"])
    pending: list[str] = []
    for turn in body["contents"]:
        calls = [part for part in turn["parts"] if "functionCall" in part]
        results = [
            part["functionResponse"]["name"] for part in turn["parts"] if "functionResponse" in part
        ]
        if results != pending:
            found.append(f"the calls of {pending} have the results {results}")
        pending = [part["functionCall"]["name"] for part in calls]
        if calls and "thoughtSignature" not in calls[0]:
            found.append("the first call is missing a thought_signature")
    return found


def cohere_rules(body: Body) -> list[str]:
    calls: set[str] = set()
    found: list[str] = []
    for message in body["messages"]:
        calls |= {call["id"] for call in message.get("tool_calls", [])}
        if message["role"] == "tool" and message["tool_call_id"] not in calls:
            found.append(f"no call has the id {message['tool_call_id']}")
        if message["role"] == "assistant" and len(message) == 1:
            found.append("an empty message of the assistant")
    return found


def ollama_rules(body: Body) -> list[str]:
    names = {call["function"]["name"] for m in body["messages"] for call in m.get("tool_calls", [])}
    results = {m.get("tool_name") for m in body["messages"] if m["role"] == "tool"}
    return [] if results <= names else [f"results of {results}, and calls of {names}"]


RULES: dict[str, Callable[[Body], list[str]]] = {
    "ollama": ollama_rules,
    "anthropic": anthropic_rules,
    "gemini": gemini_rules,
    "cohere": cohere_rules,
}
