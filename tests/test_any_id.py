"""MOCK_ANY_ID: the mock answers for any id, as the generated tests of OpenAI's SDKs expect it."""

from collections.abc import Iterator

import httpx
import openai
import pytest
from serving import served

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(mock_any_id=True) as url:
        yield url


@pytest.fixture
def strict(url: str) -> Iterator[openai.OpenAI]:
    """The SDK, which validates each answer by its types."""
    options = {"max_retries": 0, "_strict_response_validation": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", **options) as sdk:  # type: ignore[arg-type]
        yield sdk


def test_every_id_is_a_completion_that_the_sdk_validates(strict: openai.OpenAI) -> None:
    completions = strict.chat.completions
    assert completions.retrieve("any").id == "any"
    assert completions.update("any", metadata={"k": "v"}).metadata == {"k": "v"}
    [message] = completions.messages.list("any").data
    assert message.id == "any-0"
    assert completions.messages.list("any", after="other").data == []
    assert completions.list(after="other").data == []
    assert completions.delete("any").deleted


def test_every_id_is_a_response_that_the_sdk_validates(strict: openai.OpenAI) -> None:
    assert strict.responses.retrieve("any").id == "any"
    assert [event.type for event in strict.responses.retrieve("any", stream=True)][-1:] == [
        "response.completed"
    ]
    [item] = strict.responses.input_items.list("any", limit=0, after="other").data
    assert item.type == "message"
    assert strict.responses.cancel("any").id == "any"
    strict.responses.delete("any")
    follow = strict.responses.create(model="m", input="Hi", previous_response_id="any")
    assert follow.previous_response_id == "any"


def test_a_response_needs_no_input(strict: openai.OpenAI) -> None:
    assert strict.responses.create().status == "completed"
    background = strict.responses.create(model="m", background=True, conversation="c")
    assert background.status == "completed"
    assert strict.responses.input_tokens.count().input_tokens > 0
    assert strict.responses.compact(model="m").object == "response.compaction"


def test_a_model_is_deleted_and_vectors_are_lists_of_numbers(strict: openai.OpenAI) -> None:
    assert strict.models.delete("ft:any").deleted
    assert isinstance(strict.embeddings.create(model="m", input="x").data[0].embedding[0], float)


def test_stored_objects_come_first(strict: openai.OpenAI, url: str) -> None:
    made = strict.chat.completions.create(model="m", messages=MESSAGES, store=True)  # type: ignore[arg-type]
    assert strict.chat.completions.retrieve(made.id).choices == made.choices
    key = {"authorization": "Bearer k"}
    messages = httpx.get(f"{url}{CHAT}/{made.id}/messages", headers=key).json()["data"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    response = strict.responses.create(model="m", input="Hi")
    assert strict.responses.retrieve(response.id).output_text == response.output_text


def test_an_unknown_chat_can_be_continued_and_is_stored(url: str) -> None:
    body = {"model": "m", "messages": MESSAGES, "completion_id": "unknown"}
    answer = httpx.post(url + CHAT, json=body)
    assert answer.json()["id"] == "unknown", answer.text
    assert httpx.get(f"{url}{CHAT}/unknown").json()["choices"] == answer.json()["choices"]


def test_without_the_setting_an_unknown_id_is_404() -> None:
    with served() as url:
        assert httpx.get(f"{url}{CHAT}/any").status_code == 404
        assert httpx.delete(f"{url}{RESPONSES}/any").status_code == 404
        assert httpx.post(url + RESPONSES, json={}).status_code == 400


def test_in_front_of_an_upstream_the_setting_changes_nothing() -> None:
    with served() as mock, served(chat_url=f"{mock}/ask", mock_any_id=True) as url:
        assert httpx.get(f"{url}{CHAT}/any").status_code == 404
