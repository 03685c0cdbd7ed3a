"""The report of the probe: what was found or tried, and the settings to paste. Prints nothing itself.

No secret is shown: those of the arguments and texts that look like one are replaced by ***.
"""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping

import httpx

from rewrap.config.backends_file import backend_table
from rewrap.probe.attempts import (
    MODEL,
    PLACES,
    SESSION,
    Attempt,
    ChatId,
    Options,
    Outcome,
    at_place,
    with_end,
    with_fields,
)
from rewrap.probe.field_hints import wanted_fields
from rewrap.probe.reply_candidates import Text, events_with, json_values
from rewrap.probe.search import Finding
from rewrap.types import JSONObject
from rewrap.upstream.shapes import shape_from

LINE_CHARACTERS = 300  # of a request or an answer
SENT_CHARACTERS = 90  # of what was sent, in the list of answers
TEXT_CHARACTERS = 60  # of a text in the list of texts
MAX_LINES = 12  # of failures, and of texts
WITHOUT_HINT = (401, 403, 404, 429)  # statuses of answers that say nothing about fields
# Texts that look like secrets. The first group stays.
SECRET = re.compile(
    r'(?i)("[\w-]*(?:key|token|secret|password|authorization)"\s*:\s*"'
    r"|[?&][\w-]*(?:key|token|code|sig|secret|password)=)"
    r'[^"&#\s]+|(?<=://)[^/\s]+(?=@)|\beyJ[\w-]{8,}[\w.-]*'
    r"|\b(?:(?:sk|pk)[-_]|(?:bearer|basic) )[\w.~+/=*-]{6,}"
)
NEXT = (
    "With the body of a request and the place of its reply from the product's documentation, try:\n"
    '  rewrap probe URL --body \'{"field": "{prompt}"}\' --reply path.of.the.text'
)


class Report:
    def __init__(self, options: Options) -> None:
        self.options = options

    def lines(self, finding: Finding) -> list[str]:
        if finding.reply is not None:
            return self.of_reply(finding, finding.reply)
        return self.of_failures(finding)

    # A reply.

    def of_reply(self, finding: Finding, reply: Outcome) -> list[str]:
        attempt = reply.attempt
        shape = f" as {attempt.name}" if attempt.name else ""
        lines = [f"A reply{shape}: {self.shown(reply.text)}", *self.exchange(reply)]
        if attempt.has_path:
            lines += self.texts(reply, str(attempt.table["reply"]))
        if finding.chat_id is not None:
            lines.append(chat_id_advice(finding.chat_id, attempt))
        if finding.guessed:
            lines.append("  Several texts may be the reply: --reply PATH selects another one.")
        streamed = finding.streamed
        streams = streamed is not None and streamed.streamed()
        if streamed is None or streams:
            lines.append("  streams: yes")
        elif streamed.deltas:
            lines.append("  streams: no, the reply comes whole")
        else:
            answer = self.received(streamed)
            lines.append(f"  streams: no, a request for a stream fails: {answer}")
        if streamed is not None and streamed.deltas:
            attempt = streamed.attempt
        return [*lines, "", *self.settings(attempt, reply, streams, finding.chat_id)]

    def exchange(self, outcome: Outcome) -> list[str]:
        """The request that was sent, and the answer."""
        lines: list[str] = []
        if outcome.response is not None:
            request = outcome.response.request
            secret = [f", {name}: ***" for name in self.options.headers]
            if self.options.key:
                secret.append(", key: ***")
            sent = self.shown(f"{request.method} {request.url} {request.content.decode()}".strip())
            lines.append(f"  sent  {sent}{''.join(secret)}")
        return [*lines, f"  got   {self.received(outcome)}"]

    def received(self, outcome: Outcome) -> str:
        """The answer on one line: status, content type, target of a redirect, first characters."""
        response = outcome.response
        if response is None:
            return outcome.failure
        location = response.headers.get("location")
        to = f" to {location}" if location else ""
        kind = response.headers.get("content-type", "without a type")
        return self.shown(f"{response.status_code} {kind}{to}: {response.text}")

    def texts(self, outcome: Outcome, marked: str, mark: str = "the reply") -> list[str]:
        """The texts of an answer with their paths; the reply is marked."""
        lines: list[str] = []
        for text in outcome.texts[:MAX_LINES]:
            place = f"{text.path} ="
            if text.events > 1:
                place = f"{text.path} in {text.events} events:"
            arrow = f"  <- {mark}" if text.path == marked else ""
            lines.append(f"    {place} {self.value(text)}{arrow}")
        return lines

    def value(self, text: Text) -> str:
        """A text of an answer, unless the name of its member says that it is a secret."""
        name = text.path.rpartition(".")[2]
        if SECRET.match(f'"{name}":"x'):
            return "***"
        return self.shown(text.text, TEXT_CHARACTERS)

    # No reply.

    def of_failures(self, finding: Finding) -> list[str]:
        """The answers, each once, the most telling first; the next step; settings to complete."""
        failures = finding.failures
        lines = [f"No reply in {counted(len(failures), 'request')}. The answers:"]
        lines += self.answers(failures)
        if finding.advice:
            lines.append(finding.advice)
        answered = [failure for failure in failures if failure.response is not None]
        if not answered:
            return lines
        best = min(answered, key=lambda failure: (telling(failure), -len(failure.attempt.fields)))
        asked = asked_attempt(best)
        if asked is None and best.is_good and best.texts:
            return [*lines, *self.without_reply(best)]
        if best.status == 404:
            lines.append("Nothing answers at this path: give the path of the API.")
        elif asked is not None:
            lines.append(self.shown(asks_for(asked), sys.maxsize))
        elif best.status not in WITHOUT_HINT:
            lines.append(NEXT)
        return [*lines, "", *self.settings_to_complete(best)]

    def answers(self, failures: list[Outcome]) -> list[str]:
        """The answers, each once, with the attempts that got it."""
        groups: dict[str, list[Outcome]] = {}
        for failure in sorted(failures, key=telling):
            groups.setdefault(self.received(failure), []).append(failure)
        lines: list[str] = []
        for answer, outcomes in list(groups.items())[:MAX_LINES]:
            names = list(dict.fromkeys(outcome.attempt.title() for outcome in outcomes))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {answer}")
            lines.append(f"      to {', '.join(names[:3])}{more}{self.sent(outcomes[0])}")
        return lines

    def sent(self, outcome: Outcome) -> str:
        """What was sent, in short: `, sent {"q": "hello"}`, `, sent form q=hello`, `, GET ?q=hello`."""
        if outcome.response is None:
            return ""
        request = outcome.response.request
        query = request.url.query.decode()
        if not request.content:
            return self.shown(f", {request.method} ?{query}", SENT_CHARACTERS)
        kind = request.headers.get("content-type", "")
        form = "form " if kind.startswith("application/x-www-form-urlencoded") else ""
        return self.shown(f", sent {form}{request.content.decode()}", SENT_CHARACTERS)

    def without_reply(self, outcome: Outcome) -> list[str]:
        """The texts of a good answer in which no reply was found, and the settings for the likeliest."""
        assert outcome.response is not None
        values = json_values(outcome.response.content)
        asked = self.options.reply
        nothing = f"Nothing stands at {asked}. " if asked and not events_with(values, asked) else ""
        likeliest = outcome.texts[0]
        marked = likeliest.path if likeliest.candidate else ""
        lines = [f"{nothing}The texts of the answer:"]
        lines += self.texts(outcome, marked, "the likeliest reply")
        lines.append("--reply PATH selects one of them.")
        if not marked or outcome.attempt.name or not outcome.attempt.table:
            return [*lines, "", *self.settings_to_complete(outcome)]
        streams = len(values) > 1
        table = {**outcome.attempt.table, "reply": marked, "stream": {}}
        attempt = with_end(Attempt(outcome.attempt.url, "", table), outcome.marker)
        return [*lines, "", *self.settings(attempt, outcome, streams)]

    def settings_to_complete(self, outcome: Outcome) -> list[str]:
        """The settings of the attempt that came furthest."""
        attempt = asked_attempt(outcome) or outcome.attempt
        if outcome.status in WITHOUT_HINT:
            attempt = Attempt(self.options.url)
            return self.settings(attempt, outcome, streams=False)
        if attempt.name or not attempt.table:
            attempt = Attempt(attempt.url, "", {"request": {"prompt": "{prompt}"}})
        reply = str(attempt.table.get("reply", "reply"))
        table = {**attempt.table, "reply": reply}
        table.pop("stream", None)
        lines = self.settings(Attempt(attempt.url, "", table), outcome, streams=False)
        return [
            "To complete by hand: the names of the fields, and the path of the reply.",
            *lines,
        ]

    # Settings.

    def settings(
        self,
        attempt: Attempt,
        outcome: Outcome,
        streams: bool,
        chat_id: ChatId | None = None,
    ) -> list[str]:
        """The lines to paste. Secrets are replaced by names in capitals."""
        url = self.shown(attempt.url, sys.maxsize)
        key = "YOUR-KEY" if self.options.key or outcome.status in (401, 403) else ""
        headers = dict.fromkeys(self.options.headers, "YOUR-VALUE")
        model = "" if self.options.model == MODEL else self.options.model
        if attempt.table and not attempt.name:
            lines = backend_lines(url, key, headers)
            lines += mapping_lines(attempt, streams, chat_id)
            problem = problem_of(lines)
            if problem:
                lines = [f"# The server does not take this yet: {self.shown(problem)}", *lines]
            variables = {"CONFIG": "backends.toml", "CHAT_KEY": key, "OPENAI_MODEL": model}
            return ["Into backends.toml:\n", *lines, "", "Into .env:\n", *assignments(variables)]
        address = str(outcome.response.request.url) if outcome.response else ""
        base, is_openai, _ = address.partition("/chat/completions")
        if attempt.name == "openai" and is_openai and not headers and "?" not in url:
            base = self.shown(base, sys.maxsize)
            variables = {"OPENAI_API_BASE": base, "OPENAI_API_KEY": key, "OPENAI_MODEL": model}
        else:
            variables = {
                "CHAT_URL": url,
                "CHAT_SHAPE": attempt.name,
                "CHAT_KEY": key,
                "CHAT_HEADERS": json.dumps(headers) if headers else "",
                "OPENAI_MODEL": model,
            }
        return ["Into .env:\n", *assignments(variables)]

    def shown(self, text: str, maximum: int = LINE_CHARACTERS) -> str:
        """A text for the terminal: without secrets, on one line, cut."""
        for secret in self.options.secrets():
            text = text.replace(secret, "***")
        text = SECRET.sub(lambda match: f"{match[1] or ''}***", text)
        text = "".join(c if c.isprintable() else " " for c in text)
        return f"{text[:maximum]}…" if len(text) > maximum else text


def chat_id_advice(chat_id: ChatId, attempt: Attempt) -> str:
    name = chat_id.name
    if chat_id.works:
        return f"  {name} is sent with the next turn, as the id of the chat."
    lines = "session"
    if takes_member(attempt, name):
        lines = f"session and {name}"
    return f"  If {name} keeps the chat: remove the # before {lines} below, and it is sent with the next turn."


def takes_member(attempt: Attempt, name: str) -> bool:
    """Whether a member can be added to the request."""
    template = attempt.table.get(PLACES[attempt.place])
    return isinstance(template, dict) and name not in template and SESSION not in str(template)


def asked_attempt(outcome: Outcome) -> Attempt | None:
    """The request with the fields that an error names; None if it names none, or the request was the user's."""
    attempt = outcome.attempt
    if outcome.response is None or outcome.status in WITHOUT_HINT:
        return None
    wanted = wanted_fields(outcome.response.content)
    if not wanted:
        return None
    if attempt.table and not attempt.fields and not attempt.names and not attempt.name:
        return None
    better = with_fields(attempt, wanted) or attempt
    if better.place != "query":
        return better
    return at_place(better.url, better.fields, "query", "GET")


def asks_for(attempt: Attempt) -> str:
    """The fields that a URL asks for, with the arguments to try them."""
    names = [f"`{'.'.join(field.path)}`" for field in attempt.fields.values()]
    template = attempt.table[PLACES[attempt.place]]
    body = json.dumps(template, ensure_ascii=False)
    if attempt.place != "body":
        body = "&".join(f"{name}={value}" for name, value in template.items())
    method = "--method GET " if attempt.place == "query" else ""
    return f"The URL asks for {' and '.join(names)}. Try: {method}--body {shlex.quote(body)}"


def telling(outcome: Outcome) -> int:
    """A rank of failures: the smaller, the more an answer says about the API."""
    if outcome.response is None:
        return 9
    if outcome.is_good:
        return 0
    if wanted_fields(outcome.response.content):
        return 1
    ranks = {400: 2, 422: 2, 401: 3, 403: 3, 429: 3, 415: 4, 405: 6, 404: 8}
    return ranks.get(outcome.status, 5)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def backend_lines(url: str, key: str, headers: dict[str, str]) -> list[str]:
    """The head of a table of the backends file."""
    own = backend_name(url)
    members = {"name": own, "url": url, "key_env": key and "CHAT_KEY", "headers": headers}
    lines = ["[[backend]]"]
    lines += [f"{name} = {toml(value)}" for name, value in members.items() if value]
    return [*lines, f'models = ["{own}", "*"]  {MODELS_NOTE}']


def mapping_lines(attempt: Attempt, streams: bool, chat_id: ChatId | None) -> list[str]:
    """A mapping as a table of the backends file. What nobody has seen to work is a comment."""
    table = dict(attempt.table)
    table.setdefault("reply", ".")  # the whole answer is the text
    stream = table.get("stream", {})
    if not streams:
        table.pop("stream", None)
    if not streams and "done" in stream:  # it may come without being asked for
        table["stream"] = {"done": stream["done"]}
    below: list[str] = []
    setting = PLACES[attempt.place]
    takes_id = chat_id is not None and takes_member(attempt, chat_id.name)
    if chat_id is not None and takes_id and not chat_id.works:
        below = [f"[backend.mapping.{setting}]"]
        below += settings_lines(table.pop(setting))
        below.append(f"# {toml_key(chat_id.name)} = {toml(SESSION)}")
    elif chat_id is not None and takes_id:
        table[setting] = {**table[setting], chat_id.name: SESSION}
    lines = ["[backend.mapping]", *settings_lines(table)]
    if chat_id is not None:
        hidden = "" if chat_id.works else "# "
        lines.append(f"{hidden}session = {toml({'from': chat_id.path})}")
    return [*lines, *below]


def problem_of(lines: list[str]) -> str:
    """What the server does not accept in a table of the backends file; "" if it takes the table."""
    try:
        tables = tomllib.loads("\n".join(lines))["backend"]
        checked = backend_table(tables[0], "backend", {"CHAT_KEY": "key"})
        shape_from(checked.mapping, "mapping")
    except ValueError as error:
        return str(error)
    return ""


def settings_lines(table: JSONObject) -> list[str]:
    return [f"{toml_key(name)} = {toml(value)}" for name, value in table.items()]


def assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items() if value]


MODELS_NOTE = '# model names that select it; "*" is every other name: keep "*" in one backend only'
PLAIN_WORD = re.compile(r"(?!(?:.*\d){4})(?!(?:.*[A-Z]){3})[A-Za-z][\w-]{0,23}", re.ASCII)
# Parts of a path that many URLs have. One of them is taken if there is no other.
USUAL_PARTS = re.compile(
    r"(?i)api|rest|chats?|completions?|generate(?:[_-]stream)?|stream|messages?|invoke|predict|prediction|query|ask|run"
    r"|webhooks?|send|talk|reply|replies|answers?"
)
VERSION_PART = re.compile(r"(?i)v\d+\w*")


def backend_name(url: str) -> str:
    """A short name for the backend of a URL: the last part of its path that is a plain word."""
    parts = httpx.URL(url).path.split("/")
    words = [
        part for part in parts if PLAIN_WORD.fullmatch(part) and not VERSION_PART.fullmatch(part)
    ]
    telling_words = [word for word in words if not USUAL_PARTS.fullmatch(word)]
    return (telling_words or words or ["mine"])[-1]


BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml(value: object) -> str:
    if isinstance(value, Mapping):
        members = [f"{toml_key(name)} = {toml(inner)}" for name, inner in value.items()]
        return f"{{ {', '.join(members)} }}" if members else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def toml_key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
