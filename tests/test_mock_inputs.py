"""Rules, faults and the journal for embeddings and moderations, and texts that `stop` and `max_tokens` cut."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serving import served

from rewrap.types import JSONObject

RULES = """
[[rule]]
name = "text for any request"
when = { message = { contains = "attack" } }
then = { text = "a chat answer" }
times = 1

[[rule]]
name = "cat"
when = { message = "cat" }
then = [{ embedding = [0.6, 0.8] }, { embedding = [1.0, 0.0] }]

[[rule]]
name = "attack"
when = { message = { contains = "attack" } }
then = { flagged = ["violence", "hate"] }

[[rule]]
name = "busy"
when = { model = "busy-*", api = ["embeddings", "moderations"] }
then = { error = { status = 429, retry_after = 2 } }
"""

Served = Callable[..., str]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("rules") / "rules.toml"
    file.write_text(RULES)
    with served(mock_rules=str(file)) as url:
        yield url


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    httpx.post(f"{url}/mock/reset")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def journal(url: str) -> list[JSONObject]:
    rows: list[JSONObject] = httpx.get(f"{url}/mock/requests").json()["data"]
    return rows


def test_a_rule_gives_each_input_its_vector(sdk: openai.OpenAI) -> None:
    found = sdk.embeddings.create(model="m", input=["cat", "dog", "cat"])
    first, other, last = [row.embedding for row in found.data]
    assert first == pytest.approx([0.6, 0.8])
    assert last == pytest.approx([1.0, 0.0])
    assert len(other) == 1536


def test_a_vector_of_a_rule_has_to_have_the_dimensions_of_the_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="number of dimensions"):
        sdk.embeddings.create(model="m", input="cat", dimensions=8)
    assert len(sdk.embeddings.create(model="m", input="cat", dimensions=2).data[0].embedding) == 2


def test_a_rule_flags_the_texts_that_it_matches(sdk: openai.OpenAI) -> None:
    judged = sdk.moderations.create(input=["an attack", "peace", "violence"]).results
    assert [result.flagged for result in judged] == [True, False, True]
    assert judged[0].categories.hate
    assert not judged[2].categories.hate


def test_a_rule_flags_the_text_of_parts(sdk: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "an attack"}, image]
    (result,) = sdk.moderations.create(input=parts).results  # type: ignore[arg-type]
    assert result.categories.hate


def test_a_rule_with_a_text_is_not_used_up_by_other_apis(sdk: openai.OpenAI) -> None:
    sdk.embeddings.create(model="m", input="attack")
    sdk.moderations.create(input="attack")
    messages = [{"role": "user", "content": "attack"}]
    answer = sdk.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "a chat answer"


def test_a_rule_with_a_vector_does_not_answer_a_chat(sdk: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "cat"}]
    answer = sdk.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "This is a mock reply to: cat"


@pytest.mark.parametrize("path", ["embeddings", "moderations"])
def test_errors_and_faults_come_from_rules_and_headers(path: str, url: str) -> None:
    body = {"model": "busy-1", "input": "Hello"}
    answer = httpx.post(f"{url}/v1/{path}", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    body["model"] = "m"
    answer = httpx.post(f"{url}/v1/{path}", json=body, headers={"x-mock-fault": "503"})
    assert answer.status_code == 503
    answer = httpx.post(f"{url}/v1/{path}", json=body, headers={"x-mock-fault": "malformed"})
    with pytest.raises(ValueError, match="line 1"):
        answer.json()
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{url}/v1/{path}", json=body, headers={"x-mock-fault": "cut"})


def test_the_journal_has_one_entry_with_all_inputs(sdk: openai.OpenAI, url: str) -> None:
    sdk.embeddings.create(model="m", input=["dog", "cat"])
    sdk.moderations.create(model="omni", input="Hello")
    first, second = journal(url)
    assert (first["api"], first["path"]) == ("embeddings", "/v1/embeddings")
    assert (first["rule"], first["status"], first["model"]) == ("cat", 200, "m")
    assert [message["content"] for message in first["messages"]] == ["dog", "cat"]
    assert (second["api"], second["rule"], second["model"]) == ("moderations", None, "omni")


def test_strict_mode_names_the_api_that_a_rule_is_not_for(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nname = "hello"\nwhen = "Hello"\nthen = "Hi"')
    with served(mock_rules=str(file), mock_strict=True) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": "Hello"})
        other = httpx.post(f"{url}/v1/embeddings", json={"model": "m", "input": ["Hello", "x"]})
    assert answer.status_code == other.status_code == 404
    message = answer.json()["error"]["message"]
    assert message.endswith("Nearest is hello: its answer is not one of embeddings.")


# Texts of rules.


@pytest.mark.parametrize(
    ("then", "limits", "text", "reason"),
    [
        ({"text": "one two three"}, {"max_tokens": 2}, "one two ", "length"),
        ({"text": "one two three"}, {"max_completion_tokens": 3}, "one two three", "stop"),
        ({"text": "one two three"}, {"stop": ["two"]}, "one ", "stop"),
        ({"pieces": ["one t", "wo", " three"]}, {"max_tokens": 2}, "one two ", "length"),
        ({"pieces": ["one t", "wo", " three"]}, {"stop": "wo"}, "one t", "stop"),
        ({"json": {"a": "b c"}}, {"max_tokens": 1}, '{"a":"b ', "length"),
        ({"text": "one two", "finish_reason": "stop"}, {"max_tokens": 1}, "one ", "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_where_the_request_ends_it(
    then: JSONObject, limits: JSONObject, text: str, reason: str, stream: bool, url: str
) -> None:
    httpx.post(f"{url}/mock/reset")
    httpx.post(f"{url}/mock/rules", json=[{"when": "count", "then": then}])
    body = {"model": "m", "messages": [{"role": "user", "content": "count"}], "stream": stream}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = client.chat.completions.create(**body | limits)  # type: ignore[call-overload]
        if not stream:
            (choice,) = answer.choices
            found = (choice.message.content, choice.finish_reason)
        else:
            choices = [chunk.choices[0] for chunk in answer]
            texts = [choice.delta.content or "" for choice in choices]
            found = ("".join(texts), choices[-1].finish_reason)
    assert found == (text, reason)
