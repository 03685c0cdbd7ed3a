"""The examples of deployment: schemas, settings, and nginx for real in front of two replicas.

The tests of nginx need Debian's `nginx-light`, that of the unit needs systemd's tools. Without them they are skipped, except on
a CI.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import compose_spec
import httpx
import kubernetes_validate
import pytest
import yaml
from anyio.from_thread import start_blocking_portal
from serving import ROOT, Process, started
from upstreams import JSON, Request, Upstream, closed_port, dumps, send, whole

from rewrap.config.settings import Settings, cast, known_variables

FOLDER = ROOT / "examples" / "deploy"
COMPOSE = sorted(FOLDER.glob("compose-*.yaml"))
KUBERNETES = sorted(FOLDER.glob("kubernetes*.yaml"))
UNIT = FOLDER / "rewrap.service"
CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
name_of = Path.name.fget  # type: ignore[attr-defined]


def lacking(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def objects(value: object) -> Iterator[dict[str, Any]]:
    """Every object in a YAML value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(inner)


def check_settings(variables: dict[str, str]) -> None:
    """The variables are settings, and their values are good."""
    assert set(variables) <= set(known_variables())
    names = {name.lower() for name in variables}
    for spec in Settings.__dataclass_fields__.values():
        if spec.name in names:
            cast(spec.name.upper(), variables[spec.name.upper()], spec)


# Schemas and settings.


@pytest.mark.parametrize("file", COMPOSE, ids=name_of)
def test_a_compose_file_is_one_with_settings_that_exist(file: Path) -> None:
    (value,) = documents(file)
    compose_spec.ComposeSpecification.model_validate(value)
    ours = {name: one for name, one in value["services"].items() if "build" in one}
    assert ours
    for service in ours.values():
        assert (file.parent / service["build"] / "Dockerfile").exists()
        variables = dict(service["environment"])
        for name, text in variables.items():
            assert isinstance(text, str), f"{name}: YAML reads a number or a boolean"
            variables[name] = re.sub(r"\$\{CHAT_URL:.*\}", "https://chat.example.com/ask", text)
        check_settings(variables)
        grace = float(variables.get("GRACE_SECONDS", 7))
        stop = float(service.get("stop_grace_period", "10s").removesuffix("s"))
        assert grace < stop
        for secret in service.get("secrets", ()):
            assert secret in value["secrets"]
            assert f"/run/secrets/{secret}" in variables.values()


@pytest.mark.parametrize("file", KUBERNETES, ids=name_of)
def test_a_manifest_is_valid_and_its_parts_fit_together(file: Path) -> None:
    manifests = documents(file)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    (deployment,) = [one for one in manifests if one["kind"] == "Deployment"]
    (service,) = [one for one in manifests if one["kind"] == "Service"]
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    (rewrap,) = [one for one in containers if one["name"] == "rewrap"]
    variables = {one["name"]: one["value"] for one in rewrap["env"]}
    check_settings(variables)
    before = rewrap.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = float(variables["GRACE_SECONDS"])
    assert grace + before < pod["spec"]["terminationGracePeriodSeconds"]
    paths = {one["path"] for one in objects(rewrap) if set(one) == {"path", "port"}}
    with started() as process, httpx.Client(base_url=process.url, trust_env=False) as client:
        assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in rewrap["volumeMounts"]} <= volumes
    ports = {port["name"] for port in rewrap["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports


def test_the_unit_is_one_and_stops_after_the_grace(tmp_path: Path) -> None:
    text = UNIT.read_text()
    lines = [line.partition("=") for line in text.splitlines() if not line.startswith("#")]
    values = {name: value for name, _, value in lines}
    grace = float(values["Environment"].removeprefix("GRACE_SECONDS="))
    assert grace < float(values["TimeoutStopSec"])
    if not shutil.which("systemd-analyze"):
        lacking("no systemd-analyze: apt-get install systemd")
    program = values["ExecStart"].split()[0]
    unit = tmp_path / "rewrap.service"
    unit.write_text(text.replace(program, sys.executable))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    complaints = [line for line in ended.stderr.splitlines() if "rewrap.service" in line]
    assert complaints == []


# nginx in front of two replicas.


@contextmanager
def nginx(folder: Path, replicas: list[Process]) -> Iterator[str]:
    """nginx with the example's configuration and these replicas; gives its base URL."""
    if not shutil.which("nginx"):
        lacking("no nginx: apt-get install nginx-light")
    port = closed_port()
    text = (FOLDER / "nginx.conf").read_text()
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"replica{number}:8000", replica.url.removeprefix("http://"))
    text = text.replace("listen 8000;", f"listen 127.0.0.1:{port};")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\naccess_log off;\n{temporary}", 1)
    (folder / "nginx.conf").write_text(text)
    options = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", options]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.02)
        yield url
    finally:
        child.send_signal(signal.SIGQUIT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Gate:
    """A chat URL that sends one piece, and the rest when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, request: Request, reader: Any, writer: Any) -> None:
        if not request.json().get("stream"):
            await send(writer, whole(JSON, dumps({"reply": "OK."}).encode()))
            return
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        writer.write(head + b'data: {"text": "first"}\n\n')
        await writer.drain()
        await self.open.wait()
        writer.write(b'data: {"text": " second"}\n\ndata: [DONE]\n\n')
        await writer.drain()


def lines_of(stream: httpx.Response) -> Iterator[str]:
    """The lines with text."""
    return (line for line in stream.iter_lines() if re.search(r'"content":"[^"]', line))


def test_behind_nginx_streams_arrive_in_pieces_and_a_dead_replica_is_not_missed(
    tmp_path: Path,
) -> None:
    with start_blocking_portal() as portal:
        gate = portal.call(make_gate)
        with (
            portal.wrap_async_context_manager(Upstream(gate)) as up,
            started(CHAT_URL=up.url, FORWARDED_ALLOW_IPS="*") as first,
            started(CHAT_URL=up.url, FORWARDED_ALLOW_IPS="*") as second,
            nginx(tmp_path, [first, second]) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=20) as client,
        ):
            with client.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
                lines = lines_of(answer)
                # The second piece is sent after the first was received: nothing on the way waits for it.
                assert '"first"' in next(lines)
                portal.call(gate.open.set)
                assert '" second"' in next(lines)
            assert client.post(CHAT, json=ASKED).status_code == 200
            os.kill(first.pid, signal.SIGKILL)
            first.child.wait()
            answers = [client.post(CHAT, json=ASKED).status_code for _ in range(20)]
            assert answers == [200] * 20


async def make_gate() -> Gate:
    return Gate()


def test_behind_nginx_a_replica_that_stops_finishes_its_streams(tmp_path: Path) -> None:
    with start_blocking_portal() as portal:
        gate = portal.call(make_gate)
        with (
            portal.wrap_async_context_manager(Upstream(gate)) as up,
            started(CHAT_URL=up.url) as first,
            started(CHAT_URL=up.url) as second,
            nginx(tmp_path, [first, second]) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=20) as client,
            client.stream("POST", CHAT, json=ASKED | {"stream": True}) as one,
            client.stream("POST", CHAT, json=ASKED | {"stream": True}) as other,
        ):
            streams = [lines_of(one), lines_of(other)]  # one at each replica: the least connections
            assert all('"first"' in next(lines) for lines in streams)
            os.kill(first.pid, signal.SIGTERM)
            portal.call(gate.open.set)
            assert all('" second"' in next(lines) for lines in streams)
            first.child.wait(20)
            answers = [client.post(CHAT, json=ASKED).status_code for _ in range(10)]
            assert answers == [200] * 10
