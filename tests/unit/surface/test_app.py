"""What the assembly adds to its parts: the record's incidents among the counters."""

from __future__ import annotations

import asyncio

import fakeredis

from orchestrator.control.metrics import FROM_THE_START, RECORD_INCIDENTS
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError
from orchestrator.surface.app import count_incidents


async def test_incidents_of_the_record_are_counted_also_after_redis_was_away() -> None:
    store = Store(fakeredis.FakeAsyncRedis(), "t:")
    kinds = ["ledger_gap", "ledger_gap", "ledger_begun_anew"]
    adding, failures = store.add_counts, [StoreError("away", code="store-unavailable", remedy="")]

    async def flaky(counts: dict[str, int], values: dict[str, int]) -> None:
        if failures:
            kinds.append("checkpoint_not_copied")
            raise failures.pop()
        await adding(counts, values)

    store.add_counts = flaky  # type: ignore[method-assign]
    task = asyncio.create_task(count_incidents(store, kinds, every_s=0.001))
    try:
        async with asyncio.timeout(60):
            while kinds:  # noqa: ASYNC110 - a list, which nobody tells of
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await store.counters() == {
        "incidents{kind=ledger_gap}": 2.0,
        "incidents{kind=ledger_begun_anew}": 1.0,
        "incidents{kind=checkpoint_not_copied}": 1.0,
    }
    await store.close()


def test_each_is_shown_before_it_first_happens() -> None:
    assert {kind["kind"] for kind in FROM_THE_START["incidents"]} >= set(RECORD_INCIDENTS)
