"""The journal of the mock: bounded in entries, bytes and work, filtered, and without secrets."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.mock.journal import ENTRY_CHARACTERS, Entry, Journal

KEY = "sk-proj-0123456789abcdef"


def recorded(journal: Journal, *texts: str, **members: Any) -> Entry:
    messages = [{"role": "user", "content": text} for text in texts]
    known = {
        "id": "req_1",
        "api": "chat",
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": messages,
    }
    return journal.record(**(known | members))


def test_an_entry_has_all_that_a_test_asks_for() -> None:
    journal = Journal()
    entry = recorded(journal, "Hi", lane="one", rule="greeting")
    assert entry.as_json()["status"] is None
    entry.status = 200
    made = entry.as_json()
    assert abs(made.pop("time") - time.time()) < 10
    assert made == {
        "id": "req_1",
        "api": "chat",
        "path": "/v1/chat/completions",
        "model": "m",
        "lane": "one",
        "rule": "greeting",
        "status": 200,
        "difference": None,
        "truncated": False,
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_a_miss_has_the_difference() -> None:
    assert (
        recorded(Journal(), "x", difference="Nearest is a: …").as_json()["difference"]
        == "Nearest is a: …"
    )


def test_the_oldest_entries_are_forgotten() -> None:
    journal = Journal(max_entries=3)
    for number in range(5):
        recorded(journal, "x", id=f"req_{number}")
    assert [entry.id for entry in journal.find()] == ["req_2", "req_3", "req_4"]


def test_entries_are_bounded_in_bytes_together() -> None:
    journal = Journal(max_bytes=10_000)
    for _ in range(100):
        recorded(journal, "x" * 3_000)
        assert sum(len(entry.messages) for entry in journal.entries) == journal.bytes <= 10_000
    assert len(journal.entries) == 3


def test_entries_are_found_by_model_path_and_rule() -> None:
    journal = Journal()
    recorded(journal, "1", model="a", path="/v1/chat/completions", rule="r")
    recorded(journal, "2", model="b", path="/v1/embeddings")
    recorded(journal, "3", model="a", path="/v1/embeddings", rule="r")

    def found(**filters: Any) -> list[str]:
        return [entry.as_json()["messages"][0]["content"] for entry in journal.find(**filters)]

    assert found() == ["1", "2", "3"]
    assert found(model="a") == ["1", "3"]
    assert found(path="/v1/embeddings") == ["2", "3"]
    assert found(rule="r") == ["1", "3"]
    assert found(model="a", path="/v1/embeddings", rule="r") == ["3"]
    assert found(model="c") == []
    assert found(limit=2) == ["2", "3"]
    assert found(model="a", limit=1) == ["3"]


def test_clear_forgets_everything() -> None:
    journal = Journal()
    recorded(journal, "x")
    journal.clear()
    assert journal.find() == []
    assert journal.bytes == 0


def test_a_large_request_is_cut_and_says_so() -> None:
    entry = recorded(Journal(), "x" * 10**6)
    assert entry.truncated
    assert len(entry.messages) < ENTRY_CHARACTERS + 200
    assert entry.as_json()["messages"][0]["content"].startswith("xxx")


def test_of_many_messages_the_newest_are_kept() -> None:
    entry = recorded(Journal(), *[f"{number} " + "x" * 1_000 for number in range(200)])
    kept = entry.as_json()["messages"]
    assert entry.truncated
    assert kept[-1]["content"].startswith("199 ")
    assert 50 < len(kept) < 70


def test_a_request_that_just_fits_is_whole() -> None:
    entry = recorded(Journal(), "x" * (ENTRY_CHARACTERS - 100))
    assert not entry.truncated
    assert len(entry.as_json()["messages"][0]["content"]) == ENTRY_CHARACTERS - 100


def test_images_and_deep_json_are_cut_too() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    entry = recorded(
        Journal(),
        messages=[{"role": "user", "content": [{"image": "A" * 10**7}]}, {"content": deep}],
    )
    assert entry.truncated
    assert len(entry.messages) < 2 * ENTRY_CHARACTERS


def test_the_work_does_not_grow_with_the_request() -> None:
    def cost(messages: list[dict[str, Any]]) -> float:
        journal = Journal()
        best = 1e9
        for _ in range(5):
            started = time.process_time()
            recorded(journal, messages=messages)
            best = min(best, time.process_time() - started)
        return best

    some = [{"role": "user", "content": "x" * 100}] * 5_000
    assert cost(some * 20) < 5 * cost(some)
    assert cost([{"content": list(range(10**6))}]) < 5 * cost([{"content": list(range(50_000))}])


SECRET_PLACES: dict[str, dict[str, Any]] = {
    "a message": {"messages": [{"role": "user", "content": f"my key is {KEY}, keep it"}]},
    "a part": {"messages": [{"role": "user", "content": [{"type": "text", "text": KEY}]}]},
    "a name": {"messages": [{"role": "user", KEY: "x"}]},
    "arguments": {"messages": [{"tool_calls": [{"function": {"arguments": f'{{"k": "{KEY}"}}'}}]}]},
    "the model": {"model": KEY},
    "the path": {"path": f"/v1/{KEY}/chat"},
    "the query": {"path": f"/v1/chat?api-key={KEY}"},
    "the lane": {"lane": KEY},
    "the difference": {"difference": f"got {KEY}"},
}


@pytest.mark.parametrize("place", SECRET_PLACES)
def test_no_secret_of_the_request_is_kept(place: str) -> None:
    entry = recorded(Journal(), "x", **SECRET_PLACES[place], secrets=["", "abc", KEY])
    assert KEY.encode() not in orjson.dumps(entry.as_json())


def test_texts_that_resemble_secrets_stay() -> None:
    entry = recorded(Journal(), "sk-other-0123456789 and Bearer abc", secrets=[KEY])
    assert entry.as_json()["messages"][0]["content"] == "sk-other-0123456789 and Bearer abc"


@given(st.integers(-60, 60), st.integers(0, 40))
def test_no_part_of_a_secret_is_left_where_a_text_is_cut(offset: int, before: int) -> None:
    text = (
        KEY * before + "x" * (ENTRY_CHARACTERS + offset - len(KEY) * before) + KEY + "y" * 100_000
    )
    entry = recorded(Journal(), text, secrets=[KEY])
    assert b"sk-" not in entry.messages


def test_the_query_of_a_path_is_not_kept() -> None:
    assert recorded(Journal(), "x", path="/v1/chat?api-key=abc&x=1").path == "/v1/chat"


def test_long_names_are_cut() -> None:
    entry = recorded(
        Journal(),
        "x",
        model="m" * 10**5,
        path="/" * 10**5,
        lane="l" * 10**5,
        rule="r" * 10**5,
        difference="d" * 10**5,
    )
    assert len(orjson.dumps(entry.as_json())) < 4_000
