"""docs/peers.md: each feature that rewrap is said to have is held by a test that exists."""

import ast
import re
from functools import cache

import pytest
from serving import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "peers.md").read_text().partition("## Sources")[0].splitlines()
    if line.startswith("| ")
]
HEAD = ROWS[0]
FEATURES = {row[0]: row[1:] for row in ROWS[1:]}


@cache
def functions_of(file: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_names_its_test(feature: str) -> None:
    ours, *peers = FEATURES[feature]
    assert len(peers) == len(HEAD) - 2
    assert set(peers) <= {"yes", "no", "?"}
    if ours == "no":
        return
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", ours)
    assert named is not None
    assert named[2] in functions_of(named[1])


def test_the_table_has_features_and_peers() -> None:
    assert len(FEATURES) > 20
    assert HEAD[1] == "rewrap"
    assert any(row[0] == "no" for row in FEATURES.values())
