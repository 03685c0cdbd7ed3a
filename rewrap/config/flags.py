"""The command line: `rewrap [COMMAND] [--SETTING VALUE ...]`, from the table of settings.

The flag of CHAT_URL is `--chat-url`. Flags win over the environment, and the environment wins over `.env`. Parses only: main.py
runs the commands.
"""

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import Field, field, fields
from difflib import get_close_matches
from functools import partial
from typing import NoReturn

from rewrap import __version__
from rewrap.config.settings import GROUPS, Settings, default_text, known_variables
from rewrap.structs import struct

COMMANDS = {
    "serve": "serve the API (the default)",
    "check": "print the backends of the settings",
    "key": "print a new API key, signed with SECRET_KEY",
    "probe": "find out the API of a chat URL",
}
OWN_ARGUMENTS = ("key", "probe")
COLUMNS = 79
INDENT = 30  # of the help's second column


class UsageError(Exception):
    """A command line that cannot be understood. Its text is one line."""


@struct(frozen=True, slots=True)
class Arguments:
    """A command with its settings (by variable), or with the arguments that it parses itself."""

    command: str
    settings: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    text: str = ""  # for help and version


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse prints and exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Raises UsageError. It names the nearest command or flag for an unknown one."""
    arguments = list(argv)
    command = "serve"
    if arguments and not arguments[0].startswith("-"):
        command = arguments.pop(0)
        if command not in COMMANDS:
            raise UsageError(f"{command!r} is not a command{nearest(command, list(COMMANDS))}")
    if command in OWN_ARGUMENTS:
        return Arguments(command, rest=arguments)
    parser = flag_parser()
    found, unknown = parser.parse_known_args(arguments)
    settings: dict[str, str] = vars(found)
    if settings.pop("help", False):
        return Arguments("help", text=parser.format_help())
    if settings.pop("version", False):
        return Arguments("version", text=f"rewrap {__version__}")
    if unknown:
        raise unknown_argument(unknown[0])
    return Arguments(command, settings)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps between words only: a break inside X-Forwarded-For would look like two words."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def flag_parser() -> Parser:
    """A flag for each setting. A true-or-false flag needs no value."""
    formatter = partial(HelpFormatter, width=COLUMNS, max_help_position=INDENT)
    commands = "\n".join(f"  {name:{INDENT - 4}}  {about}" for name, about in COMMANDS.items())
    parser = Parser(
        prog="rewrap",
        usage="rewrap [COMMAND] [--SETTING VALUE ...]",
        description=f"commands:\n{commands}\n\n`rewrap key --help` and `rewrap probe --help` list their arguments.",
        epilog="Flags win over the environment (--chat-url is CHAT_URL), and that over .env.",
        formatter_class=formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,  # a new setting would make a short form ambiguous
        add_help=False,
    )
    parser.add_argument("--help", "-h", action="store_true", help="print this text")
    parser.add_argument("--version", action="store_true", help="print the version")
    specs = {spec.name: spec for spec in fields(Settings)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            add_setting(group, specs[name])
    return parser


def add_setting(group: argparse._ArgumentGroup, spec: "Field[object]") -> None:
    """The flag of a setting. Its value stays a text: Settings checks it."""
    is_boolean = spec.type is bool
    default = default_text(spec)
    about: str = spec.metadata["about"].replace("%", "%%")
    group.add_argument(
        flag(spec.name),
        dest=spec.name.upper(),
        nargs="?" if is_boolean else None,
        const="true" if is_boolean else None,
        metavar=metavar(spec),
        help=f"{about} [{default}]" if default else about,
    )
    if spec.metadata.get("file"):
        name = f"{spec.name}_file"
        text = f"A file that contains {spec.name.upper()}."
        group.add_argument(flag(name), dest=name.upper(), metavar="PATH", help=text)


def metavar(spec: "Field[object]") -> str:
    """The name of a flag's value in the help."""
    if spec.metadata.get("url"):
        return "URL"
    if spec.type in (int, float):
        return "N"
    return "BOOL" if spec.type is bool else "TEXT"


def flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def unknown_argument(argument: str) -> UsageError:
    """The error for an argument that no flag takes. It does not repeat a value: that may be a key."""
    if argument in COMMANDS:
        return UsageError(f"the command comes first: rewrap {argument} [--SETTING VALUE ...]")
    if not argument.startswith("-"):
        return UsageError("there is a value without a flag; `rewrap --help` lists all flags")
    name = argument.partition("=")[0]
    flags = ["--help", "--version", *(flag(name.lower()) for name in known_variables())]
    return UsageError(f"{name} is not a flag{nearest(name, flags)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message: the nearest known name, or how to list all."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return "; `rewrap --help` lists all"
