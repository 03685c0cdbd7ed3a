"""The formats of strings in JSON Schema: examples and checks. Imports leaf files alone."""

import ipaddress
from collections.abc import Callable
from datetime import date

from rewrap.regex import regex

FIRST_DAY = date(2025, 1, 15).toordinal()

# {n} counts from 1, {byte} from 1 to 250; {day} is a date.
EXAMPLES = {
    "base64url": "bW9jaw",
    "binary": "bW9jaw==",
    "byte": "bW9jaw==",
    "date": "{day}",
    "date-time": "{day}T09:30:00Z",
    "duration": "PT{n}H",
    "email": "user{n}@example.com",
    "hostname": "host{n}.example.com",
    "idn-email": "user{n}@example.com",
    "ipv4": "192.0.2.{byte}",
    "ipv6": "2001:db8::{byte:x}",
    "ipvanyaddress": "192.0.2.{byte}",
    "iri": "https://example.com/{n}",
    "json-pointer": "/{n}",
    "json-string": "[{n}]",
    "path": "file{n}.txt",
    "regex": "^a{n}$",
    "time": "09:30:00Z",
    "uri": "https://example.com/{n}",
    "uri-reference": "/{n}",
    "url": "https://example.com/{n}",
    "uuid": "00000000-0000-4000-8000-{n:012x}",
    "uuid4": "00000000-0000-4000-8000-{n:012x}",
}

# The last word of a property's name suggests a format where the schema has none.
HINTS = {
    "date": "date",
    "day": "date",
    "email": "email",
    "file": "path",
    "filename": "path",
    "link": "uri",
    "path": "path",
    "uri": "uri",
    "url": "uri",
    "uuid": "uuid",
}

TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
CLOCK = r"T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


def by_pattern(pattern: str) -> Callable[[str], bool]:
    compiled = regex(pattern)
    return lambda text: compiled.fullmatch(text) is not None


def by_parser(parser: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parser(text)
        except ValueError:
            return False
        return True

    return check


is_day = by_parser(date.fromisoformat)
is_date_time = by_pattern(rf"\d{{4}}-\d\d-\d\d[Tt ]{TIME}")

CHECKS: dict[str, Callable[[str], bool]] = {
    "date": lambda text: len(text) == 10 and text.count("-") == 2 and is_day(text),
    "date-time": lambda text: is_date_time(text) and is_day(text[:10]),
    "duration": by_pattern(rf"P(?=[\dT])(?:\d+W|(?:\d+Y)?(?:\d+M)?(?:\d+D)?(?:{CLOCK})?)"),
    "email": by_pattern(r"[^@\s]+@[^@\s]+"),
    "hostname": by_pattern(rf"(?=.{{1,253}}$){LABEL}(?:\.{LABEL})*"),
    "ipv4": by_parser(ipaddress.IPv4Address),
    "ipv6": by_parser(ipaddress.IPv6Address),
    "time": by_pattern(TIME),
    "uri": by_pattern(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]*"),
    "uuid": by_pattern(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"),
}


def example(name: object, variant: int) -> str:
    """A text of the format, another one for each variant; empty for a format not known here."""
    template = EXAMPLES.get(str(name))
    if template is None:
        return ""
    day = date.fromordinal(FIRST_DAY + variant % 10_000)
    return template.format(n=variant + 1, byte=1 + variant % 250, day=day)


def has_format(name: object, text: str) -> bool:
    """True for a format not known here, as in JSON Schema."""
    check = CHECKS.get(str(name))
    return check is None or check(text)
