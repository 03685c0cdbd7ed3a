"""Ids: unique, of the system's random numbers, and never shared by two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rewrap.ids import BATCH, owner_id, random_hex

ROOT = Path(__file__).parent.parent
FORKED = """
import os
from rewrap.ids import random_hex
random_hex()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, random_hex().encode())
    os._exit(0)
os.wait()
print(random_hex(), os.read(read, 100).decode())
"""


def test_ids_are_unique_and_have_32_hex_digits() -> None:
    ids = [random_hex() for _ in range(BATCH * 4)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)
    digits = "".join(ids)
    for digit in "0123456789abcdef":  # 2,048 of each are expected, with a deviation of 44
        assert 1_600 < digits.count(digit) < 2_500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_other_ids() -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parent, child = run.stdout.split()
    assert len(parent) == len(child) == 32
    assert parent != child


def test_an_owner_does_not_contain_its_key() -> None:
    assert owner_id("") == ""
    assert owner_id("user:ann") == "user:ann"
    for kind in ("key", "open"):
        owner = owner_id(f"{kind}:sk-secret")
        assert re.fullmatch(f"{kind}:[0-9a-f]{{32}}", owner)
        assert owner != owner_id(f"{kind}:sk-other")
