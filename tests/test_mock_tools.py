"""The mock's tool calls, and OpenAI's checks of schemas."""

import json
from copy import deepcopy
from typing import Any

import pytest
from growth import LINEAR, growth
from mock_schemas import REAL, Invoice, Node, problems
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel

from rewrap.mock.budget import SchemaError
from rewrap.mock.strict import check_function_parameters, check_strict
from rewrap.mock.tools import Call, call_id, choose_calls, choose_function, reply_after_tools

Message = dict[str, Any]


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING = {"type": "string"}
WEATHER = function("get_weather", city=STRING)
FORECAST = function("get_weather_forecast", city=STRING, days={"type": "integer"})
TIME = function("getTime", city=STRING)
NOTHING: dict[str, Any] = {"type": "function", "function": {"name": "ping"}}
TOOLS = [WEATHER, FORECAST, TIME, NOTHING]


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def called(*names: str) -> Message:
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in names
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(name: str, content: Any) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{name}", "content": content}


def choose(*messages: Message, tools: Any = None, **options: Any) -> list[tuple[str, Any]]:
    calls = choose_calls([*messages], tools or TOOLS, **options)
    return [(call.name, json.loads(call.arguments)) for call in calls]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Use get_weather for Paris", [("get_weather", {"city": "Paris"})]),
        ("Get weather in Paris!", [("get_weather", {"city": "Paris"})]),
        ("getWeather in 'Paris'", [("get_weather", {"city": "Paris"})]),
        ("GET_WEATHER", [("get_weather", {"city": "city"})]),
        (
            "get weather forecast for Paris, 3 days",
            [("get_weather_forecast", {"city": "Paris", "days": 3})],
        ),
        (
            "get weather for Paris and get time in Rome",
            [("get_weather", {"city": "Paris"}), ("getTime", {"city": "Rome"})],
        ),
        (
            "get weather and get time for Paris",
            [("get_weather", {"city": "Paris"}), ("getTime", {"city": "Paris"})],
        ),
        (
            "get weather for Paris and get weather for Rome",
            [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})],
        ),
        ("get weather, not get time, for Paris", [("get_weather", {"city": "Paris"})]),
        ("get weather rather than get time", [("get_weather", {"city": "city"})]),
        ("ping", [("ping", {})]),
        ("What is the weather?", []),
        ("pinging", []),
        ("", []),
    ],
)
def test_auto_calls_the_tools_that_the_user_names(text: str, expected: Any) -> None:
    assert choose(user(text)) == expected
    assert choose(user(text), tool_choice="auto") == expected
    assert choose(user([{"type": "text", "text": text}, {"type": "image_url"}])) == expected


def test_only_the_last_user_message_names_tools() -> None:
    assert choose(user("get weather in Paris"), called("x"), user("Thanks")) == []
    assert choose(user("Hello"), user("get time in Rome")) == [("getTime", {"city": "Rome"})]


def test_one_call_without_parallel_tool_calls() -> None:
    found = choose(user("get weather in Paris and get time in Rome"), parallel_tool_calls=False)
    assert found == [("get_weather", {"city": "Paris"})]


def test_none_makes_no_call() -> None:
    assert choose(user("get weather in Paris"), tool_choice="none") == []
    assert choose_calls([user("ping")], []) == []


def test_required_and_named_choices_make_a_call_at_each_request() -> None:
    assert choose(user("Hi"), tool_choice="required") == [("get_weather", {"city": "city"})]
    assert choose(user("get time"), tool_choice="required") == [("getTime", {"city": "city"})]
    assert choose(user("get time"), tool_choice=named("ping")) == [("ping", {})]
    again = [user("Hi"), called("ping"), result("ping", "pong")]
    assert choose(*again, tool_choice=named("ping")) == [("ping", {})]


def test_required_after_a_result_prefers_a_tool_that_was_not_called_yet() -> None:
    tools = [WEATHER, function("final_result", city=STRING, degrees={"type": "integer"})]
    turn = [user("get weather in Paris"), called("get_weather"), result("get_weather", "22")]
    expected = [("final_result", {"city": "Paris", "degrees": 22})]
    assert choose(*turn, tools=tools, tool_choice="required") == expected
    turn = [user("Hi"), called("final_result"), result("final_result", "no")]
    assert choose(*turn, tools=tools, tool_choice="required")[0][0] == "get_weather"
    turn += [called("get_weather"), result("get_weather", "22")]
    assert choose(*turn, tools=tools, tool_choice="required")[0][0] == "final_result"


def test_allowed_tools_narrow_the_choice() -> None:
    def allowed(mode: str, *names: str) -> dict[str, Any]:
        tools = [named(name) for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    text = user("get weather and ping")
    assert choose(text, tool_choice=allowed("auto", "ping")) == [("ping", {})]
    assert choose(user("Hi"), tool_choice=allowed("auto", "ping")) == []
    assert choose(user("Hi"), tool_choice=allowed("required", "getTime"))[0][0] == "getTime"
    assert choose(text, tool_choice=allowed("required")) == []


def test_choice_of_a_missing_tool_is_refused_as_by_openai() -> None:
    with pytest.raises(SchemaError) as refused:
        choose(user("Hi"), tool_choice=named("other"))
    assert refused.value.message == "Tool choice 'other' not found in 'tools' parameter."
    assert refused.value.param == "tool_choice"


def test_auto_answers_in_text_after_a_result() -> None:
    turn = [
        user("get weather in Paris and get time in Rome"),
        called("get_weather", "getTime"),
        result("get_weather", "22 degrees"),
        result("getTime", [{"type": "text", "text": "12:00"}]),
    ]
    assert choose(*turn) == []
    reply = reply_after_tools(turn)
    assert reply == "get_weather returned: 22 degrees\ngetTime returned: 12:00"
    assert reply_after_tools([*turn, {"role": "system", "content": "Be short."}]) == reply
    assert choose(*turn, {"role": "system", "content": "get time"}) == []
    assert reply_after_tools(turn[:1]) is None
    assert reply_after_tools(turn[:2]) is None
    assert reply_after_tools([*turn, user("Thanks")]) is None
    assert reply_after_tools([]) is None


def test_reply_has_the_results_of_the_last_calls_only() -> None:
    turn = [user("Hi"), called("a"), result("a", "one"), called("b"), result("b", "two")]
    assert reply_after_tools(turn) == "b returned: two"


def test_result_of_a_call_that_is_not_known_stands_in_the_reply() -> None:
    assert reply_after_tools([result("x", "lost")]) == "The tool returned: lost"


def test_next_turn_may_call_the_same_tool_again() -> None:
    turn = [user("ping"), called("ping"), result("ping", "pong"), user("ping")]
    assert choose(*turn) == [("ping", {})]


def test_loop_of_an_agent_ends_by_itself() -> None:
    messages = [user("get weather in Paris and get time in Rome")]
    for _ in range(5):
        calls = choose_calls(messages, TOOLS)
        if not calls:
            break
        messages.append(called(*(call.name for call in calls)))
        messages += [result(call.name, "done") for call in calls]
    assert len(messages) == 4
    assert "getTime returned: done" in str(reply_after_tools(messages))


def test_arguments_are_valid_for_all_schemas_of_real_tools() -> None:
    for schema in REAL.values():
        tool = {"type": "function", "function": {"name": "t", "parameters": schema}}
        (call,) = choose_calls([user("Hi")], [tool], "required")
        assert problems(schema, json.loads(call.arguments)) == []
        assert choose_calls([user("Hi")], [tool], "required") == [call]


def test_schema_of_a_tool_without_a_value_is_refused_with_its_position() -> None:
    bad = function("bad", x={"type": "str"})
    with pytest.raises(SchemaError) as refused:
        choose(user("bad"), tools=[WEATHER, bad])
    message = (
        "Invalid schema for function 'bad': 'str' is not valid under any of the given schemas."
    )
    assert refused.value.message == message
    assert refused.value.param == "tools[1].function.parameters"
    assert refused.value.code == "invalid_function_parameters"


def test_tools_may_be_flat_as_in_the_responses_api() -> None:
    tools = [{"type": "function", "name": "ping", "parameters": None}, {"type": "web_search"}]
    assert choose(user("ping"), tools=tools) == [("ping", {})]
    choice = {"type": "function", "name": "ping"}
    assert choose(user("Hi"), tools=tools, tool_choice=choice) == [("ping", {})]


def test_custom_tools_get_the_prompt_or_a_text_of_their_grammar() -> None:
    code: dict[str, Any] = {"type": "custom", "custom": {"name": "run_code"}}
    assert choose_calls([user("run code: 1 + 1")], [code]) == [
        Call("run_code", "run code: 1 + 1", "custom")
    ]
    grammar = {"syntax": "regex", "definition": r"\d{4}-[A-Z]{2}"}
    code["custom"]["format"] = {"type": "grammar", "grammar": grammar}
    (call,) = choose_calls([user("Hi")], [code], {"type": "custom", "custom": {"name": "run_code"}})
    assert call == Call("run_code", "0123-FG", "custom")


def test_legacy_functions_are_called_one_at_a_time() -> None:
    functions = [WEATHER["function"], TIME["function"]]
    text = [user("get weather in Paris and get time in Rome")]
    assert choose_function(text, functions) == Call("get_weather", '{"city":"Paris"}')
    assert choose_function(text, functions, "none") is None
    assert choose_function([user("Hi")], functions, "auto") is None
    assert choose_function([user("Hi")], functions, {"name": "getTime"}) == Call(
        "getTime", '{"city":"city"}'
    )
    legacy = {"role": "assistant", "function_call": {"name": "getTime", "arguments": "{}"}}
    turn = [*text, legacy, {"role": "function", "name": "getTime", "content": "12:00"}]
    assert choose_function(turn, functions) is None
    assert reply_after_tools(turn) == "getTime returned: 12:00"


def test_ids_of_calls_depend_on_the_position_and_the_seed_alone() -> None:
    ids = [call_id(0, "a"), call_id(1, "a"), call_id(0, "b")]
    assert len({*ids}) == 3
    assert ids[0] == call_id(0, "a")
    assert all(len(name) == 29 and name.startswith("call_") for name in ids)


def test_time_to_choose_grows_linearly_with_the_text_and_the_tools() -> None:
    def asked(size: int) -> tuple[Any, Any]:
        tools = [function(f"tool_{index}") for index in range(size)]
        messages = [user("get tool and " * size), *[user("tool") for _ in range(size)]]
        return [*messages, user("tool 5 and " * size)], tools

    assert growth(asked, lambda made: choose_calls(*made), 150) < LINEAR


# Strict mode.


def strict(**properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return schema | {"additionalProperties": False}


def without(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != keyword}


def problem_of(schema: Any) -> str:
    with pytest.raises(SchemaError) as refused:
        check_strict(schema, "x")
    message = refused.value.message
    assert message.startswith("Invalid schema for response_format 'x': ")
    assert (refused.value.param, refused.value.code) == ("response_format", None)
    return message.removeprefix("Invalid schema for response_format 'x': ")


OPEN = "'additionalProperties' is required to be supplied and to be false."
REQUIRED = (
    "'required' is required to be supplied and to be an array including every key in properties."
)
A = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (without(strict(a=A), "additionalProperties"), f"In context=(), {OPEN}"),
        (strict(a=A) | {"additionalProperties": True}, f"In context=(), {OPEN}"),
        (strict(a={"type": "object", "properties": {}}), f"In context=('properties', 'a'), {OPEN}"),
        (strict(a=A) | {"required": []}, f"In context=(), {REQUIRED} Missing 'a'."),
        (without(strict(a=A), "required"), f"In context=(), {REQUIRED} Missing 'a'."),
        (
            strict(a=A) | {"required": ["a", "b"]},
            f"In context=(), {REQUIRED} Extra required key 'b' supplied.",
        ),
        (strict(a={}), f"In context=(), {REQUIRED} Extra required key 'a' supplied."),
        (
            strict(a={"type": "object", "additionalProperties": A}),
            f"In context=(), {REQUIRED} Extra required key 'a' supplied.",
        ),
        (
            strict(a={"type": "array", "items": strict(b=A) | {"required": []}}),
            f"In context=('properties', 'a', 'items'), {REQUIRED} Missing 'b'.",
        ),
        (
            strict(a={"anyOf": [A, without(strict(b=A), "additionalProperties")]}),
            f"In context=('properties', 'a', 'anyOf', '1'), {OPEN}",
        ),
        (
            strict(a={"title": "A"}),
            "In context=('properties', 'a'), schema must have a 'type' key.",
        ),
        (
            strict(a={"const": 1}, b={"type": "array"}),
            "In context=('properties', 'a'), schema must have a 'type' key.",
        ),
        (strict(a={"const": 1}), "In context=('properties', 'a'), schema must have a 'type' key."),
        (
            strict(a={"type": "array"}),
            "In context=('properties', 'a'), array schema missing items.",
        ),
        (
            strict(a={"type": "array", "prefixItems": [A], "minItems": 1}),
            "In context=('properties', 'a'), array schema missing items.",
        ),
        (
            strict(a={"type": ["string", "array"]}),
            "In context=('properties', 'a', 'type', '1'), array schema missing items.",
        ),
        (
            strict(a={"type": ["string", "null"], "format": "uri"}),
            "In context=('properties', 'a', 'type', '0'), 'uri' is not a valid format.",
        ),
        (strict() | {"oneOf": [A]}, "In context=(), 'oneOf' is not permitted."),
        (
            strict(a={"allOf": [A]}),
            "In context=('properties', 'a'), 'allOf' is not permitted.",
        ),
        (
            strict(a={"type": "array", "items": A, "uniqueItems": True}),
            "In context=('properties', 'a'), 'uniqueItems' is not permitted.",
        ),
        (
            strict(a={"type": "object", "propertyNames": A, "additionalProperties": A}),
            "In context=('properties', 'a'), 'propertyNames' is not permitted.",
        ),
        (
            strict(a={"$ref": "#/$defs/b", "description": "x", "default": 1}) | {"$defs": {"b": A}},
            "context=('properties', 'a'), $ref cannot have keywords {'default', 'description'}.",
        ),
        (
            strict(a={"$ref": "#/properties/b"}, b=A),
            "In context=('properties', 'a'), reference can only point to definitions defined at the"
            " top level of the schema.",
        ),
        (
            strict(a={"$ref": "#/$defs/b"}) | {"$defs": {"b": without(strict(c=A), "required")}},
            f"In context=(), {REQUIRED} Missing 'c'.",
        ),
        (
            {"type": "array", "items": A},
            "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"array\"'.",
        ),
        (
            {"anyOf": [A]},
            "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"None\"'.",
        ),
        (
            strict(a=A) | {"anyOf": [A]},
            "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the"
            " top level.",
        ),
        (
            strict(**{f"p{index}": A for index in range(5001)}),
            "5001 parameters exceeds limit of 5000.",
        ),
        (
            strict(a={"type": "string", "enum": [str(index) for index in range(1001)]}),
            "Expected at most 1000 enum values in total within a single schema when using structured"
            " outputs, but received 1001.",
        ),
    ],
)
def test_strict_mode_refuses_as_openai(schema: Any, problem: str) -> None:
    assert problem_of(schema) == problem


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = A
    for level in range(levels):
        schema = {"type": "array", "items": schema} if level % 2 else strict(a=schema)
    return strict(a=schema)


def test_strict_mode_allows_ten_levels() -> None:
    check_strict(deep(9), "x")
    assert problem_of(deep(10)) == "11 levels of nesting exceeds limit of 10."


def test_strict_mode_refuses_lookaround_in_patterns() -> None:
    schema = strict(a={"type": "array", "items": {"type": "string", "pattern": r"^(?!x)\w+$"}})
    with pytest.raises(SchemaError) as refused:
        check_strict(schema, "x")
    found = "Found at $.properties.a.items.pattern."
    assert (
        refused.value.message == f"Invalid JSON schema: regex lookaround is not supported. {found}"
    )
    assert refused.value.code == "invalid_json_schema"
    check_strict(strict(a={"type": "string", "pattern": r"^\(?!(?:x)$"}), "x")


def test_strict_mode_accepts_what_openai_accepts() -> None:
    schema = strict(
        a={"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a", "default": "a"},
        b={"type": ["integer", "null"], "minimum": 1, "multipleOf": 2, "enum": [2, None]},
        c={"type": "array", "items": {"$ref": "#"}, "minItems": 0, "title": "C"},
        d={"anyOf": [{"$ref": "#/$defs/d"}, {"type": "null"}], "description": "D"},
        e={"type": "string", "format": "date-time", "examples": ["x"]},
        f={"type": ["object", "null"], "properties": {}, "additionalProperties": False},
    )
    check_strict(schema | {"$defs": {"d": strict(x=A)}}, "x")


def test_strict_mode_accepts_what_the_sdk_makes_of_models() -> None:
    check_strict(to_strict_json_schema(Node), "Node")
    check_strict(to_strict_json_schema(Plan), "Plan")
    with pytest.raises(SchemaError):
        check_strict(Plan.model_json_schema(), "Plan")


class Step(BaseModel):
    text: str
    next: "Step | None" = None


class Plan(BaseModel):
    steps: list[Step]
    best: Step
    score: float = 0.5


def test_functions_are_refused_with_their_position() -> None:
    with pytest.raises(SchemaError) as refused:
        check_strict(
            without(strict(a=A), "required"),
            "f",
            kind="function",
            param="tools[2].function.parameters",
            code="invalid_function_parameters",
        )
    error = refused.value
    assert error.message == (
        f"Invalid schema for function 'f': In context=(), {REQUIRED} Missing 'a'."
    )
    assert error.param == "tools[2].function.parameters"
    assert error.code == "invalid_function_parameters"


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object"}, "In context=(), object schema missing properties."),
        (
            {"oneOf": [A]},
            "schema must be a JSON Schema of 'type: \"object\"', got 'type: \"None\"'.",
        ),
        (
            {"type": "object", "properties": {}, "oneOf": [A]},
            "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the"
            " top level.",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "array"}}},
            "In context=('properties', 'a'), array schema missing items.",
        ),
    ],
)
def test_parameters_of_any_function_are_checked(schema: Any, problem: str) -> None:
    with pytest.raises(SchemaError) as refused:
        check_function_parameters(schema, "f", "tools[0].function.parameters")
    assert refused.value.message == f"Invalid schema for function 'f': {problem}"


def test_parameters_that_are_not_strict_are_accepted() -> None:
    check_function_parameters(Invoice.model_json_schema(), "f", "tools[0].function.parameters")


def test_checks_leave_the_schema_as_it_was() -> None:
    schema = to_strict_json_schema(Plan)
    before = deepcopy(schema)
    check_strict(schema, "Plan")
    assert schema == before


def test_time_of_the_checks_grows_linearly() -> None:
    def nested(size: int) -> dict[str, Any]:
        schema = strict(**{f"p{index}": {"type": ["string", "null"]} for index in range(size)})
        deeper: dict[str, Any] = A
        for _ in range(size // 10):
            deeper = {"anyOf": [deeper]}
        schema["properties"]["p0"] = deeper
        return schema

    assert growth(nested, lambda schema: check_strict(schema, "x"), 500) < LINEAR
