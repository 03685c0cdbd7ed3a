"""`llm`, the command: its file of models names rewrap."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from features import (
    ADA,
    BASE,
    FAIL,
    FORECAST,
    GREETING,
    HELLO,
    KEY,
    MODEL,
    REFUSAL,
    WEATHER,
    package_version,
    run,
    same,
)

FUNCTION = 'def get_weather(city: str) -> str:\n    "The weather."\n    return f"sunny in {city}"\n'
FOLDER = Path(tempfile.mkdtemp(prefix="rewrap-llm-"))
MODELS = [
    {
        "model_id": MODEL,
        "model_name": MODEL,
        "api_base": BASE,
        "supports_tools": True,
        "supports_schema": True,
    }
]
(FOLDER / "extra-openai-models.yaml").write_text(json.dumps(MODELS))  # JSON is YAML


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "llm"), "prompt", "-m", MODEL, *arguments],
        env=os.environ | {"LLM_USER_PATH": str(FOLDER), "OPENAI_API_KEY": KEY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def output(*arguments: str) -> str:
    done = ask(*arguments)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


def text() -> None:
    same(output("--no-stream", HELLO), GREETING)


def stream() -> None:
    same(output(HELLO), GREETING)


def tools() -> None:
    same(output("--functions", FUNCTION, WEATHER), FORECAST)


def structured() -> None:
    same(json.loads(output("--schema", "name, age int", ADA)), {"name": "Ada", "age": 36})


def error() -> None:
    done = ask(FAIL)
    same((done.returncode != 0, REFUSAL in done.stderr), (True, True))


run("llm", package_version("llm"), [text, stream, tools, structured, error])
