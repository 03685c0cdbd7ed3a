"""The folder of recordings: an index of its files, sequences of equal requests, and new files.

A file that changes is read again. Times are on the monotonic clock. Knows no HTTP.
"""

import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from rewrap.structs import struct
from rewrap.upstream.recording.exchange import RecordedExchange, Request, read_exchange, toml_of
from rewrap.upstream.recording.matching import Matcher, RequestKeys, likeness

log = logging.getLogger("rewrap")

LOOK_SECONDS = 1.0  # between two looks at all files
CACHE_BYTES = 64 * 2**20  # of the files whose exchanges are kept in memory
COMPARED = 2_000  # recordings, to find the nearest one
SLUG_CHARACTERS = 40
NO_ENDPOINT = (404, 405, 501)  # statuses of an upstream that lacks one

FileSignature = tuple[int, int]  # of a file: time of the last change in nanoseconds, size


@struct(frozen=True, slots=True)
class Recording:
    """A file of the folder."""

    name: str
    signature: FileSignature
    facts: RequestKeys
    path: str  # of the request
    status: int


@struct(frozen=True, slots=True)
class Match:
    """The recordings of one sequence. `key` names it."""

    key: str
    recordings: Sequence[Recording]
    is_loose: bool = False


class Library:
    """The recordings in a folder. `overwrite`: new files replace those of the same names."""

    def __init__(self, folder: Path, matcher: Matcher, *, overwrite: bool) -> None:
        self.folder = folder
        self.matcher = matcher
        self.overwrite = overwrite
        self.recordings: dict[str, Recording] = {}  # by name, in the order of recording
        self.failed: dict[str, FileSignature] = {}  # files that cannot be read
        self.by_exact: dict[str, list[Recording]] = {}
        self.by_loose: dict[str, list[Recording]] = {}
        self.steps: dict[str, int] = {}  # answers so far, by sequence
        self.numbers: dict[str, int] = {}  # of the exchanges with one name
        # Each with the size of its file.
        self.cache: OrderedDict[str, tuple[RecordedExchange, int]] = OrderedDict()
        self.cached_bytes = 0
        self.clock: Callable[[], float] = time.monotonic
        self.next_look = 0.0

    # Reading.

    def load(self) -> None:
        """Read all files. Raises ValueError, in one line that names the file."""
        for name, signature in self.files():
            self.recordings[name] = self.read(name, signature)
        self.index()

    def files(self) -> list[tuple[str, FileSignature]]:
        """The files of the folder in the order of their numbers."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(".toml") and not entry.name.startswith("."):
                    status = entry.stat()
                    found.append((entry.name, (status.st_mtime_ns, status.st_size)))
        return sorted(found, key=lambda file: natural(file[0]))

    def read(self, name: str, signature: FileSignature) -> Recording:
        """Raises ValueError."""
        exchange = read_exchange(self.folder / name)
        self.keep(name, exchange, signature[1])
        facts = self.matcher.facts(exchange.request)
        return Recording(name, signature, facts, exchange.request.path, exchange.status)

    def keep(self, name: str, exchange: RecordedExchange, size: int) -> None:
        self.drop(name)
        self.cache[name] = (exchange, size)
        self.cached_bytes += size
        while self.cached_bytes > CACHE_BYTES and len(self.cache) > 1:
            self.drop(next(iter(self.cache)))

    def drop(self, name: str) -> None:
        kept = self.cache.pop(name, None)
        if kept is not None:
            self.cached_bytes -= kept[1]

    def exchange(self, recording: Recording) -> RecordedExchange:
        """Raises ValueError if the file cannot be read any more."""
        kept = self.cache.get(recording.name)
        if kept is not None:
            self.cache.move_to_end(recording.name)
            return kept[0]
        exchange = read_exchange(self.folder / recording.name)
        self.keep(recording.name, exchange, recording.signature[1])
        return exchange

    def index(self) -> None:
        self.by_exact.clear()
        self.by_loose.clear()
        for recording in self.recordings.values():
            self.by_exact.setdefault(recording.facts.exact, []).append(recording)
            self.by_loose.setdefault(recording.facts.loose, []).append(recording)

    def refresh(self) -> None:
        """Read new and changed files. One that cannot be read is logged once; its last form stays."""
        self.next_look = self.clock() + LOOK_SECONDS
        try:
            files = self.files()
        except OSError as error:
            log.warning("REPLAY: %s: %s", self.folder, error.strerror)
            return
        before = self.recordings
        found: dict[str, Recording] = {}
        for name, signature in files:
            old = before.get(name)
            if old is not None and signature in (old.signature, self.failed.get(name)):
                found[name] = old
            elif self.failed.get(name) != signature:
                self.read_changed(name, signature, found)
        if found != before:
            for name in before.keys() - found.keys():
                self.drop(name)
            self.recordings = found
            self.index()

    def read_changed(
        self, name: str, signature: FileSignature, found: dict[str, Recording]
    ) -> None:
        old = self.recordings.get(name)
        try:
            found[name] = self.read(name, signature)
            self.failed.pop(name, None)
        except ValueError as error:
            self.failed[name] = signature
            log.warning("REPLAY: %s", error)
            if old is not None:
                found[name] = old

    # Finding.

    def take(self, facts: RequestKeys, path: str) -> tuple[Recording, bool] | None:
        """The next recording of a request's sequence, and whether it is a loose match.

        The last one repeats. The file is looked at, so that a change of it is served at once.
        """
        if self.clock() >= self.next_look:
            self.refresh()
        match = self.find(facts, path)
        if match is None or not self.is_current(self.step(match)):
            self.refresh()
            match = self.find(facts, path)
        if match is None:
            return None
        recording = self.step(match)
        self.steps[match.key] = self.steps.get(match.key, 0) + 1
        return recording, match.is_loose

    def step(self, match: Match) -> Recording:
        count = self.steps.get(match.key, 0)
        return match.recordings[min(count, len(match.recordings) - 1)]

    def is_current(self, recording: Recording) -> bool:
        try:
            status = (self.folder / recording.name).stat()
        except OSError:
            return False
        signature = (status.st_mtime_ns, status.st_size)
        return signature in (recording.signature, self.failed.get(recording.name))

    def find(self, facts: RequestKeys, path: str) -> Match | None:
        equal = self.by_exact.get(facts.exact)
        if equal:
            same = [recording for recording in equal if recording.facts.strict == facts.strict]
            if same:
                return Match(f"strict {facts.strict}", same)
            return Match(f"exact {facts.exact}", equal)
        similar = self.by_loose.get(facts.loose)
        if similar:
            scores = [common_items(recording.facts, facts) for recording in similar]
            best = max(scores)
            pairs = zip(similar, scores, strict=True)
            nearest = [recording for recording, score in pairs if score == best]
            return Match(f"loose {facts.loose}", nearest, is_loose=True)
        return self.find_absence(path)

    def find_absence(self, path: str) -> Match | None:
        """An upstream without /responses has it for no request: the recorded refusal answers."""
        if not path.endswith("/responses"):
            return None
        found = [recording for recording in self.recordings.values() if recording.path == path]
        if found and all(recording.status in NO_ENDPOINT for recording in found):
            return Match(path, found[:1])
        return None

    def nearest(self, request: Request, facts: RequestKeys) -> str:
        """The recording with the most equal values, and its differences; "" if there is none."""
        compared = list(islice(self.recordings.values(), COMPARED))
        if not compared:
            return ""
        best = max(compared, key=lambda recording: likeness(recording.facts, facts))
        try:
            exchange = self.exchange(best)
        except ValueError as error:
            return str(error)
        difference = self.matcher.difference(exchange.request, request)
        return f"{best.name}: {difference}"

    def reset(self) -> None:
        """All sequences start again."""
        self.steps.clear()

    # Recording.

    def new_name(self, facts: RequestKeys) -> str:
        """The name of the file for an exchange: from model, prompt, thread, position and number."""
        parts = [slug(facts.model), slug(facts.prompt.replace(".", " ")), facts.thread[:8]]
        stem = "_".join([*filter(None, parts), str(facts.position)])
        number = self.numbers.get(stem, 0) + 1
        while not self.overwrite and (self.folder / file_name(stem, number)).exists():
            number += 1
        self.numbers[stem] = number
        return file_name(stem, number)

    def save(self, name: str, exchange: RecordedExchange) -> None:
        """Write a file at once as a whole. A failure is logged: the answer goes on."""
        partial = self.folder / f".{name}.partial"
        try:
            partial.write_text(toml_of(exchange), encoding="utf-8", newline="\n")
            os.replace(partial, self.folder / name)
        except OSError as error:
            log.error("RECORD: %s: %s", self.folder / name, error.strerror)


def file_name(stem: str, number: int) -> str:
    return f"{stem}.toml" if number == 1 else f"{stem}_{number}.toml"


def common_items(one: RequestKeys, other: RequestKeys) -> int:
    """How many answers and results of tools are equal in two requests."""
    pairs = zip(one.loose_items, other.loose_items, strict=False)
    return sum(1 for item, other_item in pairs if item == other_item)


def natural(name: str) -> list[str | int]:
    """A key for sorting in which 10 comes after 9."""
    parts = re.split(r"(\d+)", name.removesuffix(".toml"))
    return [int(part) if part.isdecimal() else part for part in parts]


def slug(text: str) -> str:
    """The beginning of a text as a part of a file's name: letters, digits, dots and hyphens."""
    words = re.sub(r"[^\w.]+|_", "-", text[: 4 * SLUG_CHARACTERS].lower())
    return words.strip("-.")[:SLUG_CHARACTERS].rstrip("-.")
