"""What the receiver answers, and what is in Redis by then."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import fakeredis
import httpx
import msgspec
import pytest

from orchestrator.core.inbox import Delivery, Keys
from orchestrator.intake import Inbox, Receiver
from orchestrator.intake.receiver import BODY_LIMIT
from orchestrator.intake.signature import sign

from .conftest import EXAMPLES, SECRET, Deliver

JOB: dict[str, Any] = EXAMPLES["workflow_job"][5]
ALL = [(event, index) for event, payloads in EXAMPLES.items() for index in range(len(payloads))]


async def entries(redis: fakeredis.FakeAsyncRedis, name: str) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in await redis.xrange(name)]


@pytest.mark.parametrize(("event", "index"), ALL)
async def test_every_real_payload_is_taken(event: str, index: int, deliver: Deliver, redis: Any, keys: Keys) -> None:
    answer = await deliver(EXAMPLES[event][index], event=event)
    assert answer.status_code == 202
    kept = event in ("workflow_job", "installation", "installation_repositories")
    assert answer.json() == {"status": "accepted" if kept else "ignored"}
    assert await redis.xlen(keys.inbox) == (1 if kept else 0)
    assert await redis.xlen(keys.dead) == 0


async def test_it_is_stored_before_the_answer(deliver: Deliver, redis: Any, keys: Keys, hints: list[str]) -> None:
    answer = await deliver(JOB, guid="abc")
    assert answer.status_code == 202
    (fields,) = await entries(redis, keys.inbox)
    delivery = msgspec.json.decode(fields[b"d"], type=Delivery)
    assert (delivery.guid, delivery.event) == ("abc", "workflow_job")
    assert delivery.job is not None
    assert delivery.job.id == JOB["workflow_job"]["id"]
    assert sign(fields[b"b"], SECRET) == answer.request.headers["x-hub-signature-256"]
    assert hints == ["look"]


async def test_a_repeat_is_stored_once(deliver: Deliver, redis: Any, keys: Keys) -> None:
    answers = [await deliver(JOB, guid="same") for _ in range(3)]
    assert [a.json()["status"] for a in answers] == ["accepted", "repeat", "repeat"]
    assert {a.status_code for a in answers} == {202}
    assert await redis.xlen(keys.inbox) == 1
    assert await redis.hget(keys.counters, "deliveries{result=repeat}") == b"2"


async def test_a_burst_is_stored_whole_and_hinted_once(
    deliver: Deliver, redis: Any, keys: Keys, hints: list[str]
) -> None:
    answers = await asyncio.gather(*(deliver(JOB, guid=f"g{n % 100}") for n in range(200)))
    assert sorted(a.json()["status"] for a in answers) == ["accepted"] * 100 + ["repeat"] * 100
    assert await redis.xlen(keys.inbox) == 100
    assert hints == ["look"]


async def test_both_secrets_are_in_force(deliver: Deliver) -> None:
    assert (await deliver(JOB, guid="1", secret=SECRET)).status_code == 202
    assert (await deliver(JOB, guid="2", secret=b"another")).status_code == 202
    assert (await deliver(JOB, guid="3", secret=b"a third")).status_code == 401


async def test_unsigned_gets_no_detail_and_leaves_nothing(
    deliver: Deliver, client: httpx.AsyncClient, redis: Any, keys: Keys, inbox: Inbox
) -> None:
    wrong = await deliver(JOB, secret=b"wrong")
    missing = await client.post("/webhook", content=b"{}", headers={"X-GitHub-Event": "ping"})
    for answer in (wrong, missing):
        assert (answer.status_code, answer.content) == (401, b'{"status":"unauthorized"}')
    assert await redis.xlen(keys.inbox) == await redis.xlen(keys.dead) == 0
    await inbox.close()
    assert await redis.hget(keys.counters, "deliveries{result=unsigned}") == b"2"


async def test_a_body_longer_than_githubs_limit(deliver: Deliver, client: httpx.AsyncClient) -> None:
    body = b" " * (BODY_LIMIT + 1)
    assert (await deliver(body)).status_code == 413

    async def chunks() -> Any:
        for _ in range(26):
            yield b" " * (1 << 20)

    headers = {"X-Hub-Signature-256": "sha256=" + "0" * 64}
    assert (await client.post("/webhook", content=chunks(), headers=headers)).status_code == 413


async def test_a_body_at_the_limit_is_read(deliver: Deliver) -> None:
    raw = b'{"pad":"' + b"x" * (BODY_LIMIT - 10) + b'"}'
    assert len(raw) == BODY_LIMIT
    answer = await deliver(raw)
    assert (answer.status_code, answer.json()) == (202, {"status": "aside"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe{}",
        b'{"action":"queued","workflow_job":{"id":1}}',
        b'{"action":"queued","workflow_job":{"id":"1"},"repository":{"full_name":"a/b"}}',
        b'{"action":"queued","workflow_job":{"id":1},"repository":{"full_name":"b"}}',
        b'{"action":"exploded","workflow_job":{"id":1},"repository":{"full_name":"a/b"}}',
        b'{"action":"queued","workflow_job":[],"repository":{"full_name":"a/b"}}',
        b"[" * 100_000,
    ],
)
async def test_signed_but_unusable_is_kept_aside(body: bytes, deliver: Deliver, redis: Any, keys: Keys) -> None:
    answer = await deliver(body)
    assert (answer.status_code, answer.json()) == (202, {"status": "aside"})
    (fields,) = await entries(redis, keys.dead)
    assert fields[b"b"] == body[: 64 << 10]
    assert fields[b"why"]
    assert await redis.hget(keys.counters, "deliveries{result=dead}") == b"1"
    assert await redis.xlen(keys.inbox) == 0


@pytest.mark.parametrize(
    "headers", [{"X_GitHub_Delivery": ""}, {"X_GitHub_Event": ""}, {"X_GitHub_Delivery": "x" * 129}]
)
async def test_signed_without_id_or_event(headers: dict[str, str], deliver: Deliver, redis: Any, keys: Keys) -> None:
    answer = await deliver(JOB, **headers)
    assert (answer.status_code, answer.json()) == (202, {"status": "aside"})
    assert await redis.xlen(keys.dead) == 1


async def test_a_foreign_installation_is_set_aside(deliver: Deliver, redis: Any, keys: Keys) -> None:
    await redis.set(f"{keys.foreign}{JOB['installation']['id']}", "1")
    answer = await deliver(JOB)
    assert (answer.status_code, answer.json()) == (202, {"status": "aside"})
    assert await redis.hget(keys.counters, "deliveries{result=foreign}") == b"1"
    assert await redis.xlen(keys.inbox) == 0


async def test_only_named_installations(redis: Any, keys: Keys) -> None:
    inbox = Inbox(redis, keys)
    receiver = Receiver(inbox, lambda: (SECRET,), installations=frozenset({7}))
    body = msgspec.json.encode(JOB)
    headers = {"X-Hub-Signature-256": sign(body, SECRET), "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": "g"}
    transport = httpx.ASGITransport(receiver)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.post("/", content=body, headers=headers)
    assert answer.json() == {"status": "aside"}
    assert await redis.xlen(keys.dead) == 1


async def test_a_hook_that_sends_forms(deliver: Deliver, redis: Any, keys: Keys) -> None:
    form = urlencode({"payload": msgspec.json.encode(JOB).decode()}).encode()
    answer = await deliver(form, Content_Type="application/x-www-form-urlencoded")
    assert answer.json() == {"status": "accepted"}
    assert await redis.xlen(keys.inbox) == 1


async def test_other_methods(client: httpx.AsyncClient) -> None:
    assert (await client.get("/webhook")).status_code == 405


async def test_redis_away_is_never_a_202(keys: Keys) -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    redis = fakeredis.FakeAsyncRedis(server=server)
    receiver = Receiver(Inbox(redis, keys), lambda: (SECRET,))
    body = msgspec.json.encode(JOB)
    headers = {"X-Hub-Signature-256": sign(body, SECRET), "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": "g"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver), base_url="http://test") as http:
        down = await http.post("/", content=body, headers=headers)
        server.connected = True
        up = await http.post("/", content=body, headers=headers)
    assert (down.status_code, up.status_code) == (503, 202)
    assert up.json() == {"status": "accepted"}
    await redis.aclose()
