"""GitHub's documented vector, rotation, and what must never pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.intake.signature import is_signed, sign

SECRET = b"It's a Secret to Everybody"
BODY = b"Hello, World!"
VECTOR = b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_the_documented_vector() -> None:
    assert is_signed(BODY, VECTOR, [SECRET])
    assert sign(BODY, SECRET).encode() == VECTOR


@pytest.mark.parametrize("secrets", [[SECRET, b"new"], [b"new", SECRET]])
def test_either_of_two_secrets(secrets: list[bytes]) -> None:
    assert is_signed(BODY, VECTOR, secrets)


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"sha256=",
        VECTOR.upper(),
        VECTOR[:-1],
        VECTOR + b"0",
        VECTOR[7:],
        b"sha1=" + VECTOR[7:],
        b"sha256=\xff" * 9,
    ],
)
def test_other_headers(header: bytes | None) -> None:
    assert not is_signed(BODY, header, [SECRET])


def test_no_secret_or_an_empty_one_signs_nothing() -> None:
    assert not is_signed(BODY, VECTOR, [])
    assert not is_signed(BODY, sign(BODY, b"").encode(), [b""])


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10**9), st.integers(1, 255))
def test_one_changed_byte(body: bytes, where: int, change: int) -> None:
    header = sign(body, SECRET).encode()
    at = where % len(body)
    changed = body[:at] + bytes([body[at] ^ change]) + body[at + 1 :]
    assert is_signed(body, header, [SECRET])
    assert not is_signed(changed, header, [SECRET])
