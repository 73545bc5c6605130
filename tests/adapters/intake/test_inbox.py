"""The receiver on a real Redis: a burst while Redis is killed, and what was accepted is there afterwards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from orchestrator.core.inbox import Delivery, Keys
from orchestrator.intake import Inbox, Receiver
from orchestrator.intake.signature import sign

SECRET = b"a webhook secret"
BODY = json.dumps(
    json.loads((Path(__file__).parents[2] / "data/webhook-examples.json").read_text())["workflow_job"][5]
).encode()
KEYS = Keys("x:")

pytestmark = pytest.mark.real


async def deliver(client: httpx.AsyncClient, guid: str) -> int:
    headers = {
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": guid,
        "X-Hub-Signature-256": sign(BODY, SECRET),
    }
    return (await client.post("/", content=BODY, headers=headers)).status_code


async def stored(inbox: Inbox) -> list[str]:
    client = inbox._client
    return [msgspec.json.decode(fields[b"d"], type=Delivery).guid for _, fields in await client.xrange(KEYS.inbox)]


async def test_what_was_accepted_survives_a_kill(redis_server: Any) -> None:
    inbox = Inbox.at(redis_server.url, KEYS)
    receiver = Receiver(inbox, lambda: (SECRET,))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver), base_url="http://test") as client:
        answers: dict[str, int] = {}

        async def one(guid: str) -> None:
            answers[guid] = await deliver(client, guid)

        burst = [asyncio.create_task(one(f"g{number}")) for number in range(150)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(redis_server.kill)
        burst += [asyncio.create_task(one(f"g{number}")) for number in range(150, 200)]
        await asyncio.gather(*burst)
        await asyncio.to_thread(redis_server.start)
        accepted = {guid for guid, status in answers.items() if status == 202}
        assert set(answers.values()) <= {202, 503}
        assert accepted <= set(await stored(inbox))
        refused = [guid for guid, status in answers.items() if status == 503]
        assert refused
        assert [await deliver(client, guid) for guid in refused] == [202] * len(refused)
        everything = await stored(inbox)
        assert sorted(everything) == sorted(f"g{number}" for number in range(200))
    await inbox.close()


async def test_an_entry_holds_the_payload_as_it_came(redis_server: Any) -> None:
    inbox = Inbox.at(redis_server.url, KEYS)
    receiver = Receiver(inbox, lambda: (SECRET,))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(receiver), base_url="http://test") as client:
        assert await deliver(client, "g") == 202
    ((_, fields),) = await inbox._client.xrange(KEYS.inbox)
    assert fields[b"b"] == BODY
    await inbox.close()
