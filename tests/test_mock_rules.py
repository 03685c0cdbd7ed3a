"""The rules of the mock: each condition, each action, counting, loading, and what agents must never run into."""

import logging
import os
import re
import time
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.mock.answers import VALUES, RuleAnswer, TextFiller, answer_deltas
from rewrap.mock.errors import CATALOGUE
from rewrap.mock.facts import Facts, lane_of
from rewrap.mock.rules import RuleSet
from rewrap.mock.safe_regex import SafePattern
from rewrap.mock.script import Script
from rewrap.mock.steps import has_placeholders
from rewrap.types import APIError, ChatRequest, Delta

Message = dict[str, Any]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
BOOK = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def says(content: str) -> Message:
    return {"role": "assistant", "content": content}


def calls(*tools: str) -> Message:
    """An assistant message with a call of each tool; the ids are the names."""
    made = [
        {"id": f"id_{t}", "type": "function", "function": {"name": t, "arguments": "{}"}}
        for t in tools
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(tool: str, content: str = "done") -> Message:
    return {"role": "tool", "tool_call_id": f"id_{tool}", "content": content}


def facts(
    *messages: Message | str,
    headers: dict[str, str] | None = None,
    api: str = "chat",
    **payload: Any,
) -> Facts:
    chat = [user(m) if isinstance(m, str) else m for m in messages]
    model = payload.pop("model", "gpt-4o")
    return Facts(
        model, chat, {"model": model, "messages": chat, **payload}, api=api, headers=headers
    )


def request(*messages: Message | str, **payload: Any) -> ChatRequest:
    view = facts(*messages, **payload)
    return ChatRequest(view.model, view.messages, view.payload)


def rules(*tables: Any) -> RuleSet:
    made = RuleSet()
    made.add(list(tables))
    return made


def rule(when: Any = None, then: Any = "yes", **members: Any) -> dict[str, Any]:
    return {"when": {} if when is None else when, "then": then, **members}


def text(rule_set: RuleSet, view: Facts) -> str | None:
    """The text of the answer, None without a match."""
    answer = rule_set.match(view)
    return answer.text if answer else None


def matches(when: Any, view: Facts) -> bool:
    return text(rules(rule(when)), view) == "yes"


# Conditions.

SCHEMA = {"type": "json_schema", "json_schema": {"name": "Weather", "schema": {}}}
TURNS = [user("one"), says("1"), user("two"), says("2"), user("three")]
CASES: dict[str, tuple[Any, Facts, Facts]] = {  # condition, a request that matches, one that does not
    "everything": ({}, facts("Hi"), None),
    "a text is the exact message": ("Hi", facts("Hi"), facts("Hi!")),
    "model": ({"model": "gpt-4o"}, facts("Hi"), facts("Hi", model="gpt-4o-mini")),
    "model with a star": ({"model": "gpt-*"}, facts("Hi"), facts("Hi", model="o3")),
    "model with a question mark": ({"model": "o?"}, facts("Hi", model="o3"), facts("Hi", model="o3x")),
    "model with brackets is no pattern": ({"model": "m[1]"}, facts("Hi", model="m[1]"), facts("Hi", model="m1")),
    "one of several models": ({"model": ["a", "b*"]}, facts("Hi", model="b2"), facts("Hi", model="ab")),
    "api": ({"api": "responses"}, facts("Hi", api="responses"), facts("Hi")),
    "one of several apis": ({"api": ["ask", "chat"]}, facts("Hi"), facts("Hi", api="embeddings")),
    "message": ({"message": "Hi"}, facts("no", says("x"), "Hi"), facts("Hi", says("x"), "no")),
    "one of several messages": ({"message": ["a", "b"]}, facts("b"), facts("c")),
    "message, parts": ({"message": "a\nb"}, facts(user([{"type": "text", "text": x} for x in "ab"])), facts("a")),
    "message, exact in a table": ({"message": {"exact": "Hi"}}, facts("Hi"), facts("Hi Hi")),
    "message contains": ({"message": {"contains": "Rom"}}, facts("In Rome"), facts("In Paris")),
    "message contains all": ({"message": {"contains": ["a", "b"]}}, facts("ab"), facts("a")),
    "message, regex": ({"message": {"regex": r"^in (\w+)$"}}, facts("in Rome"), facts("in  Rome")),
    "message, regex and contains": ({"message": {"regex": "o", "contains": "m"}}, facts("Rome"), facts("Oslo o")),
    "no user message": ({"message": ""}, facts(says("x")), facts("x")),
    "any message": ({"any_message": "two"}, facts(*TURNS), facts("one", says("x"), "three")),
    "any message, of the system": ({"any_message": "s"}, facts({"role": "system", "content": "s"}), facts("x")),
    "system": ({"system": {"contains": "pirate"}}, facts({"role": "system", "content": "a pirate"}), facts("pirate")),
    "developer is system": ({"system": "d"}, facts({"role": "developer", "content": "d"}, "x"), facts("x")),
    "turn": ({"turn": 3}, facts(*TURNS), facts("one")),
    "turn, at least": ({"turn": {"min": 2}}, facts(*TURNS), facts("one")),
    "turn, at most": ({"turn": {"max": 2}}, facts("one"), facts(*TURNS)),
    "call": ({"call": 2}, facts("x", calls("a"), result("a")), facts("x")),
    "tool offered": ({"tools": "book"}, facts("x", tools=[WEATHER, BOOK]), facts("x", tools=[WEATHER])),
    "tools offered, all": ({"tools": ["book", "get_weather"]}, facts("x", tools=[BOOK, WEATHER]), facts("x", tools=[BOOK])),
    "a function of the old form is offered": ({"tools": "f"}, facts("x", functions=[{"name": "f"}]), facts("x")),
    "no tool offered": ({"tools": []}, facts("x"), facts("x", tools=[BOOK])),
    "tool result": ({"tool_result": "a"}, facts("x", calls("a"), result("a")), facts("x", calls("b"), result("b"))),
    "any tool result": ({"tool_result": True}, facts("x", calls("a"), result("a")), facts("x")),
    "no tool result": ({"tool_result": False}, facts("x"), facts("x", calls("a"), result("a"))),
    "tool result contains": (
        {"tool_result": {"tool": "a", "contains": "sun"}},
        facts("x", calls("a"), result("a", "sunny")),
        facts("x", calls("a"), result("a", "rain")),
    ),
    "tool result of any tool contains": (
        {"tool_result": {"contains": "sun"}},
        facts("x", calls("a", "b"), result("a"), result("b", "sunny")),
        facts("sun", calls("a"), result("a", "rain")),
    ),
    "function result of the old form": (
        {"tool_result": "f"},
        facts("x", {"role": "function", "name": "f", "content": "1"}),
        facts("x", {"role": "function", "name": "g", "content": "1"}),
    ),
    "format text": ({"response_format": "text"}, facts("x"), facts("x", response_format=SCHEMA)),
    "format json_schema": ({"response_format": "json_schema"}, facts("x", response_format=SCHEMA), facts("x")),
    "format json_object": (
        {"response_format": "json_object"},
        facts("x", response_format={"type": "json_object"}),
        facts("x", response_format=SCHEMA),
    ),
    "format by the name of its schema": (
        {"response_format": {"name": "Weather"}},
        facts("x", response_format=SCHEMA),
        facts("x", response_format={"type": "json_schema", "json_schema": {"name": "Other"}}),
    ),
    "user": ({"user": "ann"}, facts("x", user="ann"), facts("x", user="bob")),
    "header": ({"header": {"X-Team": "red"}}, facts("x", headers={"x-team": "red"}), facts("x")),
    "header contains": (
        {"header": {"user-agent": {"contains": "Python"}}},
        facts("x", headers={"user-agent": "OpenAI/Python 3"}),
        facts("x", headers={"user-agent": "OpenAI/JS"}),
    ),
    "two headers": (
        {"header": {"a": "1", "b": "2"}},
        facts("x", headers={"a": "1", "b": "2"}),
        facts("x", headers={"a": "1", "b": "3"}),
    ),
    "lane": ({"lane": "one"}, facts("x", headers={"x-mock-lane": "one"}), facts("x", user="two")),
    "several conditions": (
        {"model": "gpt-4o", "message": {"contains": "a"}, "turn": 1},
        facts("a"),
        facts("a", model="o3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_condition_holds_for_one_request_and_not_for_the_other(name: str) -> None:
    when, fitting, other = CASES[name]
    assert matches(when, fitting)
    assert other is None or not matches(when, other)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2]])
def test_the_difference_of_a_miss_names_the_condition(name: str) -> None:
    when, _, other = CASES[name]
    field = "message" if isinstance(when, str) else next(iter(when))
    if name == "several conditions":
        field = "model"
    report = rules(rule(when, name="mine")).nearest(other)
    assert report.startswith(f"Nearest is mine: {field}")
    assert "\n" not in report


def test_nth_counts_the_times_that_the_other_conditions_hold() -> None:
    made = rules(rule({"message": "a", "nth": 2}, "second"), rule({}, "other"))
    seen = [text(made, facts(message)) for message in ("a", "b", "a", "a", "b")]
    assert seen == ["other", "other", "second", "other", "other"]


def test_rules_for_the_first_second_and_third_time_follow_each_other() -> None:
    made = rules(*[rule({"message": "a", "nth": n}, str(n)) for n in (1, 2, 3)])
    assert [text(made, facts("a")) for _ in range(4)] == ["1", "2", "3", None]


def test_the_first_match_wins_in_the_order_of_the_rules() -> None:
    made = rules(rule({"message": {"contains": "a"}}, "contains"), rule("a", "exact"))
    assert text(made, facts("a")) == "contains"
    made = rules(rule("a", "exact"), rule({"message": {"contains": "a"}}, "contains"))
    assert text(made, facts("a")) == "exact"
    assert text(made, facts("ab")) == "contains"


def test_captures_of_a_rule_that_fails_are_not_those_of_the_next() -> None:
    failing = rule({"message": {"regex": "(?P<model>.+)"}, "turn": 9})
    assert text(rules(failing, rule({}, "{model}")), facts("Hi")) == "gpt-4o"


def test_a_message_that_is_listed_twice_counts_once() -> None:
    made = rules(rule({"message": ["a", "a"], "nth": 2}, "second"))
    assert [text(made, facts("a")) for _ in range(3)] == [None, "second", None]


def test_priority_goes_before_the_order() -> None:
    made = rules(rule("a", "low"), rule({}, "high", priority=1), rule("a", "lowest", priority=-1))
    assert text(made, facts("a")) == "high"


def test_times_ends_a_rule() -> None:
    made = rules(rule("a", "first", times=2), rule("a", "then"))
    assert [text(made, facts("a")) for _ in range(4)] == ["first", "first", "then", "then"]


def test_the_last_step_of_a_sequence_repeats() -> None:
    made = rules(rule("a", ["1", "2", "3"]))
    assert [text(made, facts("a")) for _ in range(5)] == ["1", "2", "3", "3", "3"]


def test_a_sequence_ends_where_the_rule_says_so() -> None:
    made = rules(rule("a", ["1", "2"], ends=True), rule("a", "other"))
    assert [text(made, facts("a")) for _ in range(4)] == ["1", "2", "other", "other"]


def test_reset_starts_all_counts_again_and_drops_added_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nwhen = "a"\nthen = ["1", "2"]')
    made = RuleSet.load(file)
    made.add([rule("b", "added")])
    assert [text(made, facts(m)) for m in ("a", "a", "b")] == ["1", "2", "added"]
    made.reset()
    assert [text(made, facts(m)) for m in ("a", "b")] == ["1", None]


def test_added_rules_go_before_those_of_files(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nwhen = "a"\nthen = "file"')
    made = RuleSet.load(file)
    made.add([rule("a", "added")])
    assert text(made, facts("a")) == "added"


# Lanes: tests that run side by side.


def test_each_lane_counts_for_itself() -> None:
    made = rules(rule("a", ["1", "2"], times=2))
    one = facts("a", headers={"x-mock-lane": "one"})
    two = facts("a", headers={"x-mock-lane": "two"})
    assert [text(made, view) for view in (one, two, two, one, one, two)] == [
        "1",
        "1",
        "2",
        "2",
        None,
        None,
    ]


def test_the_lane_is_the_header_then_the_user_then_the_key() -> None:
    assert lane_of({"x-mock-lane": "l"}, {"user": "u"}, "k") == "l"
    assert lane_of({}, {"user": "u"}, "k") == "u"
    assert lane_of({}, {}, "k") == "k"
    assert lane_of({}, {}) == ""
    assert len(lane_of({}, {"user": "u" * 10**6})) == 200


def test_parallel_requests_take_the_steps_in_order_of_arrival() -> None:
    steps = [str(number) for number in range(400)]
    made = rules(rule("a", steps))
    taken: list[list[str | None]] = [[], [], [], []]

    def take(into: list[str | None]) -> None:
        into.extend(text(made, facts("a")) for _ in range(100))

    threads = [Thread(target=take, args=[into]) for into in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(step or -1) for own in taken for step in own) == list(range(400))
    assert all(own == sorted(own, key=lambda step: int(step or -1)) for own in taken)


def test_counts_of_many_lanes_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewrap.mock.rules.MAX_COUNTED", 100)
    made = rules(rule("a", ["1", "2"]))
    for number in range(1000):
        text(made, facts("a", user=f"u{number}"))
    assert len(made.state.counts) == 100
    assert text(made, facts("a", user="u999")) == "2"
    assert text(made, facts("a", user="u1")) == "1"
    for number in range(2000, 2300):
        text(made, facts("a", user=f"u{number}"))
        assert text(made, facts("a", user="u999")) == "2"  # in use, so not the oldest


# Agents: turns, calls and tool results.


def test_a_tool_result_of_an_earlier_turn_does_not_match() -> None:
    earlier = [user("x"), calls("a"), result("a", "sunny"), says("It is sunny."), user("and now?")]
    assert not matches({"tool_result": "a"}, facts(*earlier))
    assert not matches({"tool_result": {"contains": "sunny"}}, facts(*earlier))
    assert not matches({"tool_result": True}, facts(*earlier))


def test_a_tool_result_counts_only_at_the_end_of_the_messages() -> None:
    assert not matches({"tool_result": "a"}, facts("x", calls("a"), result("a"), says("thinking")))
    later = facts("x", calls("a"), result("a"), calls("b"), result("b"))
    assert not matches({"tool_result": "a"}, later)
    assert matches({"tool_result": "b"}, later)


def test_the_results_of_parallel_calls_count_together() -> None:
    both = facts("x", calls("a", "b"), result("a"), result("b"))
    assert matches({"tool_result": "a"}, both)
    assert matches({"tool_result": "b"}, both)


def test_the_same_call_id_in_an_earlier_turn_does_not_rename_a_result() -> None:
    first = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "a"}}]}
    second = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "b"}}]}
    answer = {"role": "tool", "tool_call_id": "1", "content": "x"}
    view = facts("x", first, answer, says("y"), "z", second, answer)
    assert matches({"tool_result": "b"}, view)
    assert not matches({"tool_result": "a"}, view)


def test_turn_counts_user_messages_however_many_tool_calls_a_turn_has() -> None:
    turn = [
        user("x"),
        calls("a", "b"),
        result("a"),
        result("b"),
        calls("c"),
        result("c"),
        says("done"),
    ]
    assert facts(*turn, "next").turn == 2
    assert facts(*turn, "next").call == 1
    assert facts(*turn, *turn[:-1]).turn == 2


def test_call_counts_the_answers_within_the_turn() -> None:
    history = [user("x"), says("y"), user("z")]
    assert facts(*history).call == 1
    assert facts(*history, calls("a", "b"), result("a"), result("b")).call == 2
    assert facts(*history, calls("a"), result("a"), says("so"), calls("b"), result("b")).call == 3


def test_adjacent_user_messages_are_one_turn() -> None:
    system = {"role": "system", "content": "s"}
    assert facts(system, user("context"), system, user("prompt"), says("y"), user("next")).turn == 2


def test_a_rule_that_calls_a_tool_does_not_answer_the_result_of_that_tool() -> None:
    made = rules(rule({"message": {"contains": "weather"}}, {"tool": "get_weather"}))
    asked = [user("weather?")]
    answer = made.match(facts(*asked))
    assert answer is not None
    assert answer.tool_calls[0].name == "get_weather"
    assert made.match(facts(*asked, calls("get_weather"), result("get_weather"))) is None
    again = [
        *asked,
        calls("get_weather"),
        result("get_weather"),
        says("sunny"),
        user("weather now?"),
    ]
    assert made.match(facts(*again)) is not None


def test_two_rules_with_tools_do_not_call_each_others_tools_for_ever() -> None:
    made = rules(
        rule({"message": {"contains": "weather"}}, {"tool": "get_weather"}),
        rule({"message": {"contains": "trip"}}, {"tool": "book"}),
    )
    conversation = [user("weather for my trip")]
    names = []
    for _ in range(10):
        answer = made.match(facts(*conversation))
        if answer is None:
            break
        name = answer.tool_calls[0].name
        names.append(name)
        conversation += [calls(name), result(name)]
    assert names == ["get_weather", "book"]


def test_a_result_whose_call_is_unknown_ends_the_loop_too() -> None:
    made = rules(rule("x", {"tool": "a"}))
    assert made.match(facts("x", {"role": "tool", "tool_call_id": "lost", "content": "1"})) is None


@pytest.mark.parametrize(
    ("when", "members"),
    [
        ({"message": "x"}, {"on_tool_result": True}),
        ({"message": "x", "tool_result": "a"}, {}),
        ({"message": "x", "tool_result": True}, {}),
        ({"message": "x", "call": 2}, {}),
        ({"message": "x", "call": {"min": 2}}, {}),
    ],
)
def test_a_rule_calls_again_on_the_tool_result_where_it_says_so(when: Any, members: Any) -> None:
    made = rules(rule(when, {"tool": "a"}, **members))
    assert made.match(facts("x", calls("a"), result("a"))) is not None


@pytest.mark.parametrize(
    ("when", "members"),
    [
        ({"message": "x"}, {}),
        ({"message": "x", "tool_result": False}, {}),
        ({"message": "x", "tool_result": "a"}, {"on_tool_result": False}),
        ({"message": "x", "call": {"max": 2}}, {}),
    ],
)
@pytest.mark.parametrize("end", [[], [says("Let me think.")]])
def test_a_rule_does_not_call_again_where_it_says_no_such_thing(
    when: Any, members: Any, end: list[Message]
) -> None:
    made = rules(rule(when, {"tool": "a"}, **members))
    assert made.match(facts("x", calls("a"), result("a"), *end)) is None


def test_a_sequence_goes_on_from_a_tool_call_to_a_text() -> None:
    made = rules(rule("x", [{"tool": "a"}, {"tool": "b"}, "finished"]))
    conversation = [user("x")]
    first = made.match(facts(*conversation))
    conversation += [calls("a"), result("a")]
    second = made.match(facts(*conversation))
    conversation += [calls("b"), result("b")]
    assert first is not None
    assert first.tool_calls[0].name == "a"
    assert second is not None
    assert second.tool_calls[0].name == "b"
    assert text(made, facts(*conversation)) == "finished"


def test_a_text_rule_answers_after_a_tool_result() -> None:
    made = rules(rule({"tool_result": "a"}, "It says {tool_result} ({tool})."))
    assert text(made, facts("x", calls("a"), result("a", "42"))) == "It says 42 (a)."


# Actions.


def answered(then: Any, view: Facts | None = None, when: Any = None) -> RuleAnswer:
    answer = rules(rule(when, then)).match(view or facts("Hi"))
    assert answer is not None
    return answer


def test_a_text_has_captures_and_fields_of_the_request() -> None:
    when = {"message": {"regex": r"\bin (?P<city>\w+)(?: on (?P<day>\w+))?"}}
    view = facts("Rain in Rome?", user="ann")
    then = "{city}/{day}/{model}/{message}/{user}/{turn}/{call}/{api}/{lane}/{{city}"
    assert answered(then, view, when).text == "Rome//gpt-4o/Rain in Rome?/ann/1/1/chat/ann/{city}"


def test_captures_come_from_every_condition_with_a_regex() -> None:
    when = {
        "message": {"regex": "(?P<m>.)"},
        "any_message": {"regex": "(?P<a>z)"},
        "system": {"regex": "(?P<s>.)"},
        "user": {"regex": "(?P<u>.)"},
        "header": {"x-a": {"regex": "(?P<h>.)"}},
        "tool_result": {"regex": "(?P<t>.)"},
    }
    conversation = [{"role": "system", "content": "Sz"}, user("M"), calls("a"), result("a", "T")]
    view = facts(*conversation, user="U", headers={"x-a": "H"})
    assert answered("{m}{a}{s}{u}{h}{t}", view, when).text == "MzSUHT"


def test_placeholders_in_a_text_of_the_client_stay_as_they_are() -> None:
    assert (
        answered("You wrote: {message}", facts("{model} {{ {nothing}")).text
        == "You wrote: {model} {{ {nothing}"
    )


def test_json_keeps_its_types_and_fills_texts() -> None:
    then = {
        "json": {
            "city": "{city}",
            "days": "{days:int}",
            "share": "{days:float}",
            "list": [1, True, "{city}!"],
        }
    }
    when = {"message": {"regex": r"(?P<city>\w+) (?P<days>\w+)"}}
    answer = answered(then, facts("Rome 3"), when)
    assert answer.json == {"city": "Rome", "days": 3, "share": 3.0, "list": [1, True, "Rome!"]}
    answer = answered(then, facts("Rome three"), when)
    assert answer.json == {
        "city": "Rome",
        "days": "three",
        "share": "three",
        "list": [1, True, "Rome!"],
    }


def test_a_group_that_took_no_part_is_an_empty_text() -> None:
    when = {"message": {"regex": r"a(?P<n>\d)?"}}
    assert answered({"json": ["{n:int}", "{n}", "x{n}"]}, facts("a"), when).json == ["", "", "x"]


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5000, "1e999", "nan", "-inf"])
def test_numbers_that_json_cannot_carry_stay_texts(number: str) -> None:
    when = {"message": {"regex": "(?P<n>.+)"}}
    answer = answered({"json": ["{n:int}", "{n:float}"]}, facts(number), when)
    orjson.dumps(answer.json)


def deltas(then: Any, asked: ChatRequest | None = None, **callbacks: Any) -> list[Delta]:
    asked = asked or request("Hi", tools=[WEATHER, BOOK])
    answer = rules(rule({}, then, name="mine")).match(Facts.of(asked))
    assert answer is not None
    return answer_deltas(answer, asked, **callbacks)


def message_of(made: list[Delta], index: int = 0) -> dict[str, Any]:
    """The message, put together as a client does."""
    whole: dict[str, Any] = {"content": "", "calls": {}, "finish": None}
    for delta in made:
        if delta.index != index:
            continue
        whole["content"] += delta.content
        whole["finish"] = delta.finish_reason or whole["finish"]
        for name, value in (delta.fields or {}).items():
            if name != "tool_calls":
                whole[name] = whole.get(name, "") + value
                continue
            for piece in value:
                call = whole["calls"].setdefault(piece["index"], {"arguments": ""})
                call.update({k: piece[k] for k in ("id", "type") if k in piece})
                call.update({k: v for k, v in piece["function"].items() if k == "name"})
                call["arguments"] += piece["function"]["arguments"]
    return whole


def test_a_text_becomes_one_whole_delta_and_an_end() -> None:
    assert deltas("Hello there") == [Delta("Hello there", whole=True), Delta(finish_reason="stop")]


def test_pieces_become_a_delta_each() -> None:
    assert [d.content for d in deltas({"pieces": ["a", "b {model}"]})] == ["a", "b gpt-4o", ""]


def test_json_becomes_its_text() -> None:
    made = message_of(deltas({"json": {"a": [1, "ü"]}}))
    assert made["content"] == '{"a":[1,"ü"]}'
    assert message_of(deltas({"json": []}))["content"] == "[]"


def test_a_tool_call_has_its_arguments_in_pieces_and_a_reason_to_end() -> None:
    then = {"tool": "get_weather", "arguments": {"city": "A city with a name that is long enough"}}
    made = deltas(then)
    message = message_of(made)
    assert message["finish"] == "tool_calls"
    call = message["calls"][0]
    assert orjson.loads(call["arguments"]) == then["arguments"]
    assert (call["name"], call["type"]) == ("get_weather", "function")
    assert re.fullmatch("call_[0-9a-f]{24}", call["id"])
    assert len(made) > 3
    first = (made[0].fields or {})["tool_calls"][0]
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert all(
        d.fields["tool_calls"][0].keys() == {"index", "function"} for d in made[1:-1] if d.fields
    )


def test_large_arguments_come_in_a_bounded_number_of_pieces() -> None:
    made = deltas({"tool": "book", "arguments": {"text": "x" * 100_000}})
    assert len(made) < 70
    assert len(message_of(made)["calls"][0]["arguments"]) > 100_000


def test_several_tool_calls_with_a_text_keep_their_order() -> None:
    rows = [
        {"name": "book", "arguments": {"a": 1}, "id": "call_1"},
        {"name": "get_weather", "arguments": {"city": "R"}},
    ]
    message = message_of(deltas({"text": "Wait", "tool_calls": rows}))
    assert message["content"] == "Wait"
    assert [call["name"] for call in message["calls"].values()] == ["book", "get_weather"]
    assert message["calls"][0]["id"] == "call_1"
    assert message["calls"][1]["id"] != "call_1"


def test_call_ids_are_the_same_for_a_request_and_differ_within_a_conversation() -> None:
    then = {"tool_calls": [{"name": "book"}, {"name": "book"}]}
    first = request("Hi", tools=[BOOK], n=2)
    later = request("Hi", calls("other"), result("other"), tools=[BOOK], n=2)
    found = [
        [message_of(deltas(then, asked), i)["calls"][p]["id"] for i in (0, 1) for p in (0, 1)]
        for asked in (first, later)
    ]
    assert len({*found[0], *found[1]}) == 8
    assert found[0] == [
        message_of(deltas(then, first), i)["calls"][p]["id"] for i in (0, 1) for p in (0, 1)
    ]


def check(schema: dict[str, Any], value: object) -> str:
    try:
        jsonschema.validate(value, schema)
    except jsonschema.ValidationError as error:
        return error.message
    return ""


def test_arguments_are_checked_against_the_schema_offered() -> None:
    good = deltas({"tool": "get_weather", "arguments": {"city": "Rome", "days": 2}}, check=check)
    assert message_of(good)["finish"] == "tool_calls"
    with pytest.raises(APIError) as caught:
        deltas({"tool": "get_weather", "arguments": {"town": "Rome"}}, check=check)
    assert caught.value.status == 400
    assert caught.value.code == "mock_rule_misfit"
    assert "'mine'" in caught.value.message
    assert "'city' is a required property" in caught.value.message


def test_a_tool_that_is_not_offered_is_an_error_that_names_those_offered() -> None:
    with pytest.raises(APIError, match=r"'nothing' is not offered \(offered: get_weather, book\)"):
        deltas({"tool": "nothing"})


def test_check_false_lets_wrong_calls_through() -> None:
    row = {"name": "nothing", "arguments": {"x": 1}, "check": False}
    assert message_of(deltas({"tool_calls": [row]}, check=check))["calls"][0]["name"] == "nothing"


def test_arguments_as_text_go_as_they_are() -> None:
    made = deltas({"tool": "get_weather", "arguments": '{"city": '}, check=check)
    assert message_of(made)["calls"][0]["arguments"] == '{"city": '


def test_absent_arguments_are_made_from_the_schema() -> None:
    def fill(schema: dict[str, Any], prompt: str) -> object:
        return {"city": f"{prompt}/{sorted(schema['properties'])}"}

    made = deltas({"tool": "get_weather"}, request("Rome", tools=[WEATHER]), fill=fill)
    assert orjson.loads(message_of(made)["calls"][0]["arguments"]) == {
        "city": "Rome/['city', 'days']"
    }
    assert message_of(deltas({"tool": "book"}))["calls"][0]["arguments"] == "{}"


def test_arguments_have_captures() -> None:
    made = rules(
        rule(
            {"message": {"regex": "in (?P<city>.+)"}},
            {"tool": "get_weather", "arguments": {"city": "{city}"}},
        )
    )
    asked = request("Weather in Rome", tools=[WEATHER])
    answer = made.match(Facts.of(asked))
    assert answer is not None
    assert message_of(answer_deltas(answer, asked))["calls"][0]["arguments"] == '{"city":"Rome"}'


def test_reasoning_has_both_of_its_names_and_comes_first() -> None:
    made = deltas({"reasoning": "Because of {message}.", "text": "Yes"})
    assert made[0].fields == {"reasoning_content": "Because of Hi.", "reasoning": "Because of Hi."}
    assert made[1].content == "Yes"


def test_a_refusal_is_a_field() -> None:
    assert message_of(deltas({"refusal": "No."}))["refusal"] == "No."


def test_finish_reason_and_usage_are_the_rules() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "cached_tokens": 2, "reasoning_tokens": 3}
    made = deltas({"text": "x", "finish_reason": "length", "usage": usage})
    assert made[-1].finish_reason == "length"
    assert made[-1].usage == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert deltas({"text": "x", "usage": {"prompt_tokens": 5}})[-1].usage == {"prompt_tokens": 5}
    assert deltas("x")[-1].usage is None


def test_each_choice_gets_the_answer() -> None:
    made = deltas("x", request("Hi", n=3))
    assert [(d.index, d.content, d.finish_reason) for d in made if d.content] == [
        (i, "x", None) for i in range(3)
    ]
    assert [d.index for d in made if d.finish_reason] == [0, 1, 2]


def test_model_id_embedding_flags_backend_and_time_are_in_the_answer() -> None:
    answer = answered(
        {
            "text": "x",
            "model": "m2",
            "id": "chatcmpl-1",
            "first_byte_ms": 5,
            "words_per_second": 7,
            "jitter_ms": 1,
        }
    )
    assert (answer.model, answer.id) == ("m2", "chatcmpl-1")
    assert (answer.pace.first_byte_ms, answer.pace.words_per_second, answer.pace.jitter_ms) == (
        5,
        7,
        1,
    )
    view = facts("Hi", api="embeddings")
    assert answered({"embedding": [1, 0.5]}, view).embedding == (1.0, 0.5)
    view = facts("Hi", api="moderations")
    assert answered({"flagged": ["hate", "violence"]}, view).flagged == ("hate", "violence")
    assert answered({"flagged": True}, view).flagged == ("violence",)
    assert answered({"backend": "cloud"}).backend == "cloud"


def test_an_answer_without_content_leaves_the_text_to_the_mock() -> None:
    assert not answered({"words_per_second": 5}).has_content
    assert not answered({"fault": "stall=1s"}).has_content
    for then in (
        "",
        {"json": {}},
        {"pieces": ["a"]},
        {"refusal": "no"},
        {"tool": "a"},
        {"reasoning": "r"},
    ):
        assert answered(then).has_content


def error_of(value: Any, *messages: str) -> APIError:
    with pytest.raises(APIError) as caught:
        deltas({"error": value}, request(*(messages or ("Hi",))))
    return caught.value


@pytest.mark.parametrize(
    ("name", "status", "type", "code"),
    [
        ("rate_limit", 429, "requests", "rate_limit_exceeded"),
        ("quota", 429, "insufficient_quota", "insufficient_quota"),
        ("context_length", 400, "invalid_request_error", "context_length_exceeded"),
        ("content_filter", 400, "invalid_request_error", "content_filter"),
        ("overloaded", 503, "service_unavailable_error", "server_is_overloaded"),
        ("invalid_key", 401, "invalid_request_error", "invalid_api_key"),
        ("model_not_found", 404, "invalid_request_error", "model_not_found"),
        ("server_error", 500, "server_error", None),
        ("timeout", 504, "server_error", "timeout"),
    ],
)
def test_errors_by_name_are_those_of_openai(
    name: str, status: int, type: str, code: str | None
) -> None:
    error = error_of(name)
    assert (error.status, error.type, error.code) == (status, type, code)
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    assert "{" not in error.message


def test_an_error_names_the_model_of_the_request() -> None:
    assert error_of("model_not_found").message.startswith("The model `gpt-4o` does not exist")


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 409, 418, 422, 429, 500, 502, 503, 504, 529, 599]
)
def test_errors_by_status_have_a_body(status: int) -> None:
    error = error_of(status)
    assert error.status == status
    assert error.message


def test_the_members_of_an_error_can_be_changed() -> None:
    error = error_of(
        {"name": "rate_limit", "message": "Wait, {message}!", "retry_after": 1.5, "code": "mine"},
        "Ann",
    )
    assert (error.status, error.message, error.code, error.type) == (
        429,
        "Wait, Ann!",
        "mine",
        "requests",
    )
    assert dict(error.headers) == {b"retry-after": b"2", b"retry-after-ms": b"1500"}
    error = error_of({"status": 418, "type": "tea", "param": "pot", "message": "short"})
    assert (error.status, error.type, error.param, error.headers) == (418, "tea", "pot", [])
    error = error_of({"status": 503, "retry_after": 0})
    assert dict(error.headers) == {b"retry-after": b"0", b"retry-after-ms": b"0"}


def test_every_entry_of_the_catalogue_is_an_error_of_its_own() -> None:
    for name, entry in CATALOGUE.items():
        assert error_of(name).status == entry.status
    assert error_of("rate_limit") is not error_of("rate_limit")


# Strict mode.


def test_the_nearest_rule_is_the_one_with_the_fewest_differences() -> None:
    made = rules(
        rule({"model": "o3", "message": "weather in Rome"}, name="far"),
        rule({"model": "gpt-4o", "message": "weather in Paris today"}, name="near"),
        rule({"model": "gpt-4o", "message": "something else"}, name="other"),
    )
    report = made.nearest(facts("weather in Paris tomorrow"))
    assert (
        report
        == "Nearest is near: message: expected 'weather in Paris today', got 'weather in Paris tomorrow'."
    )


def test_all_differences_of_the_nearest_rule_are_named() -> None:
    report = rules(rule({"model": "o3", "turn": 2, "tools": "book"})).nearest(facts("x"))
    assert report == (
        "Nearest is added rules: rule 1: model: expected 'o3', got 'gpt-4o';"
        " turn: expected 2, got 1; tools: expected book, got none."
    )


def test_of_long_texts_the_difference_is_shown() -> None:
    start = "The same beginning, " * 50
    report = rules(rule(start + "one end")).nearest(facts(start + "another end"))
    assert "from character 980, expected" in report
    assert "one end" in report
    assert "another end" in report
    assert len(report) < 400


def test_values_in_a_report_are_bounded_and_on_one_line() -> None:
    report = rules(rule("a\nb")).nearest(facts("x\n" * 10**6))
    assert len(report) < 400
    assert "\n" not in report


def test_reports_never_show_a_header_that_holds_a_secret() -> None:
    secret = "sk-very-secret-value"
    for name in ("authorization", "api-key", "Cookie", "x-api-key", "x-auth-token"):
        view = facts("x", headers={name.lower(): f"Bearer {secret}"})
        assert secret not in rules(rule({"header": {name: "Bearer other"}})).nearest(view)


def test_a_rule_that_has_ended_is_named_with_the_reason() -> None:
    made = rules(rule("a", name="once", times=1))
    assert text(made, facts("a")) == "yes"
    assert made.nearest(facts("a")) == "Nearest is once: it has ended after 1 answers."
    made = rules(rule({"message": "a", "nth": 2}, name="second"))
    assert text(made, facts("a", user="u")) is None
    assert (
        made.nearest(facts("a", user="u"))
        == "Nearest is second: nth: it answers match 2, this is match 1 in lane 'u'."
    )
    made = rules(rule("a", {"tool": "t"}, name="tool"))
    assert "on_tool_result" in made.nearest(facts("a", calls("t"), result("t")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["a", "", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "type", "function", "id", "parameters", "json_schema"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(JSON, JSON, JSON, JSON, JSON)
def test_any_json_in_unchecked_places_is_matched_without_an_error(
    tools: Any, calls: Any, name: Any, call_id: Any, response_format: Any
) -> None:
    messages = [
        user("x"),
        {"role": "assistant", "tool_calls": calls},
        {"role": "function", "name": name, "tool_call_id": call_id, "content": "y"},
    ]
    view = facts(
        *messages, tools=tools, functions=tools, response_format=response_format, user=name
    )
    for when in (
        {"tools": "a"},
        {"tools": []},
        {"tool_result": "a"},
        {"response_format": "json_schema"},
    ):
        made = rules(rule(when, {"tool": "a"}))
        answer = made.match(view)
        assert made.nearest(view)
        if answer is not None:
            try:
                answer_deltas(answer, ChatRequest(view.model, view.messages, view.payload))
            except APIError as error:
                assert error.status == 400  # noqa: PT017


def test_names_and_schemas_that_are_no_texts_and_no_objects_are_passed_over() -> None:
    odd = {"id": "1", "function": {"name": {"a": 1}}}
    conversation = [user("x"), {"role": "assistant", "tool_calls": [odd]}]
    last = {"role": "tool", "tool_call_id": "1", "content": "y"}
    view = facts(*conversation, last)
    assert view.new_results[0].tool == ""
    assert rules(rule("x", {"tool": "a"})).match(view) is None
    tools = [{"type": "function", "function": {"name": "book", "parameters": "none"}}]
    asked = request("x", tools=tools)
    assert message_of(deltas({"tool": "book", "arguments": {"a": 1}}, asked, check=check))["calls"]


def test_nearest_counts_nothing() -> None:
    made = rules(rule({"message": "a", "nth": 2}, "second"))
    for _ in range(5):
        made.nearest(facts("a"))
    assert [text(made, facts("a")) for _ in range(3)] == [None, "second", None]


def test_without_rules_the_report_says_so() -> None:
    assert RuleSet().nearest(facts("x")) == "There are no rules."
    assert RuleSet().match(facts("x")) is None


# Files.

BAD_FILES = {
    "not toml": ("[[rule]\n", "is not TOML"),
    "no rules": ("[rules]\n", "unknown field 'rules': did you mean 'rule'?"),
    "one bracket": ('[rule]\nthen = "x"', "two brackets"),
    "no then": ('[[rule]]\nwhen = "x"', "rule 1: then is missing"),
    "empty then": ("[[rule]]\nthen = {}", "rule 1: then: is empty"),
    "no steps": ("[[rule]]\nthen = []", "rule 1: then: must have 1 to 1000 steps"),
    "typo in a rule": (
        '[[rule]]\nwen = "x"\nthen = "x"',
        "unknown field 'wen': did you mean 'when'?",
    ),
    "typo in when": (
        '[[rule]]\nthen = "x"\n[[rule]]\nname = "b"\nwhen = {mesage = "x"}\nthen = "x"',
        "rule 2 'b': when: unknown field 'mesage': did you mean 'message'?",
    ),
    "typo in then": (
        '[[rule]]\nthen = {txt = "x"}',
        "then: unknown field 'txt': did you mean 'text'?",
    ),
    "typo in a step": ('[[rule]]\nthen = ["a", {txt = "x"}]', "then[1]: unknown field 'txt'"),
    "typo in a text test": (
        '[[rule]]\nwhen = {message = {contain = "x"}}\nthen = "x"',
        "did you mean 'contains'?",
    ),
    "empty text test": (
        "[[rule]]\nwhen = {message = {}}\nthen = 'x'",
        "when.message: needs exact, contains or regex",
    ),
    "a number for a text": (
        "[[rule]]\nwhen = {message = 3}\nthen = 'x'",
        "when.message: must be a string",
    ),
    "an unknown api": (
        "[[rule]]\nwhen = {api = 'chta'}\nthen = 'x'",
        "when.api: 'chta': did you mean 'chat'?",
    ),
    "an unknown format": (
        "[[rule]]\nwhen = {response_format = 'json'}\nthen = 'x'",
        "when.response_format.type",
    ),
    "turn zero": (
        "[[rule]]\nwhen = {turn = 0}\nthen = 'x'",
        "when.turn.min: must be an integer from 1",
    ),
    "nth true": (
        "[[rule]]\nwhen = {nth = true}\nthen = 'x'",
        "when.nth: must be an integer from 1",
    ),
    "a bad regex": (
        "[[rule]]\nwhen = {message = {regex = '('}}\nthen = 'x'",
        "when.message: regex '(': missing )",
    ),
    "a catastrophic regex": (
        "[[rule]]\nwhen = {user = {regex = '(a+)+b'}}\nthen = 'x'",
        "exponential",
    ),
    "headers as a text": (
        "[[rule]]\nwhen = {header = 'x'}\nthen = 'x'",
        "when.header: must be a table",
    ),
    "an empty tool result": (
        "[[rule]]\nwhen = {tool_result = {}}\nthen = 'x'",
        "when.tool_result: needs a tool",
    ),
    "an unknown placeholder": (
        "[[rule]]\nwhen = {message = {regex = '(?P<city>.)'}}\nthen = 'in {citty}'",
        "then.text: unknown placeholder {citty}: did you mean 'city'?",
    ),
    "an unknown placeholder in arguments": (
        "[[rule]]\nthen = {tool = 'a', arguments = {x = ['{nope}']}}",
        "then.arguments: unknown placeholder {nope}",
    ),
    "an unknown placeholder in an error": (
        "[[rule]]\nthen = {error = {status = 400, message = '{x}'}}",
        "{x}",
    ),
    "two texts": ("[[rule]]\nthen = {text = 'x', json = {}}", "text and json exclude each other"),
    "an error with a text": (
        "[[rule]]\nthen = {text = 'x', error = 500}",
        "error and text exclude each other",
    ),
    "a backend with a tool": (
        "[[rule]]\nthen = {tool = 'x', backend = 'b'}",
        "backend and tool exclude each other",
    ),
    "arguments without a tool": (
        "[[rule]]\nthen = {arguments = {}}",
        "then.arguments: needs a tool",
    ),
    "a tool call without a name": (
        "[[rule]]\nthen = {tool_calls = [{}]}",
        "then.tool_calls[0]: needs a name",
    ),
    "tool calls as a text": (
        "[[rule]]\nthen = {tool_calls = 'a'}",
        "then.tool_calls: must be a list",
    ),
    "an unknown error": (
        "[[rule]]\nthen = {error = 'rate_limt'}",
        "then.error.name: 'rate_limt': did you mean 'rate_limit'?",
    ),
    "an error of status 200": (
        "[[rule]]\nthen = {error = 200}",
        "then.error.status: must be an integer from 400 to 599",
    ),
    "an error of nothing": (
        "[[rule]]\nthen = {error = {message = 'x'}}",
        "then.error: needs a name or a status",
    ),
    "an unknown fault": (
        "[[rule]]\nthen = {fault = 'stal=2s'}",
        "then.fault: unknown fault 'stal': did you mean 'stall'?",
    ),
    "an unknown finish reason": (
        "[[rule]]\nthen = {text = '', finish_reason = 'stopp'}",
        "did you mean 'stop'?",
    ),
    "an unknown count": (
        "[[rule]]\nthen = {text = '', usage = {prompt = 1}}",
        "then.usage: unknown field 'prompt'",
    ),
    "a negative pace": (
        "[[rule]]\nthen = {words_per_second = -1}",
        "then.words_per_second: must be a number from 0",
    ),
    "an embedding of texts": (
        "[[rule]]\nthen = {embedding = ['a']}",
        "then.embedding: must be a list of numbers",
    ),
    "an embedding with nan": (
        "[[rule]]\nthen = {embedding = [nan]}",
        "then.embedding: must be a list of numbers",
    ),
    "an unknown category": (
        "[[rule]]\nthen = {flagged = ['hat']}",
        "then.flagged: 'hat': did you mean 'hate'?",
    ),
    "a large integer": (
        f"[[rule]]\nthen = {{json = {10**30}}}",
        "then.json: Integer exceeds 64-bit range",
    ),
    "times zero": ("[[rule]]\ntimes = 0\nthen = 'x'", "times: must be an integer from 1"),
    "ends as a text": ("[[rule]]\nends = 'yes'\nthen = 'x'", "ends: must be true or false"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_with_file_rule_and_reason(name: str, tmp_path: Path) -> None:
    content, reason = BAD_FILES[name]
    file = tmp_path / "rules.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        RuleSet.load(file)
    line = str(caught.value)
    assert line.startswith(str(file))
    assert reason in line
    assert "\n" not in line
    assert len(line) - len(str(file)) < 400


def test_a_bad_table_that_was_added_names_rule_and_reason_and_adds_none() -> None:
    made = RuleSet()
    for tables, reason in (
        (
            [rule("a"), {"wen": {}}],
            "added rules: rule 2: unknown field 'wen': did you mean 'when'?",
        ),
        ([rule("a"), 3], "added rules: rule 2: must be a table"),
        ({"when": "a"}, "added rules: must be a list of rules"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            made.add(tables)
    assert len(made) == 0


def test_a_table_that_is_nested_too_deeply_is_one_line() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    for then in ({"json": deep}, {"tool": "a", "arguments": {"x": deep}}):
        with pytest.raises(ValueError, match="added rules: rule 1: "):
            RuleSet().add([rule("a", then)])


def test_null_counts_as_absent_in_tables_from_json() -> None:
    made = rules(
        {
            "when": {"message": "a", "model": None},
            "then": {"text": "x", "error": None},
            "times": None,
        }
    )
    assert text(made, facts("a")) == "x"


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "absent.toml", "cannot be read: No such file or directory"),
        (tmp_path, "the folder has no .toml file"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            RuleSet.load(path)
        assert str(path) in str(caught.value)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[[rule]]\nthen = '\xfc'")
    with pytest.raises(ValueError, match=r"latin.toml: is not UTF-8"):
        RuleSet.load(latin)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("[[rule]]\nthen = 'b'")
    (tmp_path / "a.toml").write_text("[[rule]]\nwhen = 'x'\nthen = 'a'")
    (tmp_path / "notes.txt").write_text("no rules")
    for number in range(20):
        (tmp_path / f"c{number * 7 % 20:02}.toml").write_text(
            f"[[rule]]\nthen = '{number * 7 % 20}'"
        )
    made = RuleSet.load(tmp_path)
    assert [text(made, facts(m)) for m in ("x", "y")] == ["a", "b"]
    assert [step.text for r in made.from_files[2:] for step in r.steps] == [
        str(n) for n in range(20)
    ]
    assert rules(rule("x", name="n")).match(facts("x")).rule == "n"  # type: ignore[union-attr]
    assert made.match(facts("x")).rule == f"{tmp_path / 'a.toml'}: rule 1"  # type: ignore[union-attr]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def changed(file: Path, content: str) -> None:
    """Write a file so that its time differs, however coarse the clock of the disk is."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(content)
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_changed_files_are_read_again_and_counted_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    changed(file, "[[rule]]\nthen = ['1', '2']")
    made = RuleSet.load(file)
    clock = made.clock = Clock()
    assert text(made, facts("x")) == "1"
    assert not made.reload_if_changed()
    changed(file, "[[rule]]\nthen = ['a', 'b']")
    assert not made.reload_if_changed()  # within the second
    clock.now += 1
    assert made.reload_if_changed()
    assert text(made, facts("x")) == "a"
    clock.now += 1
    assert not made.reload_if_changed()


def test_the_files_are_looked_at_once_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rules.toml"
    changed(file, "[[rule]]\nthen = 'x'")
    made = RuleSet.load(file)
    clock = made.clock = Clock()
    looks = []
    monkeypatch.setattr(
        "rewrap.mock.rules.signature_of", lambda path: looks.append(path) or made.signature
    )
    for _ in range(100):
        clock.now += 0.1
        made.reload_if_changed()
    assert 9 <= len(looks) <= 11


def test_a_bad_change_keeps_the_rules_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rules.toml"
    changed(file, "[[rule]]\nthen = 'good'")
    made = RuleSet.load(file)
    clock = made.clock = Clock()
    changed(file, "[[rule]]\nname = 'broken'\nthen = 'x {nope}'")
    with caplog.at_level(logging.INFO, "rewrap"):
        for _ in range(3):
            clock.now += 1
            assert not made.reload_if_changed()
    assert text(made, facts("x")) == "good"
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert f"{file}: rule 1 'broken': then.text: unknown placeholder {{nope}}" in line
    assert "\n" not in line
    file.unlink()
    clock.now += 1
    assert not made.reload_if_changed()
    assert text(made, facts("x")) == "good"
    changed(file, "[[rule]]\nthen = 'mended'")
    clock.now += 1
    assert made.reload_if_changed()
    assert text(made, facts("x")) == "mended"


def test_new_files_in_a_folder_are_found(tmp_path: Path) -> None:
    changed(tmp_path / "b.toml", "[[rule]]\nthen = 'b'")
    made = RuleSet.load(tmp_path)
    made.clock = Clock()
    changed(tmp_path / "a.toml", "[[rule]]\nthen = 'a'")
    assert made.reload_if_changed()
    assert text(made, facts("x")) == "a"


def test_added_rules_survive_a_reload(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    changed(file, "[[rule]]\nthen = 'file'")
    made = RuleSet.load(file)
    made.add([rule("x", ["added", "again"])])
    made.clock = Clock()
    assert text(made, facts("x")) == "added"
    changed(file, "[[rule]]\nthen = 'changed'")
    assert made.reload_if_changed()
    assert [text(made, facts(m)) for m in ("x", "y")] == ["added", "changed"]


# Placeholders, whatever the texts are.


def filled(template: str, captures: dict[str, str]) -> str:
    has_placeholders(template, captures, "here")
    return TextFiller(facts("Hi"), captures).text(template)


@given(st.text())
def test_a_text_with_doubled_braces_is_itself(value: str) -> None:
    assert filled(value.replace("{", "{{"), {}) == value


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text()), st.lists(st.text()))
def test_values_stand_where_their_placeholders_were(
    captures: dict[str, str], between: list[str]
) -> None:
    names = [*captures, ""]
    template = expected = ""
    for position, part in enumerate(between):
        name = names[position % len(names)]
        template += part.replace("{", "{{") + (f"{{{name}}}" if name else "")
        expected += part + captures.get(name, "")
    assert filled(template, captures) == expected


@given(NAMES.filter(lambda name: name not in VALUES))
def test_an_unknown_placeholder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown placeholder"):
        filled(f"a {{{name}}} b", {})


@given(st.text(alphabet="{}ab:int_ "))
def test_braces_in_any_order_are_filled_or_refused(template: str) -> None:
    try:
        assert isinstance(filled(template, {"a": "1", "b": "2"}), str)
    except ValueError as error:
        assert "unknown placeholder" in str(error)  # noqa: PT017


# Regular expressions: the same matches as Python's, at a bounded cost.

ATOMS = (
    "a",
    "b",
    " ",
    ".",
    r"\w",
    "[ab]",
    r"\s",
    "(?:ab)",
    "(?P<x>a|b)",
    "(a|ab)",
    "(.+ )",
    "(a*)",
    "^",
    "$",
    "|",
    r"\x61",
)
QUANTIFIERS = ("", "", "", "*", "+", "?", "{1,3}", "{3}", "*?", "+?", "{2,}", "*+")


@given(
    st.sampled_from(("", "(?i)", "(?s)", "(?m)", "(?si)")),
    st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)), max_size=5),
    st.text(alphabet="aAb x\n", max_size=40),
)
def test_a_bounded_search_finds_what_a_search_finds(
    flags: str, parts: list[tuple[str, str]], value: str
) -> None:
    source = flags + "".join(
        atom + (quantifier if atom not in "^$|" else "") for atom, quantifier in parts
    )
    try:
        pattern = SafePattern(source)
    except ValueError:
        return
    expected = re.search(source, value)
    found = pattern.search(value)
    assert (found and (found.span(), found.groups())) == (
        expected and (expected.span(), expected.groups())
    )


@pytest.mark.parametrize(
    "source",
    [
        r"(a+)+b",
        r"(a|aa)*b",
        r"(\w+\s*)+$",
        r"((a*)*)*",
        r"(?:a?){30}a{30}",
        r"(a)\1",
        r"(?P<a>.)(?P=a)",
        "(?:a|aa)" * 60,
        "(?i:a)",
        "(?x)a b",
    ],
)
def test_patterns_that_can_take_exponential_time_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match="regex") as caught:
        SafePattern(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (r"(.*)x(.*)y(.*)z", "xy" * 20_000),
        (r"\w+\s+\w+\s+!", "a" * 3_000 + " " * 3_000),
        (r"a.*b.*c.*d", "abc" * 20_000),
        (r"(a*)(a*)(a*)b", "a" * 5_000),
        (r"(?:ab)*(?:ab)*c", "ab" * 20_000),
    ],
)
def test_a_text_that_would_keep_a_pattern_busy_does_not_match(source: str, value: str) -> None:
    started = time.process_time()
    assert not matches({"message": {"regex": source}}, facts(value))
    assert time.process_time() - started < 5  # without the bound it is hours
    report = rules(rule({"message": {"regex": source}})).nearest(facts(value))
    assert "could take too long for this text" in report


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (r"weather in (?P<city>.+) on (?P<day>.+)", "x " * 20_000 + "weather in Rome on Monday"),
        (r"(?P<a>.+) to (?P<b>.+)", "line of text\n" * 2_000 + "from here to there"),
        (
            r"(\w+) is (\w+) than (\w+)",
            "some words and more of them. " * 50 + "Red is better than blue",
        ),
        (
            r"(?s)Extract.*from.*document",
            "Extract names " + "from this long text. " * 500 + "The document",
        ),
        (r"(?i)\bORDER (\d+)", "word " * 20_000 + "order 66"),
        (r"(\d{1,3}\.){3}\d{1,3}", "1234 " * 5_000 + "10.0.0.1"),
    ],
)
def test_usual_patterns_match_in_long_texts(source: str, value: str) -> None:
    assert matches({"message": {"regex": source}}, facts(value))


# Growth.


def seconds(made: RuleSet, views: list[Facts]) -> float:
    started = time.process_time()
    for view in views:
        made.match(Facts(view.model, view.messages, view.payload))
    return time.process_time() - started


def test_exact_rules_cost_the_same_with_10_and_with_10000() -> None:
    few = rules(*[rule(f"message {n}", f"answer {n}") for n in range(10)])
    many = rules(*[rule(f"message {n}", f"answer {n}") for n in range(10_000)])
    views = [facts(f"message {n % 10}") for n in range(500)] + [facts("no such message")] * 100
    assert text(many, facts("message 9999")) == "answer 9999"
    # In turns, so that a busy moment of the machine hits both; the least of each counts.
    rounds = [(seconds(few, views), seconds(many, views)) for _ in range(30)]
    assert min(cost for _, cost in rounds) <= 1.5 * min(cost for cost, _ in rounds)


def test_only_rules_for_the_message_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rules(*[rule(f"message {n}") for n in range(1000)], rule({"model": "gpt-4o"}, "other"))
    tried = []
    step = RuleSet.step
    monkeypatch.setattr(
        RuleSet, "step", lambda self, r, f, c: tried.append(r) or step(self, r, f, c)
    )
    assert text(made, facts("message 7")) == "yes"
    assert text(made, facts("none of them")) == "other"
    assert len(tried) == 2


def test_facts_of_a_long_conversation_are_linear() -> None:
    def cost(turns: int) -> float:
        conversation = [user("x"), calls("a"), result("a"), says("y")] * turns + [
            user("x"),
            calls("a"),
            result("a"),
        ]
        made = rules(
            rule({"turn": 10**6}),
            rule({"tool_result": "b"}),
            rule({"any_message": "z"}),
            rule({"call": 9}),
        )
        best = 1e9
        for _ in range(5):
            view = facts(*conversation)
            started = time.process_time()
            assert made.match(view) is None
            best = min(best, time.process_time() - started)
        return best

    assert cost(20_000) < 30 * cost(2_000)


def test_headers_are_needed_for_a_rule_that_looks_at_them_alone() -> None:
    exact = {"when": "Hello", "then": "Hi"}
    script = Script(RuleSet())
    assert not script.needs_headers([b"host"])
    script.rules.add([exact])
    assert not script.needs_headers([b"host"])
    assert script.needs_headers([b"host", b"x-mock-lane"])
    script.rules.add([{"when": {"header": {"x-team": "red"}}, "then": "Red"}])
    assert script.needs_headers([b"host"])
    script.rules.reset()
    assert not script.needs_headers([b"host"])
