"""Signed API keys: what is accepted, what is refused, and how a key is kept in a file."""

import hmac
import os
import stat
import string
import timeit
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewrap.server.keys import SignedKey, save, sign, verify

SECRET = "correct horse battery staple"
NOW = 1_800_000_000.0
PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "


@given(st.text(min_size=1).filter(str.strip))
def test_any_user_name_works_in_a_plain_ascii_key(user: str) -> None:
    key = sign(SECRET, user)
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key
    assert key.startswith("sk-")
    verified = verify([SECRET], key)
    assert verified
    assert (verified.user, verified.expires) == (user, None)


@pytest.mark.parametrize("user", ["ada", "mary-ann", "a_b.c~d", "sk-x-0123456789abcdef.0"])
def test_a_plain_user_name_stands_readable_in_the_key(user: str) -> None:
    assert sign(SECRET, user).startswith(f"sk-{user}-")


def test_a_name_outside_ascii_is_percent_encoded() -> None:
    assert sign(SECRET, "Zoë %").startswith("sk-Zo%C3%AB%20%25-")


def test_two_keys_of_one_user_have_different_ids() -> None:
    one, two = (verify([SECRET], sign(SECRET, "ada", days=1, now=NOW), now=NOW) for _ in range(2))
    assert one
    assert two
    assert one.id != two.id


def test_every_substitution_deletion_insertion_and_change_of_case_is_refused() -> None:
    key = sign(SECRET, "Zoë-1", days=30, now=NOW)
    assert verify([SECRET], key, now=NOW)
    changed = set()
    for at in range(len(key) + 1):
        changed.add(key[:at] + key[at + 1 :])
        changed.add(key[:at] + key[at : at + 1].swapcase() + key[at + 1 :])
        for char in PRINTABLE + "\n\0é":
            changed.add(key[:at] + char + key[at + 1 :])
            changed.add(key[:at] + char + key[at:])
    changed -= {key}
    assert len(changed) > 20_000
    assert [each for each in changed if verify([SECRET], each, now=NOW)] == []


@given(st.data())
def test_no_change_by_any_character_passes(data: st.DataObject) -> None:
    key = sign(SECRET, data.draw(st.text(min_size=1, max_size=8).filter(str.strip)))
    at = data.draw(st.integers(0, len(key)))
    cut = data.draw(st.integers(0, 3))
    changed = key[:at] + data.draw(st.text(st.characters(), max_size=3)) + key[at + cut :]
    assert (verify([SECRET], changed) is not None) == (changed == key)


@given(st.text(st.characters()))
def test_any_other_text_is_refused_without_an_exception(text: str) -> None:
    assert verify([SECRET], text) is None
    assert verify([SECRET], f"sk-{text}-0123456789abcdef.0.{'0' * 64}") is None


def test_a_key_ends_at_its_expiry() -> None:
    key = sign(SECRET, "ada", days=1.5, now=NOW)
    verified = verify([SECRET], key, now=NOW + 129_599)
    assert verified
    assert verified == SignedKey("ada", verified.id, int(NOW) + 129_600)
    assert verify([SECRET], key, now=NOW + 129_600) is None


def test_without_a_given_time_the_clock_decides() -> None:
    assert verify([SECRET], sign(SECRET, "ada", days=1))
    assert verify([SECRET], sign(SECRET, "ada", days=1, now=NOW - 1e9)) is None


def test_a_revoked_key_is_refused_and_others_are_not() -> None:
    key, other = sign(SECRET, "ada"), sign(SECRET, "ada")
    verified = verify([SECRET], key)
    assert verified
    assert verify([SECRET], key, revoked={verified.id}) is None
    assert verify([SECRET], other, revoked={verified.id})


def test_a_foreign_key_is_refused() -> None:
    assert verify([SECRET], sign("another secret", "ada")) is None
    assert verify([], sign(SECRET, "ada")) is None


def test_after_a_rotation_old_and_new_keys_are_accepted_until_the_old_secret_goes() -> None:
    old, new = sign("old", "ada"), sign("new", "ada")
    assert all(verify(["new", "old"], key) for key in (old, new))
    assert verify(["new"], old) is None


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_secret_neither_signs_nor_verifies(empty: str) -> None:
    with pytest.raises(ValueError, match="empty secret"):
        sign(empty, "ada")
    body = sign(SECRET, "ada").rpartition(".")[0]
    forged = f"{body}.{hmac.digest(empty.encode(), body.encode(), 'sha256').hex()}"
    assert verify([SECRET, empty], forged) is None


@pytest.mark.parametrize("user", ["", "   ", "\n", "\ud800"])
def test_a_user_without_a_name_gets_no_key(user: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the codec has words of its own)
        sign(SECRET, user)


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
def test_days_that_are_not_above_zero_are_refused(days: float) -> None:
    with pytest.raises(ValueError, match="days"):
        sign(SECRET, "ada", days=days)


def test_checking_takes_microseconds_also_for_a_hostile_key() -> None:
    key, hostile = sign(SECRET, "ada", days=1), "sk-" + "-0123456789abcdef." * 500
    for text, most in ((key, 50e-6), (hostile, 5e-3)):  # 5 µs and 0.1 ms where nothing else runs
        assert (
            min(timeit.repeat(lambda text=text: verify([SECRET], text), number=20, repeat=20)) / 20
            < most
        )


def test_saved_keys_are_lines_of_a_file_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    one, two = sign(SECRET, "ada"), sign(SECRET, "Zoë\nx")
    save(path, one, "ada")
    save(str(path), two, "Zoë\nx")
    assert path.read_text("utf-8") == f"{one}  # 'ada'\n{two}  # 'Zoë\\nx'\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them_before_a_key_is_added(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys"
    path.write_text("older line\n")
    path.chmod(0o644)
    save(path, "sk-x", "x")
    assert path.read_text() == "older line\nsk-x  # 'x'\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_rights_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save(tmp_path / "keys", "sk-x", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
