"""Reading answers off a connection, and building requests."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from bench.deliveries import Deliveries
from bench.load import Load, answer_of, request

WHOLE = b'HTTP/1.1 202 Accepted\r\nContent-Length: 21\r\nDate: x\r\n\r\n{"status":"accepted"}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "status"), [(WHOLE, 202), (CHUNKED, 200), (b"HTTP/1.1 204 No Content\r\n\r\n", 204)]
)
def test_a_whole_answer_gives_its_status(answer: bytes, status: int) -> None:
    assert answer_of(answer) == status


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
def test_every_shorter_part_asks_for_more(answer: bytes) -> None:
    assert [answer_of(answer[:end]) for end in range(len(answer))] == [None] * len(answer)


def test_deliveries_differ_and_are_signed_over_their_bytes() -> None:
    first, second = Deliveries("key").make(2)
    assert first.guid != second.guid
    assert first.body != second.body
    assert first.signature == "sha256=" + hmac.new(b"key", first.body, hashlib.sha256).hexdigest()


def test_a_later_batch_repeats_no_delivery() -> None:
    deliveries = Deliveries("key")
    made = [*deliveries.make(3), *deliveries.make(3)]
    assert len({one.guid for one in made}) == len({one.body for one in made}) == 6


def test_a_request_carries_the_payload_unchanged() -> None:
    (delivery,) = Deliveries("key", labels=("ironcd-big",)).make(1)
    head, _, body = request(delivery, "host", "/webhook").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /webhook HTTP/1.1\r\nHost: host\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["workflow_job"]["labels"] == ["ironcd-big"]
    assert body == delivery.body


def test_only_the_given_statuses_count_as_accepted() -> None:
    assert Load(1.0, {202: 5, 401: 2, 503: 1}, ()).accepted((200, 202)) == 5
