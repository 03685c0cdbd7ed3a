"""docs/testing.md: its recipe for Node runs as it stands, and its tables name all members.

tests/test_snippets.py runs the recipe for pytest, with the blocks of all documents.
"""

import inspect
import os
import re
import subprocess
from pathlib import Path

from environments import clean_environment, node_environment
from serving import ROOT
from snippets import Block, blocks_of, write_commands

from rewrap.testing.mock_openai import MockOpenAI, MockRequest

DOCUMENT = ROOT / "docs" / "testing.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
BLOCKS = blocks_of(DOCUMENT)
NODE = ROOT / "tests" / "frameworks" / "node"
INTERNAL = {"script", "replay", "settle", "count", "facts"}


def only(kind: str) -> Block:
    (block,) = [block for block in BLOCKS if block.kind == kind]
    return block


def test_the_recipe_for_node_passes(tmp_path: Path) -> None:
    folder = node_environment("node", NODE)
    write_commands(tmp_path / "bin")
    recipe = only("js recipe")
    (folder / recipe.values["file"]).write_text(recipe.text)
    ended = subprocess.run(
        ["sh", "-e", "-c", only("sh node").text],
        cwd=folder,
        env=clean_environment(PATH=f"{tmp_path}/bin:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"pass 2$", ended.stdout, re.MULTILINE)


def first_column(heading: str) -> set[str]:
    """The names in code in the first column of a table, without their arguments."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*?(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE)
    assert table is not None
    cells = [row.split("|")[1] for row in table[0].splitlines()[2:]]
    return {name for cell in cells for name in re.findall(r"`(\w+)", cell)}


def members_of(kind: type) -> set[str]:
    """The public names of a class and of its instances."""
    assigned = re.findall(r"self\.(\w+) = ", inspect.getsource(kind))
    names = {*dir(kind), *assigned}
    return {name for name in names if not name.startswith("_")} - INTERNAL


def test_the_members_of_the_mock_are_all_there() -> None:
    assert first_column("member of `mock_openai`") == members_of(MockOpenAI)


def test_the_members_of_a_request_are_all_there() -> None:
    assert first_column("member of a request") == members_of(MockRequest)
