"""The hello after a HelloRetryRequest: the same name, or none of it goes on."""

from __future__ import annotations

import pytest

from orchestrator.egress.second_hello import MAX_HELD, SecondHello, asks_again
from tests.unit.egress.hellos import hello

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


@pytest.mark.parametrize(
    ("flight", "again"),
    [
        (b"\x16\x03\x03\x00\x58\x02\x00\x00\x54\x03\x03" + RETRY, True),
        (b"\x16\x03\x03\x00\x58\x02\x00\x00\x54\x03\x03" + bytes(32), False),
        (b"\x15\x03\x03\x00\x02\x02\x28", False),
        (b"", False),
    ],
)
def test_a_retry_is_told_by_its_random_value(flight: bytes, again: bool) -> None:
    assert asks_again(flight) is again


@pytest.mark.parametrize(
    "before", [b"", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00\x02xy\x14\x03\x03\x00\x01\x01"]
)
@pytest.mark.parametrize("name", [b"allowed.example", b"evil.example"])
def test_byte_by_byte(before: bytes, name: bytes) -> None:
    second = SecondHello("allowed.example", allow_ech=False)
    data = before + hello(name)
    verdicts = [second.feed(data[at : at + 1]) for at in range(len(data))]
    assert verdicts == [None] * (len(data) - 1) + [name == b"allowed.example"]
    assert bytes(second.data) == data


@pytest.mark.parametrize("data", [b"SSH-2.0-x", b"\x16\x03\x01\x00\x01\x02", b"\x80\x2e\x01"])
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    assert SecondHello("allowed.example", allow_ech=False).feed(data) is False


def test_what_is_held_back_has_a_bound() -> None:
    second = SecondHello("allowed.example", allow_ech=False)
    record = b"\x17\x03\x03\x40\x00" + bytes(16_384)
    verdict = None
    for _ in range(MAX_HELD // len(record) + 1):
        assert verdict is None
        verdict = second.feed(record)
    assert verdict is False
