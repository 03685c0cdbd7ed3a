"""docs/mock.md says what the mock does: its snippets load, and its tables name all fields there are."""

import re
from dataclasses import fields
from pathlib import Path

import orjson
import pytest

from rewrap.mock.answers import VALUES
from rewrap.mock.conditions import APIS, FORMATS, TEXT_FIELDS
from rewrap.mock.errors import CATALOGUE
from rewrap.mock.faults import ARGUMENTS, parse_faults
from rewrap.mock.journal import Journal
from rewrap.mock.pace import PACE_FIELDS
from rewrap.mock.rules import RuleSet
from rewrap.mock.rules_file import RULE_FIELDS, WHEN_FIELDS
from rewrap.mock.steps import STEP_FIELDS

TEXT = (Path(__file__).parent.parent / "docs" / "mock.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def first_column(heading: str) -> list[str]:
    """The names in code in the first column of the table with this heading."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*?(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE)
    assert table is not None
    rows = table[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("snippet", snippets("toml"))
def test_every_toml_snippet_loads(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(snippet)
    assert len(RuleSet.load(file)) >= 1


def test_the_page_has_snippets_of_every_part() -> None:
    assert len(snippets("toml")) >= 8


def test_the_json_snippet_can_be_added() -> None:
    (snippet,) = snippets("json")
    assert RuleSet().add(orjson.loads(snippet)) == 2


def test_the_fields_of_a_rule_are_all_there() -> None:
    assert sorted(first_column("field")) == sorted(RULE_FIELDS)


def test_the_conditions_are_all_there() -> None:
    assert sorted(first_column("field of `when`")) == sorted(WHEN_FIELDS)
    for name in (*APIS, *FORMATS):
        assert f"`{name}`" in TEXT


def test_the_text_tests_are_all_there() -> None:
    table = TEXT[TEXT.index("A text test is") :]
    assert re.findall(r"^\| `(\w+)` \| the", table, re.MULTILINE)[:3] == list(TEXT_FIELDS)


def test_the_answers_are_all_there() -> None:
    assert sorted(first_column("field of `then`")) == sorted(STEP_FIELDS)


def test_the_placeholders_are_all_there() -> None:
    part = TEXT[TEXT.index("### Placeholders") : TEXT.index("### Sequences")]
    assert all(f"`{{{name}}}`" in part for name in VALUES)


def test_the_errors_are_all_there_with_status_and_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (?:`(\w+)`)? ?\|$", TEXT, re.MULTILINE)
    assert rows == [
        (name, str(entry.status), entry.code or "") for name, entry in CATALOGUE.items()
    ]


def test_the_faults_are_all_there_and_can_be_read() -> None:
    named = first_column("fault")
    kinds = {fault.kind for text in named for fault in parse_faults(text)}
    assert kinds == {*ARGUMENTS, "error"}


def test_the_pace_headers_are_all_there() -> None:
    for name in PACE_FIELDS:
        assert f"`x-mock-{name.replace('_', '-')}`" in TEXT


def test_the_members_of_an_entry_are_all_there() -> None:
    entry = Journal().record(id="", api="", path="", model="", messages=[])
    assert sorted(first_column("member")) == sorted(entry.as_json())
    assert len(fields(entry)) == len(entry.as_json())
