r"""The figures of a message, as Plotly JSON: `{"data": [trace, ...], "layout": {...}}`.

They are found in this order: the members `figure` and `figures` that the backend sent with its
reply, then, as they stand in the text, fenced blocks of Plotly JSON (```json or ```plotly) and
Markdown tables (GFM) of numbers. The cost is linear in the text. Nothing is drawn here. A figure's
form and trace types are checked, its other properties are not. Imports types and leaf files.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice

import orjson

from rewrap.regex import regex
from rewrap.types import JSONObject, text_of

# https://plotly.com/javascript/reference/
TRACE = regex(
    "bar|barpolar|box|candlestick|carpet|choropleth|choroplethmap|cone|contour|contourcarpet"
    "|densitymap|funnel|funnelarea|heatmap|histogram|histogram2d|histogram2dcontour|icicle|image"
    "|indicator|isosurface|mesh3d|ohlc|parcats|parcoords|pie|quiver|sankey|scatter|scatter3d"
    "|scattercarpet|scattergeo|scattergl|scattermap|scatterpolar|scatterpolargl|scattersmith"
    "|scatterternary|splom|streamtube|sunburst|surface|table|treemap|violin|volume|waterfall"
)
MAX_FIGURES = 100  # of a message: a table can be as short as ten characters
# Of a message's text, and of one figure's JSON. orjson holds the interpreter for 20 ms a megabyte
# of brackets, and nothing else runs meanwhile.
MAX_CHARACTERS = 2**21
MAX_COLUMNS = 20  # every series repeats the labels: a figure is at most 20 times its table
MAX_NUMBER_CHARACTERS = 40

# Three or more ` or ~. A ` after them would make it inline code. Possessive: linear time.
FENCE = regex(r"\s*+(`{3,}+(?=[^`]*$)|~{3,}+)(.*)")
LANGUAGE = regex(r"\s*(json|plotly)(\s|$)", re.IGNORECASE)
PIPE = regex(r"(?<!\\)\|")
RULE = regex(r":?-+:?")
RULE_CHARACTERS = frozenset("|-: \t\r")
DATE = regex(r"[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01])([T ][0-9:.]{4,15}Z?)?)?")
NUMBER = regex(
    r"([-+]?) ?[$€£¥₹₩₽₺₫₪฿]? ?(-?)(?=\.?[0-9])"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)"
    r" ?[$€£¥₹₩₽₺₫₪฿%]?"
)
MISSING = regex(r"(-|--|–|—|\?|n/a|na|nan|none|null)?", re.IGNORECASE)

Number = int | float | None  # None: an empty cell


def figures(message: JSONObject) -> list[JSONObject]:
    """The figures of a message, at most 100. Its `content` is a text, or a list of parts."""
    return list(islice(all_figures(message), MAX_FIGURES))


def all_figures(message: JSONObject) -> Iterator[JSONObject]:
    sent = [message.get("figure")]
    more = message.get("figures")
    if isinstance(more, list):
        sent += more
    for value in sent:
        found = figure(value)
        if found is not None:
            yield found
    text = text_of(message.get("content"))
    yield from text_figures(text[:MAX_CHARACTERS])


# Plotly JSON.


def figure(value: object) -> JSONObject | None:
    """A figure from a JSON value or from its text. None if the value is something else."""
    try:
        text = value if isinstance(value, str) else orjson.dumps(value)
        if len(text) > MAX_CHARACTERS:
            return None
        found = orjson.loads(text)
        orjson.dumps(found)  # orjson reads deeper nesting than it writes
    except (ValueError, TypeError):
        return None
    if not isinstance(found, dict):
        return None
    data = found.get("data")
    layout = found.get("layout") or {}
    if not isinstance(data, list) or not data or not isinstance(layout, dict):
        return None
    if not all(is_trace(trace) for trace in data):
        return None
    return {"data": data, "layout": layout}


def is_trace(value: object) -> bool:
    """Whether a value has a trace type of Plotly, or arrays as `x` or `y`.

    The check is strict because many APIs answer `{"data": [{...}]}`. An array may be an object:
    `{"dtype": "f8", "bdata": base64}`.
    """
    if not isinstance(value, dict):
        return False
    axes = [value[axis] for axis in ("x", "y") if value.get(axis) is not None]
    if not all(isinstance(axis, list | dict) for axis in axes):
        return False
    if "type" in value:
        return TRACE.fullmatch(str(value["type"])) is not None
    return bool(axes)


# Texts.


def text_figures(text: str) -> Iterator[JSONObject]:
    """The figures in a text. A line is read once as a start, and once as part of a figure."""
    lines = text.split("\n")
    position = 0
    while position < len(lines):
        found = None
        if fence := FENCE.match(lines[position]):
            end = fence_end(lines, position + 1, fence[1])
            if LANGUAGE.match(fence[2]):
                found = figure("\n".join(lines[position + 1 : end]))
            position = end + 1
        elif names := header(lines[position : position + 2]):
            end = table_end(lines, position + 2)
            found = chart(names, [cells(line) for line in lines[position + 2 : end]])
            position = end
        else:
            position += 1
        if found is not None:
            yield found


def fence_end(lines: Sequence[str], position: int, fence: str) -> int:
    """The line that closes a fence: at least as many of its own characters, and nothing else."""
    while position < len(lines):
        line = lines[position].strip()
        if line.startswith(fence) and not line.strip(fence[0]):
            break
        position += 1
    return position


def table_end(lines: Sequence[str], position: int) -> int:
    """The first line after a table."""
    while position < len(lines):
        line = lines[position]
        if "|" not in line or FENCE.match(line):
            break
        position += 1
    return position


def header(lines: Sequence[str]) -> list[str] | None:
    """The column names of a table, whose second line has a cell of dashes for each of them."""
    if len(lines) < 2:
        return None
    line, rule = lines
    if "|" not in line or "-" not in rule or not RULE_CHARACTERS.issuperset(rule):
        return None
    names = cells(line)
    rules = cells(rule)
    if not 2 <= len(names) <= MAX_COLUMNS or len(names) != len(rules):
        return None
    if not all(RULE.fullmatch(cell) for cell in rules):
        return None
    return names


def cells(row: str) -> list[str]:
    r"""The cells of a row without emphasis. `\|` is part of a cell; outer pipes are optional."""
    parts = PIPE.split(row.strip().removeprefix("|"))
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return [plain_cell(part) for part in parts]


def plain_cell(cell: str) -> str:
    cell = cell.strip().strip("*`").strip()
    return cell.replace("\\|", "|")


# Tables.


def chart(names: Sequence[str], rows: Sequence[list[str]]) -> JSONObject | None:
    """Lines over numbers or dates, bars over other labels.

    None if a column after the first holds anything but numbers.
    """
    blank = [""] * len(names)
    full = [(row + blank)[: len(names)] for row in rows if any(row)]
    if not full:
        return None
    labels, *columns = zip(*full, strict=True)
    kind, axis = axis_of(labels)
    data = []
    for name, column in zip(names[1:], columns, strict=True):
        values = column_numbers(column)
        if values is None:
            return None
        data.append(trace(kind) | {"name": name, "x": axis, "y": values})
    layout: JSONObject = {"xaxis": titled(names[0]) | {"type": kind}}
    if len(data) == 1:
        layout["yaxis"] = titled(names[1])
    return {"data": data, "layout": layout}


def titled(name: str) -> JSONObject:
    return {"title": {"text": name}}


def axis_of(labels: Sequence[str]) -> tuple[str, list[Number] | list[str]]:
    """The type of the x axis, and the values on it."""
    values = column_numbers(labels)
    if values is not None:
        return "linear", values
    if all(DATE.fullmatch(label) for label in labels):
        return "date", list(labels)
    return "category", list(labels)


def trace(axis: str) -> JSONObject:
    if axis == "category":
        return {"type": "bar"}
    return {"type": "scatter", "mode": "lines+markers"}


def column_numbers(column: Sequence[str]) -> list[Number] | None:
    """A column as numbers. None if a cell holds anything else, or if all cells are empty."""
    values = []
    for cell in column:
        value = cell_number(cell)
        if value is None and not MISSING.fullmatch(cell):
            return None
        values.append(value)
    if all(value is None for value in values):
        return None
    return values


def cell_number(cell: str) -> Number:
    """The number in `-1,234.50`, `$5`, `5 €`, `12%`, `1e6`. None for any other text.

    A comma has to separate thousands.
    """
    if not cell or len(cell) >= MAX_NUMBER_CHARACTERS:
        return None
    text = cell.replace("−", "-").replace("\xa0", " ")
    found = NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, inner_sign, digits = found.groups()
    if sign and inner_sign:
        return None
    value = float(sign + inner_sign + digits.replace(",", ""))
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    if not math.isfinite(value):
        return None
    return value
