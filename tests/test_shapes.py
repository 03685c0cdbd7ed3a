"""Shapes without sockets: each against recorded answers, then templates, paths and errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shape_servers import WIRES, Wire

from rewrap.types import APIError, ChatRequest, Delta, UpstreamRejection
from rewrap.upstream.auto import AutoShape
from rewrap.upstream.framing import TEXT
from rewrap.upstream.shapes import MappedReader, MappedShape, ShapeError, compiled, load_shapes

TOML = (Path(__file__).parent.parent / "rewrap" / "upstream" / "shapes.toml").read_text()
SHAPES = load_shapes(TOML)
CLOSES = (
    "kserve",
    "triton",
    "promptflow",
    "rasa",
    "langserve",
)  # their streams end with the connection
STREAMED = [name for name, wire in WIRES.items() if wire.stream]
TALK = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}],
    },
]


def chat(**more: Any) -> ChatRequest:
    sent = {"model": "m", "messages": TALK, "stream": False, **more}
    return ChatRequest(sent["model"], sent["messages"], sent, stream=sent["stream"])


def events(pieces: list[bytes], ndjson: bool) -> list[tuple[str, bytes]]:
    """The events in these pieces, as (name, data)."""
    if ndjson:
        return [("", line) for piece in pieces for line in piece.split(b"\n") if line.strip()]
    fields = [
        [line.partition(": ") for line in piece.decode().strip().split("\n")] for piece in pieces
    ]
    data = [
        "\n".join(value for name, _, value in lines if name == "data").encode() for lines in fields
    ]
    names = ["".join(value for name, _, value in lines if name == "event") for lines in fields]
    return list(zip(names, data, strict=True))


def read_stream(name: str, pieces: list[bytes]) -> tuple[list[Delta], MappedReader]:
    """The Deltas of a stream, and its reader. No event may follow the last one."""
    reader, deltas = SHAPES[name].reader(), list[Delta]()
    for event in events(pieces, SHAPES[name].framing == "ndjson"):
        assert not reader.done
        deltas += reader(*event)
    return deltas, reader


def read(reader: MappedReader, data: Any) -> Delta:
    """The Delta of one event: JSON, or a plain text."""
    [delta] = reader("", data.encode() if isinstance(data, str) else json.dumps(data).encode())
    return delta


def delta_of(shape: MappedShape, value: Any) -> Delta:
    """The Delta of a whole answer."""
    [delta] = shape.answer(value)
    return delta


def rejection_of(shape: MappedShape, value: Any) -> UpstreamRejection:
    """The error in a whole answer."""
    with pytest.raises(UpstreamRejection) as raised:
        shape.answer(value)
    return raised.value


def field(delta: Delta, name: str) -> Any:
    return (delta.fields or {}).get(name)


def one(**table: Any) -> MappedShape:
    return compiled(table if "like" in table else {"reply": "."} | table, "mine", SHAPES)


# Each product


def test_every_shape_has_a_server_to_be_tested_against() -> None:
    assert SHAPES.keys() == WIRES.keys()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", WIRES)
def test_each_product_accepts_the_request(name: str, stream: bool) -> None:
    wire, shape = WIRES[name], SHAPES[name]
    messages = TALK if name != "openai" else TALK[1:]
    sent = chat(
        stream=stream,
        stop="x",
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=9,
        messages=messages,
    )
    body = json.loads(json.dumps(shape.payload(sent)))
    assert wire.valid(body)
    if wire.stream and name != "n8n":  # the workflow decides
        path = wire.whole if not stream or not wire.stream_path else wire.stream_path
        asked = wire.asks(body, shape.headers("", stream)) and shape.url(
            f"http://h{wire.whole}", sent
        ).endswith(path.replace("\\", "").replace("[^/:]+", "x").replace("[^/]+", "x"))
        assert asked == stream or (not stream and bool(wire.stream_path))
        assert shape.url(f"http://h{wire.whole}", chat(stream=False)) == f"http://h{wire.whole}"
    assert "now?" in json.dumps(body), "the prompt is in it"


@pytest.mark.parametrize("name", WIRES)
def test_a_whole_answer_is_read(name: str) -> None:
    delta = delta_of(SHAPES[name], WIRES[name].answer)
    check_outcome(WIRES[name], delta.content, delta.finish_reason, delta.usage, whole=True)
    assert delta.whole


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_is_read_piece_by_piece(name: str) -> None:
    wire = WIRES[name]
    deltas, reader = read_stream(name, wire.stream)
    assert sum(bool(d.content) for d in deltas) == 2, "two pieces, each once"
    assert read_stream(name, wire.stream[: wire.first + 1])[0][-1].content == "Hello", (
        "the first piece comes with its event"
    )
    usage = next((d.usage for d in reversed(deltas) if d.usage), None)
    check_outcome(wire, "".join(d.content for d in deltas), reader.finish, usage)
    assert reader.complete
    assert not any(d.finish_reason or d.whole for d in deltas), (
        "the last reason is known at the end only"
    )


def check_outcome(
    wire: Wire, text: str, finish: str | None, usage: Any, whole: bool = False
) -> None:
    assert text == wire.text
    assert finish == (wire.finish or ("stop" if whole else ""))
    if wire.usage is None:
        assert usage is None
    elif not (whole and wire is WIRES["tgi"]):  # its whole answers do not count the prompt
        prompt, completion = wire.usage
        counts = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        assert {
            key: value for key, value in usage.items() if not key.endswith("_details")
        } == counts


@pytest.mark.parametrize("name", [name for name in STREAMED if WIRES[name].broken])
def test_an_error_in_a_stream_is_an_error(name: str) -> None:
    wire = WIRES[name]
    _, reader = read_stream(name, wire.stream[: wire.first + 1])
    rest = (
        d.content
        for event in events(wire.broken, SHAPES[name].framing == "ndjson")
        for d in reader(*event)
    )
    with pytest.raises(UpstreamRejection) as raised:
        next(filter(None, rest))  # no text precedes it
    assert (raised.value.message, raised.value.status) == ("it broke", wire.error_status or 502)


@pytest.mark.parametrize("name", [name for name in STREAMED if name not in CLOSES])
def test_a_stream_that_is_cut_short_is_not_complete(name: str) -> None:
    wire = WIRES[name]
    assert not read_stream(name, wire.stream[: wire.first + 1])[1].complete


@pytest.mark.parametrize("name", [name for name, wire in WIRES.items() if wire.failed is not None])
def test_an_error_inside_http_200_is_an_error(name: str) -> None:
    says = "has no text" if name in ("rasa", "botpress") else "it broke"
    assert says in rejection_of(SHAPES[name], WIRES[name].failed).message


@pytest.mark.parametrize("name", WIRES)
def test_the_message_of_an_http_error_is_found(name: str) -> None:
    found = SHAPES[name].rejection(418, WIRES[name].refused)
    assert (found.message, found.status) == ("it broke", 418)
    assert not SHAPES[name].rejection(418, "<html>").message


def test_reasoning_is_separate_from_the_text() -> None:
    for name in ("anthropic", "cohere"):
        assert field(delta_of(SHAPES[name], WIRES[name].answer), "reasoning") == "hm"
        assert (
            "".join(field(d, "reasoning") or "" for d in read_stream(name, WIRES[name].stream)[0])
            == "hm"
        )
    thinking = read(
        SHAPES["ollama"].reader(), {"message": {"content": "", "thinking": "hm"}, "done": False}
    )
    assert (thinking.content, thinking.fields) == (
        "",
        {"reasoning_content": "hm", "reasoning": "hm"},
    )


def test_cached_tokens_count_as_prompt_tokens() -> None:
    usage = delta_of(SHAPES["anthropic"], WIRES["anthropic"].answer).usage
    assert usage == {
        "prompt_tokens": 11,
        "completion_tokens": 2,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 7},
    }


def test_the_openai_shape_passes_tool_calls() -> None:
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    for finish in ("tool_calls", None):
        choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": finish}
        whole = delta_of(SHAPES["openai"], {"choices": [choice]})
        assert (whole.fields, whole.content, whole.finish_reason) == (
            {"tool_calls": [call]},
            "",
            "tool_calls",
        )
    reader = SHAPES["openai"].reader()
    assert read(reader, {"choices": [{"delta": {"tool_calls": [call]}}]}).fields == {
        "tool_calls": [call]
    }
    assert (reader.finish, reader.complete) == ("tool_calls", False)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("tool_use", "tool_calls"),
        ("?", "stop"),
    ],
)
def test_finish_reasons_get_openais_names(theirs: str, ours: str) -> None:
    assert delta_of(one(reply="t", finish="why"), {"t": "x", "why": theirs}).finish_reason == ours


def test_a_prompt_that_gemini_blocks_ends_with_content_filter() -> None:
    delta = delta_of(SHAPES["gemini"], {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})
    assert (delta.content, delta.finish_reason) == ("", "content_filter")


def test_langflow_answers_without_a_streaming_model() -> None:
    deltas, _ = read_stream("langflow", WIRES["langflow"].stream[-1:])
    assert [d.content for d in deltas] == ["Hello world!"]


def test_n8n_answers_without_a_stream() -> None:
    reader = SHAPES["n8n"].reader()
    assert read(reader, {"output": "Hello world!"}).content == "Hello world!"
    assert reader.complete


# Requests


def test_a_placeholder_keeps_the_type_of_its_value() -> None:
    shape = one(
        request={
            "t": "{temperature}",
            "s": "{stream}",
            "text": "at {temperature}, {n}",
            "m": "{messages}",
        }
    )
    body = shape.payload(chat(messages=TALK[1:2], temperature=0, n=2))
    assert body == {"t": 0, "s": False, "text": "at 0, 2", "m": [{"role": "user", "content": "hi"}]}


def test_an_absent_value_leaves_out_its_member_and_empty_parents() -> None:
    shape = one(
        request={
            "q": "{prompt}",
            "o": {"p": {"t": "{temperature}"}, "l": ["{seed}"]},
            "inputs": {},
            "files": [],
        }
    )
    assert shape.payload(chat(temperature=None)) == {"q": "and\nnow?", "inputs": {}, "files": []}
    assert shape.payload(chat(temperature=1))["o"] == {"p": {"t": 1}}


def test_a_default_is_read_as_json_if_possible() -> None:
    shape = one(request={"t": "{temperature|0.7}", "u": "{user|nobody}", "k": "{top_k | [1, 2]}"})
    assert shape.payload(chat()) == {"t": 0.7, "u": "nobody", "k": [1, 2]}
    assert shape.payload(chat(temperature=0, user="bob"))["t"] == 0


def test_doubled_braces_are_braces() -> None:
    assert one(request={"q": '{{"a": "{model}"}}', "b": "{{model}}"}).payload(chat()) == {
        "q": '{"a": "m"}',
        "b": "{model}",
    }


def test_messages_are_available_in_each_form() -> None:
    names = ("prompt", "system", "history", "dialog", "messages", "turns")
    turn = {"prompt": "{prompt}", "reply": "{reply}"}
    body = one(request={name: f"{{{name}}}" for name in names}, turn=turn).payload(chat())
    assert body["prompt"] == "and\nnow?"
    assert body["system"] == "Be kind."
    assert body["history"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    assert body["dialog"] == [*body["history"], {"role": "user", "content": "and\nnow?"}]
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, *body["dialog"]]
    assert body["turns"] == [{"prompt": "hi", "reply": "hello"}]


def test_a_conversation_is_one_text() -> None:
    text = "User: hi\nAssistant: hello\nUser: and\nnow?\nAssistant:"
    assert one(request={"q": "{conversation}"}).payload(chat()) == {"q": f"Be kind.\n\n{text}"}
    assert one(request={"q": "{conversation}", "s": "{system}"}).payload(chat()) == {
        "q": text,
        "s": "Be kind.",
    }
    assert one(request={"q": "{conversation}"}).payload(chat(messages=TALK[1:2])) == {"q": "hi"}


def test_roles_and_members_of_messages_can_be_renamed() -> None:
    shape = one(
        request={"c": "{dialog}"},
        message={"who": "{role}", "parts": [{"text": "{content}"}]},
        roles={"assistant": "model"},
    )
    assert shape.payload(chat())["c"][1] == {"who": "model", "parts": [{"text": "hello"}]}


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "system", "content": "x"}], [{"role": "assistant", "content": None}], [{}]],
)
def test_odd_conversations_still_make_a_request(messages: list[Any]) -> None:
    for shape in SHAPES.values():
        shape.payload(chat(messages=messages))
        shape.dropped(chat(messages=messages))


def test_max_tokens_has_two_names() -> None:
    assert SHAPES["anthropic"].payload(chat(max_completion_tokens=5))["max_tokens"] == 5
    assert SHAPES["anthropic"].payload(chat())["max_tokens"] == 4096
    assert one(request={"m": "{max_completion_tokens}"}).payload(chat(max_tokens=6)) == {"m": 6}


def test_a_session_is_named_by_the_client_or_unique() -> None:
    rasa = SHAPES["rasa"]
    assert rasa.payload(chat(user="bob"))["sender"] == "bob"
    assert rasa.payload(chat(user="bob", session_id="s1"))["sender"] == "s1"
    assert rasa.payload(chat())["sender"] != rasa.payload(chat())["sender"], (
        "two chats without a name have two sessions"
    )
    stored = replace(chat(user="bob"), session="chatcmpl-1", stored=True)
    assert rasa.payload(stored)["sender"] == "chatcmpl-1", "a stored chat is a session"
    assert rasa.payload(replace(stored, payload={"session_id": "s1"}))["sender"] == "s1"
    assert "messages.history" not in rasa.dropped(stored)


def test_dropped_parts_of_a_request_are_named() -> None:
    image = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}],
        }
    ]
    more: dict[str, Any] = {
        "temperature": 1,
        "seed": None,
        "n": 1,
        "user": "bob",
        "metadata": {},
        "store": True,
        "stream_options": {},
    }
    assert SHAPES["rasa"].dropped(chat(**more)) == ["temperature", "messages.system"]
    assert "session_id" not in SHAPES["rasa"].dropped(chat(session_id="s"))
    assert SHAPES["botpress"].dropped(chat(n=2)) == ["n", "messages.system", "messages.history"]
    assert SHAPES["tgi"].dropped(chat(max_completion_tokens=1, stop="x", tools=[], **more)) == [
        "tools"
    ]
    assert SHAPES["dify"].dropped(chat(messages=image)) == ["messages.image_url"]
    assert SHAPES["ollama"].dropped(chat(messages=image)) == ["messages.image_url"], "no data: URL"
    assert SHAPES["openai"].dropped(chat(messages=image, tools=[], anything=1)) == []


def test_deep_nesting_is_a_client_error() -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    with pytest.raises(APIError, match="nested too deeply"):
        one(request={"q": "{tools} {prompt}"}).payload(chat(tools=deep))


def test_a_template_can_name_any_parameter() -> None:
    shape = one(request={"x": "{param.mirostat}"})
    assert shape.payload(chat(mirostat=2)) == {"x": 2}
    assert shape.dropped(chat(mirostat=2)) == [
        "messages.system",
        "messages.history",
    ]


# Addresses and headers


@pytest.mark.parametrize(
    ("name", "url", "stream", "wanted"),
    [
        ("ollama", "http://h:1", False, "http://h:1/api/chat"),
        ("ollama", "http://h/", True, "http://h/api/chat"),
        ("ollama", "http://h/proxy/api/chat?k=1", True, "http://h/proxy/api/chat?k=1"),
        ("tgi", "http://h/x/generate", True, "http://h/x/generate_stream"),
        ("kserve", "http://h", True, "http://h/v2/models/m/generate_stream"),
        (
            "gemini",
            "https://h?a=b",
            True,
            "https://h/v1beta/models/m:streamGenerateContent?a=b&alt=sse",
        ),
        ("langflow", "http://h/api/v1/run/f", True, "http://h/api/v1/run/f?stream=true"),
        (
            "rasa",
            "http://h/webhooks/rest/webhook?token=t",
            True,
            "http://h/webhooks/rest/webhook?token=t&stream=true",
        ),
        (
            "botpress",
            "http://h/api/v1/bots/b/converse/{user}",
            False,
            "http://h/api/v1/bots/b/converse/a%20b",
        ),
        ("huggingface", "http://h/models/x", True, "http://h/models/x"),
    ],
)
def test_the_url_is_completed(name: str, url: str, stream: bool, wanted: str) -> None:
    assert SHAPES[name].url(url, chat(stream=stream, user="a b")) == wanted


@pytest.mark.parametrize("model", ["../../admin", "a/../b", "", "a//b"])
def test_a_model_name_cannot_change_the_path(model: str) -> None:
    with pytest.raises(APIError, match="cannot stand in a URL") as raised:
        SHAPES["kserve"].url("http://h", chat(model=model))
    assert raised.value.status == 400
    assert (
        SHAPES["kserve"].url("http://h", chat(model="a/b?c#d"))
        == "http://h/v2/models/a/b%3Fc%23d/generate"
    )


def test_the_key_is_in_the_header_of_the_product() -> None:
    assert SHAPES["anthropic"].headers("k", False) == {
        "anthropic-version": "2023-06-01",
        "x-api-key": "k",
    }
    assert SHAPES["dify"].headers("k", False) == {"authorization": "Bearer k"}
    assert SHAPES["dify"].headers("", False) == {}
    assert "text/event-stream" in SHAPES["promptflow"].headers("", True)["accept"]


# Paths, modes, conditions


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (".", "hi", "hi"),
        ("a.b[0].c", {"a": {"b": [{"c": "hi"}]}}, "hi"),
        ("a[-1]", {"a": ["x", "hi"]}, "hi"),
        ("[0].t", [{"t": "hi"}], "hi"),
        ("[].t", [{"t": "h"}, {"u": 1}, {"t": "i"}], "hi"),
        ("[].p[].t", [{"p": [{"t": "h"}]}, {"p": [{"t": "i"}]}, {}], "hi"),
        ("a-b.c_d", {"a-b": {"c_d": "hi"}}, "hi"),
        ("x | y.z | y", {"y": {"z": "hi"}}, "hi"),
        ("x | y", {"x": "", "y": "hi"}, "hi"),
        ("x | y", {"x": {"not": "text"}, "y": "hi"}, "hi"),
        ("a[5]", {"a": ["x"]}, None),
        ("a.b", {"a": "text"}, None),
        ("[].t", [], None),
    ],
)
def test_a_path_finds_its_text(path: str, value: Any, text: str | None) -> None:
    shape = one(reply=path)
    if text:
        assert delta_of(shape, value).content == text
    else:
        assert "has no text" in rejection_of(shape, value).message


def test_texts_of_a_list_are_joined_by_the_setting() -> None:
    assert delta_of(one(reply="[].t", join=", "), [{"t": "a"}, {"t": "b"}]).content == "a, b"


def test_cumulative_texts_become_deltas() -> None:
    reader = one(reply="t", stream={"mode": "last"}).reader()
    assert [read(reader, {"t": t}).content for t in ("He", "Hell", "Hell", "Hello", "")] == [
        "He",
        "ll",
        "",
        "o",
        "",
    ]


def test_bare_strings_are_pieces() -> None:
    reader = one(stream={"framing": "sse"}).reader()
    assert [read(reader, d).content for d in ('"He"', "llo", " 42", "42", "true", "[DONE]")] == [
        "He",
        "llo",
        " 42",
        "42",
        "true",
        "",
    ]
    assert read(one(stream={"framing": "text"}).reader(), "[1]").content == "[1]"
    texts = ["see ", "[1]", '"y"']
    assert [one().reader()(TEXT, text.encode())[0].content for text in texts] == texts


def test_an_event_without_json_is_an_error_if_the_shape_expects_json() -> None:
    with pytest.raises(UpstreamRejection) as raised:
        read(SHAPES["ollama"].reader(), "<html>")
    assert (raised.value.message, raised.value.status) == (
        "an event of the upstream is not JSON",
        0,
    )
    reader = SHAPES["gemini"].reader()
    read(reader, "[DONE]")
    assert reader.done, "[DONE] ends every stream"


@pytest.mark.parametrize("marker", ["[END]", "[FIN]", "[STREAM_END]"])
def test_a_bare_word_in_brackets_ends_a_stream_of_json(marker: str) -> None:
    mapped = one(reply="t").reader()
    auto = AutoShape().reader()
    for reader in (mapped, auto):
        assert read(reader, '{"t": "x", "text": "x"}').content == "x"
        assert not reader.done
        reader("", marker.encode())
        assert reader.done


@pytest.mark.parametrize("text", ["[END]", "see [END]", "[end]"])
def test_brackets_in_a_stream_of_texts_are_a_text(text: str) -> None:
    texts = one(reply=".").reader()
    auto = AutoShape().reader()
    for reader in (texts, auto):
        reader("", b"A ")
        assert read(reader, text).content == text
        assert not reader.done


def test_an_empty_error_is_ignored_and_an_object_is_shown() -> None:
    falsy: list[Any] = [None, "", False, {}, []]
    for nothing in falsy:
        assert delta_of(one(reply="t"), {"t": "x", "error": nothing}).content == "x"
    assert (
        rejection_of(one(reply="t"), {"t": "x", "error": {"code": 5}}).message
        == 'error: {"code":5}'
    )


# Wrong tables stop the start


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"request": {"messages": [{"role": "user", "content": "{promt}"}]}},
            r"mine\.request\.messages\[0\]\.content: .*\{promt\}",
        ),
        ({"request": {"q": "{prompt"}}, r"mine\.request\.q: a single '\{'"),
        ({"request": {"q": "prompt}"}}, r"mine\.request\.q: a single '\}'"),
        ({"request": {"q": "{}"}}, r"mine\.request\.q: a single '\{'"),
        ({"message": {"r": "{prompt}"}}, r"mine\.message\.r: .*\{prompt\}"),
        ({"stream": {"request": {"q": "{nope}"}}}, r"mine\.stream\.request\.q: .*\{nope\}"),
        ({"reply": "a[x y]"}, r"mine\.reply: 'a\[x y\]' cannot be read at"),
        ({"reply": "a..b"}, r"mine\.reply: 'a\.\.b' cannot be read at '\.\.b'"),
        ({"reply": "a b"}, r"mine\.reply: 'a b' cannot be read at ' b'"),
        ({"reply": ""}, r"mine\.reply: '' cannot be read"),
        ({"reply": "a | "}, r"mine\.reply: '' cannot be read"),
        ({"reply": 5}, r"mine\.reply: a string such as"),
        ({"usage": {"prompt": "a + [b"}}, r"mine\.usage\.prompt: '\[b'"),
        ({"usage": {"tokens": "a"}}, r"mine\.usage\.tokens: no such setting"),
        ({"stream": {"done": "a[=1"}}, r"mine\.stream\.done: 'a\[' cannot be read"),
        ({"stream": {"framing": "see"}}, r"mine\.stream: no framing 'see'"),
        ({"stream": {"mode": "all"}}, r"mine\.stream: .* mode 'all'"),
        ({"stream": "sse"}, r"mine\.stream: a table is expected"),
        ({"replay": "a"}, r"mine\.replay: no such setting"),
        ({"stream": {"pieces": "a"}}, r"mine\.stream\.pieces: no such setting"),
        ({"like": "olama"}, r"mine\.like: no shape is called 'olama'"),
        ({"like": ""}, r"mine\.like: no shape is called ''"),
        ({"like": ["x"]}, r"mine\.like: a string is expected"),
        ({"path": 5}, r"mine\.path: a string is expected"),
        ({"key": 5}, r"mine\.key: a string is expected"),
        ({"key": "a b"}, r"mine: 'a b' is no header that can be sent"),
        ({"join": 5}, r"mine\.join: a string is expected"),
        ({"about": 5}, r"mine\.about: a string is expected"),
        ({"headers": "x"}, r"mine\.headers: a table of strings is expected"),
        ({"headers": {"x": 5}}, r"mine\.headers: a table of strings is expected"),
        ({"headers": {"x": "a\r\nb"}}, r"mine: 'x' is no header that can be sent"),
        ({"headers": {"x: y": "a"}}, r"mine: 'x: y' is no header that can be sent"),
        ({"roles": "x"}, r"mine\.roles: a table of strings is expected"),
        ({"roles": {"user": 5}}, r"mine\.roles: a table of strings is expected"),
        ({"statuses": "x"}, r"mine\.statuses: a table of integers is expected"),
        ({"statuses": {"x": "429"}}, r"mine\.statuses: a table of integers is expected"),
        ({"turn": "x"}, r"mine\.turn: a table is expected"),
        ({"message": "x"}, r"mine\.message: a table is expected"),
        ({"omit": "x"}, r"mine\.omit: a table is expected"),
        ({"stream": {"path": 5}}, r"mine\.stream\.path: a string is expected"),
        (
            {"stream": {"headers": {"x": "a\nb"}}},
            r"mine\.stream: 'x' is no header that can be sent",
        ),
        ({"request": {"q": 99999999999999999999}}, r"mine\.request: Integer exceeds 64-bit range"),
        ({"message": {"q": 99999999999999999999}}, r"mine\.message: Integer exceeds 64-bit range"),
        (
            {"stream": {"request": {"q": 99999999999999999999}}},
            r"mine\.stream\.request: Integer exceeds",
        ),
        (
            {"request": {"{modle}": "x"}},
            r"mine\.request: the name of a member is no template: '\{modle\}'",
        ),
        (
            {"request": {"a": [{"x{model}": "x"}]}},
            r"mine\.request\.a\[0\]: the name of a member .* 'x\{model\}'",
        ),
        ({"stream": {"request": {"{model}": 1}}}, r"mine\.stream\.request: the name of a member"),
        ({"message": {"{role}": "x"}}, r"mine\.message: the name of a member"),
        ({"turn": {"{reply}": "x"}}, r"mine\.turn: the name of a member"),
    ],
)
def test_a_wrong_table_is_reported_with_its_place(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{message}") as raised:
        one(**table)
    assert "\n" not in str(raised.value)


def test_a_table_needs_reply_or_like() -> None:
    with pytest.raises(ShapeError, match=r"^mine\.reply: where is the text of an answer\?"):
        compiled({"request": {"q": "{prompt}"}}, "mine", SHAPES)
    assert delta_of(compiled({"like": "dify"}, "mine", SHAPES), {"answer": "hi"}).content == "hi"


def test_a_file_without_toml_is_reported() -> None:
    with pytest.raises(ShapeError, match="not TOML: Expected"):
        load_shapes("[x")


def test_a_finish_reason_completes_a_stream_without_done() -> None:
    reader = SHAPES["openai"].reader()
    assert not reader.complete
    read(reader, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
    assert reader.complete


def test_only_error_statuses_are_used_as_the_status() -> None:
    for status, wanted in ((429, 429), (200, 502), (7009, 502), ("x", 502), (True, 502)):
        assert (
            rejection_of(one(reply="t", status="code"), {"error": "e", "code": status}).status
            == wanted
        )


def test_a_shape_can_extend_another() -> None:
    mine = one(
        like="ollama", request={"keep_alive": "5m", "options": {"seed": "{nothing}"}}, reply="x"
    )
    body = mine.payload(chat(seed=1, temperature=1))
    assert (body["keep_alive"], body["options"], mine.framing) == (
        "5m",
        {"temperature": 1},
        "ndjson",
    )
    assert delta_of(mine, {"x": "hi", "message": {"content": "no"}}).content == "hi"


def test_a_few_lines_describe_a_custom_endpoint() -> None:
    mine = load_shapes(
        '[mine]\nrequest = { q = "{prompt}" }\nreply = "data.answer"\n[mine.stream]\nreply = "delta"\ndone = "end"'
    )["mine"]
    assert mine.payload(chat()) == {"q": "and\nnow?"}
    assert delta_of(mine, {"data": {"answer": "hi"}}).content == "hi"
    reader = mine.reader()
    pieces = [
        (read(reader, event).content, reader.done)
        for event in ({"delta": "a"}, {"delta": "b", "end": True})
    ]
    assert pieces == [("a", False), ("b", True)]
    assert reader.complete


def test_the_framing_json_is_detected() -> None:
    assert (
        one(stream={"framing": "json"}).framing == one(stream={}).framing == one().framing == "auto"
    )


# Details


def test_a_number_counts_as_a_text() -> None:
    pieces = [
        f'{{"response": {text}}}' for text in ('"costs $"', "5", "2.5", '"."', "true", "null")
    ]
    reader = SHAPES["cloudflare"].reader()
    assert "".join(read(reader, piece).content for piece in pieces) == "costs $52.5."


def test_n_is_dropped_and_named() -> None:
    for name in ("openai", "databricks"):
        assert "n" not in SHAPES[name].payload(chat(n=2, logprobs=True))
        assert "n" in SHAPES[name].dropped(chat(n=2))
        assert "n" not in SHAPES[name].dropped(chat(n=1))
    assert SHAPES["openai"].payload(chat(logprobs=True))["logprobs"]
    logprobs = {"content": [{"token": "a"}]}
    choice = {"message": {"content": "a"}, "logprobs": logprobs}
    assert delta_of(SHAPES["openai"], {"choices": [choice]}).logprobs == logprobs


@pytest.mark.parametrize("name", ["rasa", "langflow", "n8n", "botpress"])
def test_a_history_without_a_session_is_named_as_dropped(name: str) -> None:
    assert "messages.history" in SHAPES[name].dropped(chat())
    for session in ("user", "session_id", "session"):
        assert "messages.history" not in SHAPES[name].dropped(chat(**{session: "s"}))


def test_members_of_messages_that_are_dropped_are_named() -> None:
    messages = [
        {"role": "user", "name": "bob", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    lost = ["messages.name", "messages.tool_call_id", "messages.tool_calls"]
    assert SHAPES["dify"].dropped(chat(messages=messages)) == lost
    assert SHAPES["ollama"].dropped(chat(messages=messages)) == []
    assert SHAPES["flowise"].dropped(chat(messages=messages)) == ["messages.history", *lost], (
        "the tool result follows the prompt"
    )
    assert SHAPES["openai"].dropped(chat(messages=messages)) == []


def test_a_question_without_a_reply_is_sent_with_the_next_one() -> None:
    said = [("user", "a"), ("assistant", "r"), ("user", "orphan"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in said]
    turn = {"inputs": {"question": "a"}, "outputs": {"answer": "r"}}
    wanted = {"question": "orphan\nc", "chat_history": [turn]}
    assert SHAPES["promptflow"].payload(chat(messages=messages)) == wanted
    assert SHAPES["flowise"].payload(chat(messages=messages))["question"] == "c", (
        "its history has messages"
    )


def test_a_system_message_alone_is_the_prompt() -> None:
    messages = [{"role": "system", "content": "Hi"}]
    assert SHAPES["anthropic"].payload(chat(messages=messages))["messages"] == [
        {"role": "user", "content": "Hi"}
    ]
    assert "system" not in SHAPES["anthropic"].payload(chat(messages=messages))


def test_values_in_omit_are_not_sent() -> None:
    parameters = {"details": True, "temperature": 0.5}
    sent = SHAPES["tgi"].payload(chat(temperature=0.5, top_p=1))
    assert sent["parameters"] == parameters
    assert SHAPES["tgi"].payload(chat(temperature=0))["parameters"] == {"details": True}
    assert SHAPES["tgi"].dropped(chat(temperature=0, top_p=1.0)) == []


@pytest.mark.parametrize(
    ("name", "url", "wanted"),
    [
        ("dify", "https://h/v1", "/v1/chat-messages"),
        ("anthropic", "https://h/v1/", "/v1/messages"),
        ("gemini", "https://h/v1beta", "/v1beta/models/m:generateContent"),
        ("ollama", "https://h/api", "/api/chat"),
        ("openai", "https://h/v1", "/v1/chat/completions"),
        ("openai", "https://h/v", "/v"),
        ("ollama", "https://h/own/chat", "/own/chat"),
    ],
)
def test_a_url_that_is_a_prefix_of_the_path_is_completed(name: str, url: str, wanted: str) -> None:
    assert SHAPES[name].url(url, chat()) == f"https://h{wanted}"


def test_a_user_name_cannot_change_the_path() -> None:
    shape = one(path="/{model}/{session}", request={"q": "{prompt}"}, reply="a")
    assert shape.url("https://h", chat(model="@cf/m", user="a/b")) == "https://h/@cf/m/a%2Fb"


def test_figures_beside_the_text_are_kept() -> None:
    delta = delta_of(
        one(request={"q": "{prompt}"}, reply="text"),
        {"text": "hi", "figure": {"data": []}, "figures": []},
    )
    assert delta.fields == {"figure": {"data": []}}


def test_the_placeholder_nothing_ignores_a_parameter_of_that_name() -> None:
    assert one(request={"q": "{prompt}", "n": "{nothing}"}, reply="a").payload(
        chat(nothing="x")
    ) == {"q": "and\nnow?"}


@pytest.mark.parametrize(
    "body",
    [[{"error": {"message": "bad key"}}], {"detail": [{"msg": "bad key"}]}, {"detail": "bad key"}],
)
def test_error_messages_are_found_in_several_places(body: Any) -> None:
    assert SHAPES["gemini"].rejection(400, body).message == "bad key"


def test_counts_that_are_not_numbers_are_ignored() -> None:
    usage = {"prompt_tokens": "2", "completion_tokens": 3}
    assert delta_of(SHAPES["dify"], {"answer": "x", "metadata": {"usage": usage}}).usage == {
        "completion_tokens": 3
    }


# Filters, tool calls and reasons in tables


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("[thought].t", "ac"),
        ("[!thought].t", "b"),
        ("[kind=x].t", "ab"),
        ("[n=1].t", "b"),
        ("[!n=1].t", "ac"),
        ("[].t", "abc"),
    ],
)
def test_a_path_takes_the_items_that_fit_its_filter(path: str, text: str) -> None:
    items = [
        {"t": "a", "thought": True, "kind": "x"},
        {"t": "b", "kind": "x", "n": 1},
        {"t": "c", "thought": 1},
    ]
    assert delta_of(one(reply=path), items).content == text


def test_tool_calls_are_found_by_a_path_for_each_member() -> None:
    table = {"each": "parts[call]", "id": "call.id", "name": "call.f", "arguments": "call.x"}
    shape = one(reply="text", tool_calls=table)
    parts = [{"call": {"id": "1", "f": "g", "x": {"a": 1}}}, {"other": 1}, {"call": {"f": "h"}}]
    delta = delta_of(shape, {"text": "", "parts": parts})
    assert field(delta, "tool_calls") == [
        {"id": "1", "function": {"name": "g", "arguments": {"a": 1}}},
        {"function": {"name": "h"}},
    ]
    assert delta.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tool_calls": {"nme": "x"}}, r"mine\.tool_calls\.nme: no such setting"),
        ({"tool_calls": {"name": "a["}}, r"mine\.tool_calls\.name: 'a\['"),
        ({"tool_calls": {"name": "a", "when": 5}}, r"mine\.tool_calls\.when: a string"),
        ({"reasons": {"X": "stopp"}}, r"mine\.reasons\.X: no reason 'stopp' is known"),
        ({"reasons": {"X": 5}}, r"mine\.reasons: a table of strings"),
    ],
)
def test_a_wrong_setting_of_tool_calls_or_reasons_is_reported(
    table: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShapeError, match=f"^{message}"):
        one(reply="t", **table)


def test_a_reason_that_means_failure_is_an_error() -> None:
    shape = one(reply="t", finish="why", reasons={"BROKEN": "error", "FULL": "length"})
    assert delta_of(shape, {"t": "x", "why": "full"}).finish_reason == "length"
    assert rejection_of(shape, {"t": "x", "why": "BROKEN"}).message.endswith("BROKEN")
    with pytest.raises(UpstreamRejection, match="502"):
        read(shape.reader(), {"t": "x", "why": "broken"})


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ollama", {"message": {"content": ""}, "done": True, "done_reason": "load"}),
        ("gemini", {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}),
        ("cohere", {"message": {"content": []}, "finish_reason": "TIMEOUT"}),
    ],
)
def test_an_end_that_means_failure_is_an_error_of_the_product(name: str, answer: Any) -> None:
    assert rejection_of(SHAPES[name], answer).status == 502


def test_geminis_message_for_a_failed_end_is_kept() -> None:
    answer = {"candidates": [{"finishReason": "OTHER", "finishMessage": "it broke"}]}
    assert rejection_of(SHAPES["gemini"], answer).message == "it broke"
    stopped = {
        "finishReason": "STOP",
        "finishMessage": "done",
        "content": {"parts": [{"text": "x"}]},
    }
    assert delta_of(SHAPES["gemini"], {"candidates": [stopped]}).content == "x"


def test_the_members_of_a_value_can_be_spread() -> None:
    shape = one(request={"o": {"a": "{temperature}", "b": "{seed}", "*": "{param.options}"}})
    sent = chat(temperature=1, options={"a": 2, "c": 3})
    assert shape.payload(sent) == {"o": {"a": 2, "c": 3}}
    assert shape.payload(chat(temperature=1, options="odd")) == {"o": {"a": 1}}
    assert shape.payload(chat()) == {}
    assert "options" not in shape.dropped(sent)


def test_messages_can_be_sent_as_the_client_sent_them() -> None:
    shape = one(request={"m": "{openai.messages}"})
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    ]
    sent: Any = shape.payload(chat(messages=messages))
    assert sent["m"] == [{"role": "system", "content": "Be kind."}, *messages[1:]]
    assert shape.dropped(chat(messages=messages)) == []


def test_prompts_with_images_are_written_as_the_product_reads_them() -> None:
    url = "data:image/png;base64,AAAA"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "see"}]
    sent = chat(messages=[{"role": "user", "content": content}])
    payloads: dict[str, Any] = {
        name: SHAPES[name].payload(sent) for name in ("tgi", "llama.cpp", "ollama-generate")
    }
    assert payloads["tgi"]["inputs"] == f"![]({url})\nsee"
    assert payloads["llama.cpp"]["prompt"] == {
        "prompt_string": "<__media__>\nsee",
        "multimodal_data": ["AAAA"],
    }
    assert payloads["ollama-generate"]["images"] == ["AAAA"]
    assert payloads["ollama-generate"]["prompt"] == "see"
    for name in payloads:
        assert SHAPES[name].dropped(sent) == []


def test_formats_are_written_as_the_product_reads_them() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    sent = chat(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    payloads: dict[str, Any] = {name: SHAPES[name].payload(sent) for name in ("tgi", "llama.cpp")}
    assert payloads["tgi"]["parameters"]["grammar"] == {"type": "json", "value": schema}
    assert payloads["llama.cpp"]["json_schema"] == schema
    regex: Any = SHAPES["tgi"].payload(chat(response_format={"type": "regex", "pattern": "a+"}))
    assert regex["parameters"]["grammar"] == {"type": "regex", "value": "a+"}


def test_a_schema_beyond_openapi_goes_to_gemini_as_json_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}
    format = {"type": "json_schema", "json_schema": {"schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body: Any = SHAPES["gemini"].payload(chat(response_format=format, tools=[tool]))
    assert body["generationConfig"]["responseJsonSchema"] == schema
    assert "responseSchema" not in body["generationConfig"]
    assert body["tools"][0]["functionDeclarations"] == [
        {"name": "f", "parametersJsonSchema": schema}
    ]


def test_databricks_reads_reasoning_and_tool_calls() -> None:
    content = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "text", "text": "Hi"},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    delta = delta_of(SHAPES["databricks"], {"choices": [{"message": message}]})
    assert (delta.content, field(delta, "reasoning")) == ("Hi", "hm")
    assert field(delta, "tool_calls") == [call]
