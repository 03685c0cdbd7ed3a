"""The command line: `rewrap [COMMAND] [--SETTING VALUE ...]`, from the table of settings.

A flag is a setting's name in lower case with dashes: `--chat-url` is CHAT_URL. Flags win over the environment, the environment
over `.env`. Knows no command's work.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches

from rewrap import __version__
from rewrap.config.settings import GROUPS, Settings, default_text

COMMANDS = {
    "serve": "serve the API (the default)",
    "check": "print the backends of the settings, and exit with 0 or 2",
    "key": "print a new API key: rewrap key USER [--days N] [--save [FILE]]",
    "probe": "find out the API of a chat URL: rewrap probe URL",
}
OWN_ARGUMENTS = ("key", "probe")
WIDTH = 79


class UsageError(Exception):
    """A command line that cannot be understood. Its text is one line."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command, the settings of its flags, and what it reads itself."""

    command: str
    settings: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    text: str = ""  # for help and version


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Raises UsageError. It names the nearest command or flag for one that is unknown."""
    arguments = list(argv)
    command = "serve"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
        if command not in COMMANDS:
            raise UsageError(f"{command!r} is not a command{nearest(command, list(COMMANDS))}")
    if command in OWN_ARGUMENTS:
        return Arguments(command, rest=arguments)
    if "--version" in arguments:
        return Arguments("version", text=f"rewrap {__version__}")
    if "--help" in arguments or "-h" in arguments:
        return Arguments("help", text=help_text())
    return Arguments(command, settings=parse_flags(arguments))


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """`["--port", "0"]` or `["--port=0"]` as `{"PORT": "0"}`. A true-or-false flag needs no value."""
    known = {flag(spec.name): spec for spec in fields(Settings)}
    settings: dict[str, str] = {}
    pending = list(arguments)
    while pending:
        name, equals, value = pending.pop(0).partition("=")
        if name not in known:
            raise UsageError(f"{name} is not a flag{nearest(name, list(known))}")
        has_value = bool(pending) and not pending[0].startswith("--")
        if not equals and known[name].type is bool and not is_boolean(pending[:1]):
            value = "true"
        elif not equals and not has_value:
            raise UsageError(f"{name} needs a value")
        elif not equals:
            value = pending.pop(0)
        settings[known[name].name.upper()] = value
    return settings


def is_boolean(values: Sequence[str]) -> bool:
    return bool(values) and values[0].lower() in ("true", "false", "yes", "no", "on", "off")


def flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message: the nearest known name, or how to list all."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return "; `rewrap --help` lists all"


def help_text() -> str:
    """All commands and settings, in groups, with their defaults, in 80 columns."""
    lines = ["usage: rewrap [COMMAND] [--SETTING VALUE ...]", "", "commands:"]
    for name, about in COMMANDS.items():
        lines += entry(name, about)
    lines += entry("--version", "print the version")
    lines += entry("--help", "print this text")
    specs = {spec.name: spec for spec in fields(Settings)}
    for title, names in GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names:
            default = default_text(specs[name])
            about = specs[name].metadata["about"]
            lines += entry(flag(name), f"{about} [{default}]" if default else about)
    return "\n".join(lines)


def entry(name: str, about: str) -> list[str]:
    """One row of the help: the name, and its text in a column of its own."""
    text = textwrap.wrap(about, WIDTH - 26)
    if len(name) > 22:
        return [f"  {name}", *(f"{'':26}{line}" for line in text)]
    first, *others = text
    return [f"  {name:24}{first}", *(f"{'':26}{line}" for line in others)]
