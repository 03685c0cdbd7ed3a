"""Figures of a message, as Plotly JSON: `{"data": [trace, …], "layout": {…}}`.

Found, in this order: what the backend sent with its reply (members `figure` and `figures` of the message), then, as
they come in the text, fenced blocks of Plotly JSON (```json or ```plotly) and Markdown tables (GFM) of numbers.
Costs time linear in the text, whatever the text. Does not draw, and does not check every property as Plotly's own
package does: only that the shape is a figure's, and its traces are of types that Plotly has.
"""

import math
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import orjson

Figure = dict[str, Any]

# https://plotly.com/javascript/reference/
TRACE = re.compile(
    "bar|barpolar|box|candlestick|carpet|choropleth|choroplethmap|cone|contour|contourcarpet|densitymap|funnel|funnelarea"
    "|heatmap|histogram|histogram2d|histogram2dcontour|icicle|image|indicator|isosurface|mesh3d|ohlc|parcats|parcoords|pie"
    "|quiver|sankey|scatter|scatter3d|scattercarpet|scattergeo|scattergl|scattermap|scatterpolar|scatterpolargl"
    "|scattersmith|scatterternary|splom|streamtube|sunburst|surface|table|treemap|violin|volume|waterfall"
)
MAX_FIGURES = 100  # of one message: a hostile one could have a table every ten characters
MAX_COLUMNS = 20  # every series repeats the labels: this bounds the figure by 20 times its table
FENCE = re.compile(
    r"\s*+(`{3,}+(?=[^`]*$)|~{3,}+)(.*)"
)  # ```inline``` is no fence; possessive: nothing is tried twice
PIPE = re.compile(r"(?<!\\)\|")
RULE = re.compile(r":?-+:?")
DATE = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01])([T ][0-9:.]{4,15}Z?)?)?")
NUMBER = re.compile(
    r"([-+]?) ?[$€£¥₹₩₽₺₫₪฿]? ?(-?)(?=\.?[0-9])((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)"
    r" ?[$€£¥₹₩₽₺₫₪฿%]?"
)
MISSING = {"", "-", "--", "–", "—", "?", "n/a", "na", "nan", "none", "null"}


def figures(message: dict[str, Any]) -> list[Figure]:
    """The figures of a message, at most 100; its `content` is text, or a list of parts with `text`."""
    sent = message.get("figures")
    given = [message.get("figure"), *(sent if isinstance(sent, list) else [])]
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(
            str(part.get("text") or "") for part in content if isinstance(part, dict)
        )
    found = chain(map(figure, given), drawn(content) if isinstance(content, str) else ())
    return list(islice(filter(None, found), MAX_FIGURES))


def figure(value: object) -> Figure | None:
    """A value, or its JSON, as a figure; None where it is something else."""
    try:
        # orjson reads deeper nesting than it writes: what could not be sent again is no figure.
        found: Any = orjson.loads(value if isinstance(value, str) else orjson.dumps(value))
        orjson.dumps(found)
    except (ValueError, TypeError):
        return None
    match found:
        case {"data": [_, *_] as data} if all(map(is_trace, data)):
            layout = found.get("layout") or {}
            return {"data": data, "layout": layout} if isinstance(layout, dict) else None
    return None


def is_trace(value: object) -> bool:
    """Many an API answers `{"data": [{…}]}`: a trace has a type of Plotly's, or arrays to draw as `x` or `y`."""
    if not isinstance(value, dict):
        return False
    # An array may be an object: {"dtype": "f8", "bdata": base64}.
    arrays = [isinstance(value[axis], list | dict) for axis in "xy" if value.get(axis) is not None]
    return all(arrays) and bool(TRACE.fullmatch(str(value["type"])) if "type" in value else arrays)


def drawn(text: str) -> Iterator[Figure | None]:
    """The figures in a text: each line is looked at once as part of a fence or table, once as the start of one."""
    lines, at = text.split("\n"), 0
    while at < len(lines):
        start, at = at, at + 1
        if fence := FENCE.match(lines[start]):
            while at < len(lines) and not closes(lines[at].strip(), fence[1]):
                at += 1
            if fence[2].lower().split(maxsplit=1)[:1] in (["json"], ["plotly"]):
                yield figure("\n".join(lines[start + 1 : at]))
            at += 1
        elif at < len(lines) and (head := header(lines[start], lines[at])):
            at += 1
            while at < len(lines) and "|" in lines[at] and not FENCE.match(lines[at]):
                at += 1
            yield chart(head, [cells(line) for line in lines[start + 2 : at]])


def closes(line: str, fence: str) -> bool:
    """A fence is closed by a line of at least as many of its own characters alone, or by the end of the text."""
    return line.startswith(fence) and not line.strip(fence[0])


def header(line: str, rule: str) -> list[str] | None:
    """The names of a table's columns, if `rule` is the row of dashes under them (GFM: as many cells as the header)."""
    if "|" not in line or "-" not in rule or not set(rule) <= set("|-: \t\r"):
        return None
    names, rules = cells(line), cells(rule)
    return (
        names
        if 2 <= len(names) == len(rules) <= MAX_COLUMNS and all(map(RULE.fullmatch, rules))
        else None
    )


def cells(row: str) -> list[str]:
    r"""The cells of a row, without emphasis; `\|` is a pipe of the text, the pipes at both ends are optional."""
    parts = PIPE.split(row.strip().removeprefix("|"))
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [part.strip().strip("*`").strip().replace("\\|", "|") for part in parts]


def chart(names: list[str], rows: list[list[str]]) -> Figure | None:
    """Lines over numbers or dates, bars over anything else; None unless every column after the first is of numbers."""
    full = [(row + [""] * len(names))[: len(names)] for row in rows if any(row)]
    labels, *columns = zip(*full, strict=True) if full else [()]
    series = [values for column in columns if (values := numbers(column))]
    if not columns or len(series) < len(columns):
        return None
    over = numbers(labels)
    kind = "linear" if over else "date" if all(map(DATE.fullmatch, labels)) else "category"
    trace = {"type": "bar"} if kind == "category" else {"type": "scatter", "mode": "lines+markers"}
    x = over or list(labels)
    data = [
        {**trace, "name": name, "x": x, "y": y} for name, y in zip(names[1:], series, strict=True)
    ]
    yaxis = {"yaxis": {"title": {"text": names[1]}}} if len(data) == 1 else {}
    return {"data": data, "layout": {"xaxis": {"title": {"text": names[0]}, "type": kind}, **yaxis}}


def numbers(column: tuple[str, ...]) -> list[int | float | None] | None:
    """A column as numbers, with None where a cell is empty; None if a cell is anything else, or all are empty."""
    values = [number(cell) if cell else None for cell in column]
    rest = {cell.lower() for value, cell in zip(values, column, strict=True) if value is None}
    return values if rest <= MISSING and any(value is not None for value in values) else None


def number(cell: str) -> int | float | None:
    """`-1,234.50`, `$5`, `5 €`, `12%`, `1e6`: as a number; None for anything else (a comma must part thousands)."""
    found = (
        NUMBER.fullmatch(cell.replace("−", "-").replace("\xa0", " ")) if len(cell) < 40 else None
    )
    if not found or (found[1] and found[2]):
        return None
    value = float(found[1] + found[2] + found[3].replace(",", ""))
    return (
        int(value)
        if value.is_integer() and abs(value) < 2**53
        else value
        if math.isfinite(value)
        else None
    )
