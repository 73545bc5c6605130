"""One contract for the store, on an in-memory Redis and on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import fakeredis
import msgspec
import pytest

from orchestrator.control.records import JobRecord, RunnerRecord, Sighting
from orchestrator.control.redis_fake import RedisFake
from orchestrator.control.store import LEASE_MS, LeaseLost, Store
from orchestrator.core.decided import Decided, Drain
from orchestrator.core.errors import StoreError
from orchestrator.core.flow import Identity
from orchestrator.core.inbox import Delivery
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import wanted
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.policy import Policy
from orchestrator.core.runner import Deadlines
from orchestrator.core.wire import Desired, Observed

ULID = "01J0000000000000000000000A"


@pytest.fixture(params=["memory", "fake", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        made = Store(RedisFake(), "x:")  # type: ignore[arg-type]
    elif request.param == "fake":
        made = Store(fakeredis.FakeAsyncRedis(), "x:")
    else:
        made = Store.at(request.getfixturevalue("redis_server").url, "x:")
    yield made
    await made.close()


def job(number: int, **changes: object) -> JobRecord:
    record = JobRecord(job=Job(id=number, installation=1, org="acme", repo="acme/app", state="queued"))
    return msgspec.structs.replace(record, **changes)


def runner(ulid: str = ULID) -> RunnerRecord:
    life = wanted(
        ulid, MachineClass("ironcd"), installation=1, org="acme", repo="acme/app", labels=("ironcd",), meant_for=1,
        now=5.0, deadlines=Deadlines(),
    )  # fmt: skip
    return RunnerRecord(life=life, identity=Identity(runner=ulid), policy="sha256:0")


async def deliver(store: Store, guid: str) -> None:
    delivery = Delivery(guid, "workflow_job", 1.0, job=job(1).job)
    await store.client.xadd(store.names.inbox, {"d": msgspec.json.encode(delivery), "b": b"the payload"})


async def test_what_is_written_is_read(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    changes = store.changes()
    changes.put_job(job(1))
    changes.put_runner(runner())
    changes.set_known()
    await store.commit(lease, changes)
    seen = await store.snapshot()
    assert (seen.jobs, seen.runners, seen.known) == ({1: job(1)}, {ULID: runner()}, True)
    assert await store.job(1) == job(1)
    assert await store.runner(ULID) == runner()
    assert await store.job(2) is None


async def test_an_empty_store_says_so(store: Store) -> None:
    seen = await store.snapshot()
    assert (seen.known, seen.jobs, seen.inbox) == (False, {}, ())
    assert await store.desired("h1") == (0, None)


async def test_one_holder_of_the_lease(store: Store) -> None:
    first = await store.acquire()
    assert first is not None
    assert await store.acquire() is None
    await store.release(first)
    second = await store.acquire()
    assert second is not None
    assert second.token > first.token


async def test_who_lost_the_lease_writes_nothing(store: Store) -> None:
    old = await store.acquire()
    assert old is not None
    await store.client.delete(store.names.lease)
    new = await store.acquire()
    assert new is not None
    changes = store.changes()
    changes.put_job(job(1))
    with pytest.raises(LeaseLost):
        await store.commit(old, changes)
    with pytest.raises(LeaseLost):
        await store.renew(old)
    await store.release(old)
    assert (await store.snapshot()).jobs == {}
    await store.commit(new, changes)
    assert (await store.snapshot()).jobs == {1: job(1)}


async def test_a_write_renews_the_lease(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    await store.client.pexpire(store.names.lease, 500)
    await store.renew(lease)
    assert await store.client.pttl(store.names.lease) > LEASE_MS / 2


async def test_a_delivery_leaves_with_its_effects(store: Store) -> None:
    await deliver(store, "g1")
    lease = await store.acquire()
    assert lease is not None
    (entry,) = (await store.snapshot()).inbox
    assert entry.delivery is not None
    assert entry.delivery.guid == "g1"
    assert len((await store.snapshot()).inbox) == 1
    changes = store.changes()
    changes.put_job(job(1))
    changes.take_out(entry.id)
    await store.commit(lease, changes)
    seen = await store.snapshot()
    assert (seen.inbox, set(seen.jobs)) == ((), {1})


async def test_an_unreadable_delivery_is_put_aside_whole(store: Store) -> None:
    await store.client.xadd(store.names.inbox, {"d": b"nonsense", "b": b"the payload"})
    lease = await store.acquire()
    assert lease is not None
    (entry,) = (await store.snapshot()).inbox
    assert entry.delivery is None
    await store.put_aside(lease, entry, "why")
    assert await store.lengths() == {"inbox": 0, "dead": 1}
    ((_, fields),) = await store.client.xrange(store.names.dead)
    assert fields == {b"d": b"nonsense", b"b": b"the payload", b"why": b"why"}
    assert (await store.counters())["deliveries{result=aside}"] == 1


async def test_finished_jobs_are_put_away_and_trimmed(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    changes = store.changes()
    for number in range(1, 8):
        changes.put_job(job(number))
        changes.finish_job(job(number, over_at=float(number)))
    await store.commit(lease, changes)
    assert (await store.snapshot()).jobs == {}
    assert [r.job.id for r in await store.latest_finished_jobs(3)] == [7, 6, 5]
    await store.trim(lease, 2, now=2e5)
    assert sorted(await store.finished_jobs(range(1, 8))) == [6, 7]


async def test_policies_that_nobody_has_are_let_go(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    used, unused = Policy("enforce", ()), Policy("warn", ())
    changes = store.changes()
    changes.put_policy(used)
    changes.put_policy(unused)
    changes.put_runner(msgspec.structs.replace(runner(), policy=used.digest))
    await store.commit(lease, changes)
    assert await store.policy(unused.digest) == unused
    await store.trim(lease, 10, now=0.0)
    assert await store.policy(used.digest) == used
    assert await store.policy(unused.digest) is None


async def test_a_hint_is_pending_once(store: Store) -> None:
    sighting = Sighting(1.0, Observed("h1", "b", 1.0, Capacity(1, 1, 1), "kvm", 0))
    assert await store.put_sighting(sighting)
    assert not await store.put_sighting(sighting)
    assert not await store.claim_hint()
    assert (await store.snapshot()).sightings == {"h1": sighting}
    assert await store.claim_hint()


async def test_hosts_are_woken(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    wakes = store.wakes()
    first = asyncio.create_task(anext(wakes))
    for _ in range(100):
        await asyncio.sleep(0.02)
        changes = store.changes()
        changes.put_desired(Desired("h1", 5, ()), "digest")
        await store.commit(lease, changes)
        if first.done():
            break
    assert await asyncio.wait_for(first, 60) == "h1"
    assert (await store.desired("h1"))[0] == await store.generation("h1") == 5
    await wakes.aclose()  # type: ignore[attr-defined]


async def test_sealed_jits_end(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    changes = store.changes()
    changes.put_jit(ULID, b"sealed", 100)
    await store.commit(lease, changes)
    assert await store.sealed_jits([ULID, "other"]) == {ULID: b"sealed"}
    assert 0 < await store.client.ttl(store.names.jit + ULID) <= 100
    changes.finish_runner(runner())
    await store.commit(lease, changes)
    assert await store.sealed_jits([ULID]) == {}
    assert [r.id for r in await store.latest_gone_runners(5)] == [ULID]


async def test_counters(store: Store) -> None:
    lease = await store.acquire()
    assert lease is not None
    changes = store.changes()
    changes.count("a{b=c}", 3)
    changes.observe_phase("BOOTING", 3.0)
    await store.commit(lease, changes)
    await store.add_counts({"a{b=c}": 2}, {"left": 9})
    seen = await store.counters()
    assert (seen["a{b=c}"], seen["left"], seen["phase_seconds_count{phase=BOOTING}"]) == (5, 9, 1)
    assert seen["phase_seconds_in{phase=BOOTING,le=5.0}"] == 1
    assert [key for key in seen if key.startswith("phase_seconds_in")] == ["phase_seconds_in{phase=BOOTING,le=5.0}"]


@pytest.mark.real
async def test_redis_away_and_back(redis_server) -> None:  # type: ignore[no-untyped-def]
    store = Store.at(redis_server.url, "x:")
    lease = await store.acquire()
    assert lease is not None
    changes = store.changes()
    changes.put_job(job(1))
    await store.commit(lease, changes)
    redis_server.kill()
    with pytest.raises(StoreError) as refused:
        await store.snapshot()
    assert refused.value.code == "store-unavailable"
    redis_server.start()
    assert (await store.snapshot()).jobs == {1: job(1)}
    await store.close()


async def test_what_a_host_says_again_is_taken_over_only_where_nothing_was_decided(store: Store) -> None:
    said = Decided("fan", 5.0, Drain(1.0, 2.0, "kernel", "host"), 6.0)
    await store.take_over("h1", said)
    await store.take_over("h1", msgspec.structs.replace(said, cordoned="other", cordoned_at=9.0))
    assert (await store.cordoned(), await store.draining()) == ({"h1": "fan"}, {"h1": said.drain})
    assert (await store.standing()).decided == {"cordon h1": 5.0, "drain h1": 6.0}
    await store.uncordon("h1")
    await store.undrain("h1")
    await store.undrain_its_own("h2")
    await store.take_over("h1", said)
    await store.take_over("h2", said)
    assert (await store.cordoned(), await store.draining()) == ({"h2": "fan"}, {})


async def test_a_later_decision_has_a_later_time_whatever_the_clocks_say(store: Store) -> None:
    ahead = 1e11
    await store.take_over("h1", Decided("fan", ahead))
    await store.cordon("h1", "other")
    await store.uncordon("h1")
    assert (await store.standing()).decided["cordon h1"] > ahead
    assert await store.cordoned() == {}
