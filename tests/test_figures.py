"""Figures of a message: what is found in it, and that Plotly's own package takes what is found."""

from typing import Any

import orjson
import plotly.graph_objects as go
import pytest
from growth import LINEAR, growth
from hypothesis import given
from hypothesis import strategies as st

from rewrap.figures import MAX_CHARACTERS, TRACE, all_figures, figures

BARS = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {"title": {"text": "T"}}}


def found(text: str) -> list[dict[str, Any]]:
    """The figures of a text, each of them accepted by Plotly and by JSON."""
    result = figures({"role": "assistant", "content": text})
    for each in result:
        assert set(each) == {"data", "layout"}
        go.Figure(each)
        orjson.dumps(each)
    return result


def column(*cells: str, name: str = "v") -> Any:
    """What the cells of a number column become, or None if the table has no figure."""
    table = f"| k | {name} |\n|---|---|\n" + "\n".join(
        f"| k{at} | {cell} |" for at, cell in enumerate(cells)
    )
    result = found(table)
    return result[0]["data"][0]["y"] if result else None


def test_a_table_of_numbers_becomes_bars() -> None:
    (figure,) = found(
        "Here:\n\n| City | People | Area |\n|:-----|------:|:---:|\n| Rome | 2,761,632 | 1285 |\n| Oslo | 717710 | 454.1 |\n\nDone."
    )
    assert [trace["type"] for trace in figure["data"]] == ["bar", "bar"]
    assert [trace["name"] for trace in figure["data"]] == ["People", "Area"]
    assert [trace["x"] for trace in figure["data"]] == [["Rome", "Oslo"]] * 2
    assert [trace["y"] for trace in figure["data"]] == [[2761632, 717710], [1285, 454.1]]
    assert figure["layout"] == {"xaxis": {"title": {"text": "City"}, "type": "category"}}


def test_a_single_series_is_the_title_of_the_y_axis() -> None:
    (figure,) = found("k|v\n-|-\na|1")
    assert figure["layout"]["yaxis"] == {"title": {"text": "v"}}


def test_numbers_in_the_first_column_become_a_line() -> None:
    (figure,) = found("| Year | Sales |\n|--|--|\n| 2023 | 1 |\n| 2024 | 2 |")
    assert figure["data"] == [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Sales",
            "x": [2023, 2024],
            "y": [1, 2],
        }
    ]
    assert figure["layout"]["xaxis"]["type"] == "linear"


@pytest.mark.parametrize(
    "days",
    [
        ("2024-01-31", "2024-02-29"),
        ("2024-01", "2024-12"),
        ("2024-01-31T10:00:00Z", "2024-01-31 11:00"),
    ],
)
def test_dates_in_the_first_column_become_a_line(days: tuple[str, str]) -> None:
    (figure,) = found(f"| Day | v |\n|--|--|\n| {days[0]} | 1 |\n| {days[1]} | 2 |")
    assert figure["data"][0]["type"] == "scatter"
    assert figure["data"][0]["x"] == list(days)
    assert figure["layout"]["xaxis"]["type"] == "date"


@pytest.mark.parametrize(
    "days",
    [("2024-13", "2024-01"), ("2024-01-32", "2024-01-01"), ("Q1", "2024-01"), ("", "2024-01")],
)
def test_labels_that_are_not_all_dates_are_categories(days: tuple[str, str]) -> None:
    (figure,) = found(f"| Day | v |\n|--|--|\n| {days[0]} | 1 |\n| {days[1]} | 2 |")
    assert figure["layout"]["xaxis"]["type"] == "category"


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1,234,567.5", 1234567.5), ("-5", -5), ("\u22125", -5), ("+5", 5), ("12%", 12), ("12.5 %", 12.5), ("$1,200", 1200),
        ("-$5", -5), ("$-5", -5), ("€ 5", 5), ("5 €", 5), ("5\u00a0€", 5), (".5", 0.5), ("5.", 5), ("1e3", 1000), ("**7**", 7),
        ("`8`", 8), ("1e-3", 0.001), ("9" * 18, 1e18), ("9" * 30, 1e30),
    ],
)  # fmt: skip
def test_a_cell_is_read_as_a_number(cell: str, number: float) -> None:
    assert column(cell) == [number]


@pytest.mark.parametrize(
    "cell",
    [
        "abc",
        "1,23",
        "1.2.3",
        ".e5",
        "-.e1",
        "1 2",
        "--5",
        "-$-5",
        "5 kg",
        "1e999",
        "0x10",
        "٣",
        "$",
        ".",
        "e5",
        "5%%",
        "9" * 40,
        "1,2345",
    ],
)
def test_a_table_with_a_cell_that_is_not_a_number_has_no_figure(cell: str) -> None:
    assert column("1", cell) is None


@pytest.mark.parametrize("cell", ["", "-", "–", "n/a", "N/A", "null", "NaN"])
def test_a_missing_number_leaves_a_gap(cell: str) -> None:
    assert column("1", cell, "3") == [1, None, 3]


def test_a_table_with_a_column_without_numbers_has_no_figure() -> None:
    assert column("", "-") is None


def test_a_table_with_a_column_of_words_has_no_figure() -> None:
    assert found("| a | b | c |\n|-|-|-|\n| x | 1 | yes |") == []


def test_an_escaped_pipe_is_text() -> None:
    (figure,) = found("| a \\| b | v |\n|---|---|\n| c \\| d | 1 |")
    assert figure["data"][0]["x"] == ["c | d"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "a | b"


def test_ragged_rows_are_tolerated() -> None:
    (figure,) = found("| k | v | w |\n|---|---|---|\n| a | 1 |\n| b | 2 | 3 | 4 |\n|\n| c | | 5 |")
    assert [trace["y"] for trace in figure["data"]] == [[1, 2, None], [None, 3, 5]]
    assert figure["data"][0]["x"] == ["a", "b", "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_without_outer_pipes_in_lists_and_with_any_line_end_are_read(end: str) -> None:
    (figure,) = found(end.join(["1. List", "   k | v", "   :-|-:", "   a | 1", "end of the table"]))
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == (["a"], [1])


@pytest.mark.parametrize(
    "text",
    [
        "k | v\na | 1", "k | v\n---\na | 1", "k | v\n--|--|--\na | 1|2", "| k |\n|---|\n| 1 |", "k\n-|-\na|1", "| k | v |\n|---|---|",
        "k | v\n-|x\na|1",
    ],
)  # fmt: skip
def test_a_text_that_is_not_a_table_in_gfm_has_no_figure(text: str) -> None:
    assert found(text) == []


TABLE = "k|v\n-|-\na|1\n"


@pytest.mark.parametrize(
    "fence",
    [
        "```\n{}```",
        "```text\n{}```",
        "~~~\n{}~~~",
        "  ````md\n```\n{}```\n````",
        "```\n{}",
        "~~~ a`b\n{}~~~",
    ],
)
def test_a_table_inside_a_code_fence_has_no_figure(fence: str) -> None:
    assert found(fence.format(TABLE)) == []
    assert len(found(fence.format(TABLE) + "\n" + TABLE)) == (0 if fence == "```\n{}" else 1)


def test_backticks_within_a_line_do_not_open_a_fence() -> None:
    assert len(found(f"```code``` and\n{TABLE}")) == 1


def test_a_fence_ends_a_table() -> None:
    assert found(f"{TABLE}```|\nb|2\n```")[0]["data"][0]["x"] == ["a"]


@pytest.mark.parametrize("info", ["json", "plotly", "JSON", "json title=x", " json"])
@pytest.mark.parametrize("mark", ["```", "~~~~"])
def test_a_fenced_block_of_plotly_json_is_a_figure(info: str, mark: str) -> None:
    assert found(
        f"See:\n{mark}{info}\n{orjson.dumps(BARS, option=orjson.OPT_INDENT_2).decode()}\n{mark}\nthere."
    ) == [BARS]


def test_a_block_in_another_language_is_not_a_figure() -> None:
    assert found(f"```python\n{orjson.dumps(BARS).decode()}\n```") == []


@pytest.mark.parametrize(
    "other",
    [
        "{", "[]", "1", "null", '{"data": []}', '{"data": {}}', '{"data": [1]}', '{"data": [{}]}', '{"data": [{"id": 1, "name": "x"}]}',
        '{"data": [{"x": 1, "y": 2}]}', '{"data": [{"type": "user"}]}', '{"data": [{"type": ["bar"]}]}', '{"data": [{"type": null}]}',
        '{"data": [{"type": "bar", "y": 3}]}', '{"data": [{"y": [NaN]}]}', '{"data": [{"y": [1]}], "layout": []  , "x":1',
        '{"data": [{"y": [1]}], "layout": 5}', '{"data": [{"y": [1]}, 5]}', '{"data":[{"y":' + "[" * 300 + "]" * 300 + "}]}",
    ],
)  # fmt: skip
def test_other_json_is_not_a_figure(other: str) -> None:
    assert found(f"```json\n{other}\n```") == []


def test_a_trace_with_arrays_needs_no_type_and_no_layout() -> None:
    assert found('```json\n{"data": [{"y": [1, 2]}], "layout": null, "config": {}}\n```') == [
        {"data": [{"y": [1, 2]}], "layout": {}}
    ]


def test_figures_of_the_backend_come_before_those_of_the_text() -> None:
    pie = {"data": [{"type": "pie", "labels": ["a"], "values": [1]}], "layout": {}}
    typed = go.Figure(go.Scatter(y=[1.5, 2.5])).to_json()
    message = {
        "content": f"{TABLE}\n```json\n{orjson.dumps(pie).decode()}\n```\n{TABLE}",
        "figure": BARS,
        "figures": [pie, {"no": "figure"}, typed, 7],
    }
    result = figures(message)
    assert result[:2] == [BARS, pie]
    assert result[2]["data"][0]["type"] == "scatter"
    assert [each["data"][0]["type"] for each in result[3:]] == ["bar", "pie", "bar"]
    for each in result:
        go.Figure(each)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"content": None},
        {"content": "Hello"},
        {"content": 5},
        {"content": [1, {}, {"text": None}]},
        {"figure": None, "figures": {"data": []}},
    ],
)
def test_a_message_without_figures_has_none(message: dict[str, Any]) -> None:
    assert figures(message) == []


def test_content_parts_are_read_as_text() -> None:
    assert (
        len(
            figures(
                {
                    "content": [
                        {"type": "text", "text": "Look"},
                        {"type": "text", "text": TABLE},
                        {"type": "image_url"},
                    ]
                }
            )
        )
        == 1
    )


def test_the_trace_types_are_those_of_plotly() -> None:
    for kind in TRACE.pattern.split("|"):
        go.Figure({"data": [{"type": kind}]})


def test_a_table_of_more_than_20_columns_has_no_figure() -> None:
    rows = ["|".join("k" * 21), "|".join("-" * 21), "|".join("1" * 21)]
    assert found("\n".join(rows)) == []
    assert len(found("\n".join(row[:39] for row in rows))) == 1


def test_a_message_has_at_most_100_figures() -> None:
    assert len(figures({"content": (TABLE + "\n") * 101, "figure": BARS})) == 100


LINES = st.sampled_from(
    [
        "k | v",
        "|k|v|",
        "-|-",
        "|:-:|--:|",
        "a|1",
        "|b|$2|",
        "|c\\|d|3%|e|",
        "```",
        "```json",
        "~~~",
        '{"data":[{"y":[1]}]}',
        "",
        "|",
        "1|2|3",
        "2024-01|4",
    ]
)


@given(st.lists(LINES | st.text(max_size=12), max_size=25))
def test_plotly_accepts_the_figures_of_any_text(lines: list[str]) -> None:
    found("\n".join(lines))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["data", "layout", "type", "x", "y"]), inner)
        ),
    )
)
def test_any_value_of_a_backend_is_a_figure_or_nothing(value: object) -> None:
    for each in figures({"figure": value, "figures": value, "content": value}):
        assert each["data"]
        assert isinstance(each["layout"], dict)


@pytest.mark.parametrize(
    "piece",
    [
        "|",
        "|\n",
        "|-",
        "|-|-|\n",
        ":-|",
        "`",
        "`` ",
        "```\n",
        "```json\n",
        "~",
        " ",
        "\\|",
        "1",
        "*",
        "[",
        "|" + "1,111",
        "a|b\n-|-\n1|1\n\n",
        "```json\n{\n```\n",
    ],
)
@pytest.mark.parametrize("head", ["", "a|b\n-|-\n1|", "~~~"])
def test_the_cost_of_a_hostile_text_is_linear(piece: str, head: str) -> None:
    def message(size: int) -> dict[str, Any]:
        return {"content": head + piece * (size // len(piece)) + "`"}

    assert growth(message, figures, 30_000) < LINEAR


def test_the_cost_of_many_values_of_a_backend_is_linear() -> None:
    for value in (BARS, "{", [[]], {"data": [{"y": [1]}] * 100}):

        def message(size: int, value: object = value) -> dict[str, Any]:
            return {"figures": [value] * size}

        assert growth(message, lambda message: list(all_figures(message)), 100) < LINEAR


def test_a_text_is_searched_up_to_a_bound() -> None:
    before = "x" * (MAX_CHARACTERS - len(TABLE) - 1) + "\n"
    assert len(figures({"content": before + TABLE})) == 1
    assert figures({"content": before + "x" * len(TABLE) + "\n" + TABLE}) == []


def test_the_json_of_a_figure_is_bounded() -> None:
    for value, count in ((BARS, 1), (BARS | {"x": "x" * MAX_CHARACTERS}, 0)):
        text = orjson.dumps(value).decode()
        assert len(figures({"figure": value})) == count
        assert len(figures({"figure": text})) == count


def test_the_figures_of_a_text_are_at_most_25_times_as_large() -> None:
    label = "x" * 1000
    rows = [f"{label}{'|1' * 19}"] * 1000
    text = "\n".join(["k" + "|v" * 19, "-" + "|-" * 19, *rows])
    found = figures({"content": text})
    assert len(found) == 1
    assert len(orjson.dumps(found)) < 25 * len(text)
