"""`rewrap probe URL`: find out the API of a chat URL, and print the settings to paste.

`rewrap probe --check FILE [NAME]` tries the backends of a file step by step. Writes no file.
"""

import argparse
import asyncio
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl

import httpx
import orjson

from rewrap.probe.attempts import MODEL, Options
from rewrap.probe.report import Report
from rewrap.probe.search import Search
from rewrap.types import JSONObject
from rewrap.urls import check_url

HELP = {
    "--key": "the key, sent in the header of the product",
    "--model": "the model to ask for",
    "--body": 'template of the body, as JSON or a=b&c=d: \'{"query": "{prompt}"}\'',
    "--reply": "the path of the reply: data.answer",
    "--method": "POST or GET; the query of the URL may contain {prompt}",
}


def probe_command(argv: Sequence[str]) -> int:
    """The command; its exit status. Exits with 2 for arguments that cannot be used."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    if arguments.check:
        from rewrap.probe.check import check_backends

        return asyncio.run(check_backends(arguments.check, arguments.url or "", arguments.timeout))
    try:
        options = options_of(arguments)
    except ValueError as error:
        parser.error(str(error))
    finding = asyncio.run(Search(options).run())
    print("\n".join(Report(options).lines(finding)))
    return 0 if finding.reply is not None else 1


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rewrap probe", description="Find out the API of a chat URL, and print the settings for it."
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="with --check: the name of a backend")
    for name, text in HELP.items():
        parser.add_argument(name, default="", help=text)
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="may be repeated"
    )
    parser.add_argument("--stream", action="store_true", help="ask for a stream only")
    parser.add_argument("--timeout", default=30.0, type=float, metavar="SECONDS")
    parser.add_argument("--check", metavar="FILE", help="try the backends of a file")
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    """Raises ValueError."""
    url = arguments.url or ""
    check_url(url, "the URL")
    headers: dict[str, str] = {}
    for line in arguments.header:
        pair = re.fullmatch(r"([\w-]+):\s*([ -~]*?)\s*", line, re.ASCII)
        if not pair:
            raise ValueError("a header is 'Name: value'")
        headers[pair[1]] = pair[2]
    mapping = mapping_of(arguments)
    if "query" in mapping:
        url = str(httpx.URL(url).copy_with(query=None))
    return Options(
        url,
        headers,
        arguments.key,
        arguments.model or MODEL,
        arguments.timeout,
        mapping,
        arguments.reply,
        arguments.stream,
    )


def mapping_of(arguments: argparse.Namespace) -> JSONObject:
    """The mapping that --method, --body and --reply describe; {} if they describe no request. Raises ValueError."""
    mapping: JSONObject = {}
    method = arguments.method.upper()
    if method not in ("", "POST", "GET"):
        raise ValueError("--method is POST or GET")
    query = httpx.URL(arguments.url).query.decode()
    if not method and not arguments.body and "{" in query:
        method = "GET"
    if method == "GET":
        query = arguments.body or query
        if "{" not in query:
            raise ValueError("--method GET needs a URL with {prompt} in its query: ?q={prompt}")
        mapping = {"method": "GET", "query": dict(parse_qsl(query))}
    elif arguments.body:
        mapping = body_of(arguments.body)
    if mapping and arguments.reply:
        mapping["reply"] = arguments.reply
    return mapping


def body_of(text: str) -> JSONObject:
    """A JSON template, or the fields of a form. Raises ValueError."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = dict(parse_qsl(text))
        if not fields:
            raise ValueError("--body is neither JSON nor a form: a=b&c=d") from None
        return {"form": fields}
    return {"request": value}
