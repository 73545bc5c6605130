"""The control plane's memory in Redis: one read of everything, one write of what changed, under a lease.

Only the holder of the lease writes jobs, runners and desired states; its token is checked in the same script that
writes, so a worker that was paused and lost the lease can't write over its successor.  The receiver (inbox) and the
hosts (sightings) write beside it and touch nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import msgspec
import redis.asyncio as aioredis
import structlog
from redis.exceptions import RedisError, ResponseError

from orchestrator.control import template_removals
from orchestrator.control.changes import Changes, Names
from orchestrator.control.host_decisions import HostDecisions, drains, texts
from orchestrator.control.records import Entry, JobRecord, RunnerRecord, Sighting, Snapshot, Sum, Swept
from orchestrator.core.clocks import Reckoned
from orchestrator.core.errors import StoreError
from orchestrator.core.inbox import HINT_FOR_S, Delivery
from orchestrator.core.listening import Listening, noted
from orchestrator.core.policy import Policy
from orchestrator.core.quarantine import Ward
from orchestrator.core.runner_release import Releases

LEASE_MS = 8000
INBOX_AT_ONCE = 500
SERVED_FOR_S = 86400.0
"""Longer than any job may wait at GitHub."""

COMMIT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED another worker has the lease')
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local i = 3
while i <= #ARGV do
  local n = tonumber(ARGV[i])
  local operation = {}
  for j = 1, n do operation[j] = ARGV[i+j] end
  redis.call(unpack(operation))
  i = i + n + 1
end
return 1
"""
ACQUIRE = """
local token = redis.call('INCR', KEYS[2])
if redis.call('SET', KEYS[1], token, 'NX', 'PX', ARGV[1]) then return token end
return 0
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

_T = TypeVar("_T")
log = structlog.get_logger()


class LeaseLost(StoreError):
    """Another worker has taken over; whatever was to be written is void."""

    def __init__(self) -> None:
        super().__init__(
            "the lease was lost to another worker", code="lease-lost", remedy="Nothing: the other worker goes on."
        )


class Lease(msgspec.Struct, frozen=True):
    """The right to write, for `LEASE_MS` from the last write or renewal."""

    token: int


class _Decoded:
    """Decodes records, and gives the very same object back for bytes that it saw under that key the time before."""

    def __init__(self, kind: type[Any]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._seen: dict[bytes, tuple[bytes, Any]] = {}

    def all(self, fields: dict[bytes, bytes]) -> list[tuple[str, Any]]:
        fresh: dict[bytes, tuple[bytes, Any]] = {}
        for key, raw in fields.items():
            known = self._seen.get(key)
            if known is not None and known[0] == raw:
                fresh[key] = known
                continue
            try:
                fresh[key] = (raw, self._decoder.decode(raw))
            except msgspec.MsgspecError as error:
                log.warning("record_unreadable", key=key.decode("utf-8", "replace"), error=str(error))
        self._seen = fresh
        return [(key.decode("utf-8"), value) for key, (_, value) in fresh.items()]


class Store(HostDecisions):
    """All calls raise StoreError (code ``store-unavailable``) where Redis can't be reached, and `LeaseLost`."""

    def __init__(self, client: aioredis.Redis, prefix: str = "ironcd:") -> None:
        self.client = client
        self.names = Names(prefix)
        super().__init__()
        self._commit = client.register_script(COMMIT)
        self._acquire = client.register_script(ACQUIRE)
        self._release = client.register_script(RELEASE)
        self._jobs = _Decoded(JobRecord)
        self._runners = _Decoded(RunnerRecord)
        self._sightings = _Decoded(Sighting)
        self._sums = _Decoded(Sum)
        self._policies: dict[str, Policy] = {}

    @classmethod
    def at(cls, url: str, prefix: str = "ironcd:") -> Store:
        client = aioredis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=2, max_connections=32, health_check_interval=30
        )
        return cls(client, prefix)

    async def close(self) -> None:
        await self.client.aclose()

    def changes(self) -> Changes:
        return Changes(self.names)

    async def acquire(self) -> Lease | None:
        """The lease, or None where another worker has it."""
        token = int(await self._ask(self._acquire(keys=[self.names.lease, self.names.fence], args=[LEASE_MS])))
        return Lease(token) if token else None

    async def release(self, lease: Lease) -> None:
        await self._ask(self._release(keys=[self.names.lease], args=[lease.token]))

    async def commit(self, lease: Lease, changes: Changes) -> None:
        """Write ``changes``, all or none, and renew the lease.  Raises `LeaseLost`."""
        args: list[Any] = [lease.token, LEASE_MS]
        for operation in changes.operations:
            args.append(len(operation))
            args.extend(operation)
        await self._ask(self._commit(keys=[self.names.lease], args=args))
        changes.operations.clear()

    async def renew(self, lease: Lease) -> None:
        await self.commit(lease, self.changes())

    async def standing(self) -> Snapshot:
        """What there is, for somebody who only looks at it."""
        return await self.snapshot(only_read=True)

    async def snapshot(self, *, only_read: bool = False) -> Snapshot:
        """Everything that a look starts from, in one round trip and from one moment.  Also takes the hint down."""
        names = self.names
        async with self.client.pipeline(transaction=True) as pipe:
            if only_read:
                pipe.exists(names.hint)
            else:
                pipe.delete(names.hint)
            for key in (names.jobs, names.runners, names.sightings, names.sums):
                pipe.hgetall(key)
            pipe.xrange(names.inbox, count=1 if only_read else INBOX_AT_ONCE)
            pipe.exists(names.known)
            pipe.get(names.outage)
            pipe.hgetall(names.cordoned)
            pipe.get(names.ward)
            pipe.hgetall(names.lifted)
            pipe.zrange(names.served, 0, -1, withscores=True)
            pipe.get(names.releases)
            pipe.hgetall(names.draining)
            pipe.hgetall(names.decided)
            pipe.get(names.listening)
            pipe.get(names.clock)
            pipe.hgetall(names.templates_since)
            pipe.hgetall(names.templates_removed)
            _, jobs, runners, sightings, sums, inbox, *rest = await self._ask(pipe.execute())
        known, outage, cordoned, ward, lifted, served, releases, draining, decided, listening, clock, *templates = rest
        return Snapshot(
            jobs={int(key): record for key, record in self._jobs.all(jobs)},
            runners=dict(self._runners.all(runners)),
            sightings=dict(self._sightings.all(sightings)),
            sums=dict(self._sums.all(sums)),
            inbox=tuple(_entry(entry_id, fields) for entry_id, fields in inbox),
            known=bool(known),
            outage_since=float(outage or 0.0),
            cordoned=texts(cordoned),
            ward=_value(ward, Ward),
            releases=_value(releases, Releases),
            lifted={subject: float(at) for subject, at in texts(lifted).items()},
            draining=drains(draining),
            decided={what: float(at) for what, at in texts(decided).items()},
            listening=_listening(listening),
            clock=None if clock is None else _value(clock, Reckoned),
            templates_since={host: float(at) for host, at in texts(templates[0]).items()},
            templates_removed=template_removals.by_host(texts(templates[1])),
            served={repo.decode(): at for repo, at in served},
        )

    async def put_aside(self, lease: Lease, entry: Entry, why: str) -> None:
        """Move an inbox entry, payload and all, to where unusable deliveries lie."""
        raw = await self._ask(self.client.xrange(self.names.inbox, entry.id, entry.id))
        changes = self.changes()
        for _, fields in raw:
            body = fields.get(b"b", b"")[: 64 << 10]
            parts = ("d", fields.get(b"d", b""), "b", body, "why", why)
            changes.operations.append(("XADD", self.names.dead, "MAXLEN", "~", 10_000, "*", *parts))
            changes.count("deliveries{result=aside}")
        changes.take_out(entry.id)
        await self.commit(lease, changes)

    async def policy(self, digest: str) -> Policy | None:
        """The policy of that digest; None where it was never recorded."""
        known = self._policies.get(digest)
        if known is None:
            raw = await self._ask(self.client.hget(self.names.policies, digest))
            if raw is None:
                return None
            known = self._policies[digest] = msgspec.json.decode(raw, type=Policy)
        return known

    async def push(self, key: str, value: bytes, *, lasts_s: float) -> None:
        """Append to a list, which is forgotten after so long without another."""
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.rpush(key, value)
            pipe.pexpire(key, round(lasts_s * 1000))
            await self._ask(pipe.execute())

    async def pop(self, key: str, *, wait_s: float) -> bytes | None:
        """The first of a list, waited for so long: less than a client's patience with Redis."""
        found = await self._ask(self.client.blpop([key], timeout=wait_s))
        return None if found is None else bytes(found[1])

    async def active_repos(self, since: float) -> list[tuple[int, str]]:
        """Installation and name of each repository of which a job changed since then."""
        found = await self._ask(self.client.zrangebyscore(self.names.active, since, "+inf"))
        pairs = (member.decode().partition(" ") for member in found)
        return [(int(installation), repo) for installation, _, repo in pairs]

    async def outage_since(self) -> float:
        """When GitHub stopped answering; 0 where no outage goes on."""
        return float(await self._ask(self.client.get(self.names.outage)) or 0.0)

    async def rebuild_templates(self, host: str, now: float) -> None:
        await self._ask(self.client.hset(self.names.templates_since, host, str(now)))

    async def remove_template(self, host: str, key: str, now: float) -> None:
        """Have ``host`` remove its template ``key``; a host that was away hears of it for so many days."""
        name = self.names.templates_removed
        old = template_removals.old(texts(await self._ask(self.client.hgetall(name))), now)
        if old:
            await self._ask(self.client.hdel(name, *old))
        await self._ask(self.client.hset(name, template_removals.field_of(host, key), str(now)))

    async def ward(self) -> Ward:
        """Failed starts, and who is in quarantine."""
        return _value(await self._ask(self.client.get(self.names.ward)), Ward)

    async def lift(self, subject: str, now: float) -> None:
        """End the quarantine of ``subject``: the worker's next look does it."""
        await self._ask(self.client.hset(self.names.lifted, subject, str(now)))

    async def releases(self) -> Releases:
        """What is known of GitHub's releases of its runner, and the images in use."""
        return _value(await self._ask(self.client.get(self.names.releases)), Releases)

    async def note_listening(self, now: float) -> None:
        """An API listens to hosts, now."""
        known = _listening(await self._ask(self.client.get(self.names.listening)))
        await self._ask(self.client.set(self.names.listening, msgspec.json.encode(noted(known, now))))

    async def reruns(self, run_id: int) -> int:
        """How often a run was run again for a loss."""
        return int(await self._ask(self.client.get(self.names.reruns(run_id))) or 0)

    async def searched_at(self) -> float:
        """When all repositories were last asked for their jobs; 0 for never."""
        return float(await self._ask(self.client.get(self.names.searched)) or 0.0)

    async def swept(self) -> Swept:
        raw = await self._ask(self.client.get(self.names.redelivery))
        return Swept() if raw is None else msgspec.json.decode(raw, type=Swept)

    async def finished_jobs(self, ids: Iterable[int]) -> dict[int, JobRecord]:
        """Those of ``ids`` that are over and put away."""
        found = await self._many(self.names.done, [str(key) for key in ids], JobRecord)
        return {int(key): record for key, record in found.items()}

    async def unserved_jobs(self, ids: Iterable[int]) -> dict[int, JobRecord]:
        """Those of ``ids`` that aren't ours to serve and are remembered."""
        found = await self._many(self.names.unserved, [str(key) for key in ids], JobRecord)
        return {int(key): record for key, record in found.items()}

    async def latest_unserved_jobs(self, limit: int) -> list[JobRecord]:
        """The last that were heard of, latest first."""
        ids = [int(key) for key in await self._ask(self.client.zrange(self.names.unserved_at, 0, limit - 1, desc=True))]
        found = await self.unserved_jobs(ids)
        return [found[key] for key in ids if key in found]

    async def trim_unserved(self, lease: Lease, keep: int, before: float) -> None:
        """Forget jobs that aren't ours to serve: beyond the ``keep`` latest, and those last heard of ``before``."""
        order, changes = self.names.unserved_at, self.changes()
        old = await self._ask(self.client.zrange(order, 0, -keep - 1))
        old += await self._ask(self.client.zrangebyscore(order, "-inf", before))
        for key in dict.fromkeys(old):
            changes.drop_unserved(int(key))
        if changes:
            await self.commit(lease, changes)

    async def gone_runners(self, ids: Iterable[str]) -> dict[str, RunnerRecord]:
        return await self._many(self.names.gone, list(ids), RunnerRecord)

    async def live_jobs(self) -> list[JobRecord]:
        return await self._values(self.names.jobs, JobRecord)

    async def live_runners(self) -> list[RunnerRecord]:
        return await self._values(self.names.runners, RunnerRecord)

    async def sightings(self) -> dict[str, Sighting]:
        found = await self._values(self.names.sightings, Sighting)
        return {sighting.observed.host: sighting for sighting in found}

    async def latest_finished_jobs(self, limit: int) -> list[JobRecord]:
        """The last that ended, latest first."""
        ids = await self._ask(self.client.zrange(self.names.done_at, 0, limit - 1, desc=True))
        found = await self.finished_jobs(int(key) for key in ids)
        return [found[int(key)] for key in ids if int(key) in found]

    async def latest_gone_runners(self, limit: int) -> list[RunnerRecord]:
        ids = [key.decode() for key in await self._ask(self.client.zrange(self.names.gone_at, 0, limit - 1, desc=True))]
        found = await self.gone_runners(ids)
        return [found[key] for key in ids if key in found]

    async def job(self, job_id: int) -> JobRecord | None:
        raw = await self._ask(self.client.hget(self.names.jobs, str(job_id)))
        if raw is not None:
            return msgspec.json.decode(raw, type=JobRecord)
        return (await self.finished_jobs([job_id])).get(job_id) or (await self.unserved_jobs([job_id])).get(job_id)

    async def runner(self, runner_id: str) -> RunnerRecord | None:
        raw = await self._ask(self.client.hget(self.names.runners, runner_id))
        if raw is not None:
            return msgspec.json.decode(raw, type=RunnerRecord)
        return (await self.gone_runners([runner_id])).get(runner_id)

    async def counters(self) -> dict[str, float]:
        raw = await self._ask(self.client.hgetall(self.names.counters))
        return {key.decode(): float(value) for key, value in raw.items()}

    async def lengths(self) -> dict[str, int]:
        """How many entries wait in the inbox and lie aside."""
        async with self.client.pipeline(transaction=False) as pipe:
            pipe.xlen(self.names.inbox)
            pipe.xlen(self.names.dead)
            inbox, dead = await self._ask(pipe.execute())
        return {"inbox": inbox, "dead": dead}

    async def add_counts(self, counts: dict[str, int], values: dict[str, float]) -> None:
        """Add ``counts`` to the counters, and set ``values`` there."""
        async with self.client.pipeline(transaction=False) as pipe:
            for counter, by in counts.items():
                pipe.hincrby(self.names.counters, counter, by)
            for counter, value in values.items():
                pipe.hset(self.names.counters, counter, str(value))
            await self._ask(pipe.execute())

    async def was_said(self, job_id: int) -> bool:
        """Whether `note_said` was called for the job, and not too long ago."""
        return bool(await self._ask(self.client.exists(self.names.said(job_id))))

    async def note_said(self, job_id: int, seconds: int) -> None:
        await self._ask(self.client.set(self.names.said(job_id), b"1", ex=seconds))

    async def trim(self, lease: Lease, keep: int, *, now: float) -> None:
        """Let go of finished jobs and destroyed runners beyond the ``keep`` latest, and of policies that none has."""
        changes = self.changes()
        changes.operations.append(("ZREMRANGEBYSCORE", self.names.served, "-inf", now - SERVED_FOR_S))
        for records, order in ((self.names.done, self.names.done_at), (self.names.gone, self.names.gone_at)):
            for key in await self._ask(self.client.zrange(order, 0, -keep - 1)):
                changes.operations += [("HDEL", records, key), ("ZREM", order, key)]
        used = {record.policy for record in await self.live_runners()}
        for digest in await self._ask(self.client.hkeys(self.names.policies)):
            if digest.decode() not in used:
                changes.operations.append(("HDEL", self.names.policies, digest))
                self._policies.pop(digest.decode(), None)
        if changes:
            await self.commit(lease, changes)

    async def put_sighting(self, sighting: Sighting) -> bool:
        """Keep what a host reported; True where the worker should be told."""
        said = sighting.observed.decided
        if said is not None:
            await self.take_over(sighting.observed.host, said)  # before anything can be placed there
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hset(self.names.sightings, sighting.observed.host, msgspec.json.encode(sighting))
            pipe.set(self.names.hint, "1", nx=True, ex=HINT_FOR_S)
            _, hint = await self._ask(pipe.execute())
        return bool(hint)

    async def claim_hint(self) -> bool:
        """True where no hint is pending, which from now on one is."""
        return bool(await self._ask(self.client.set(self.names.hint, "1", nx=True, ex=HINT_FOR_S)))

    async def desired(self, host: str) -> tuple[int, bytes | None]:
        """Generation and JSON of what ``host`` should have; ``(0, None)`` where nothing was decided yet."""
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hget(self.names.sums, host)
            pipe.hget(self.names.desired, host)
            sum_, raw = await self._ask(pipe.execute())
        return (
            (msgspec.json.decode(sum_, type=Sum).generation, raw) if sum_ is not None and raw is not None else (0, None)
        )

    async def generation(self, host: str) -> int:
        raw = await self._ask(self.client.hget(self.names.sums, host))
        return msgspec.json.decode(raw, type=Sum).generation if raw is not None else 0

    async def sealed_jits(self, runners: list[str]) -> dict[str, bytes]:
        if not runners:
            return {}
        found = await self._ask(self.client.mget([self.names.jit + runner for runner in runners]))
        return {runner: raw for runner, raw in zip(runners, found, strict=True) if raw is not None}

    async def wakes(self) -> AsyncIterator[str]:
        """Names of hosts as they get a new `Desired`.  Ends with StoreError where the connection breaks."""
        async with self.client.pubsub(ignore_subscribe_messages=True) as channel:
            await self._ask(channel.subscribe(self.names.wake))
            while True:
                message = await self._ask(channel.get_message(timeout=1.0))
                if message is not None:
                    yield message["data"].decode()

    async def _values(self, key: str, kind: type[_T]) -> list[_T]:
        decoder = msgspec.json.Decoder(kind)
        return [decoder.decode(raw) for raw in await self._ask(self.client.hvals(key))]

    async def _many(self, key: str, ids: list[str], kind: type[_T]) -> dict[str, _T]:
        if not ids:
            return {}
        decoder = msgspec.json.Decoder(kind)
        raws = await self._ask(self.client.hmget(key, ids))
        return {field: decoder.decode(raw) for field, raw in zip(ids, raws, strict=True) if raw is not None}

    async def _ask(self, call: Any) -> Any:
        try:
            return await call
        except ResponseError as error:
            if str(error).startswith("FENCED"):
                raise LeaseLost from None
            raise _unavailable(error) from error
        except (RedisError, OSError) as error:
            raise _unavailable(error) from error


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    try:
        delivery = msgspec.json.decode(fields.get(b"d", b""), type=Delivery)
    except msgspec.MsgspecError:
        delivery = None
    return Entry(entry_id.decode(), delivery)


def _value(raw: bytes | None, kind: type[_T]) -> _T:
    """An empty one where there is none, or where another version wrote what this one can't read: it can all be learnt anew."""
    try:
        return kind() if raw is None else msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError:
        return kind()


def _listening(raw: bytes | None) -> Listening | None:
    return None if raw is None else msgspec.json.decode(raw, type=Listening)


def _unavailable(error: Exception) -> StoreError:
    return StoreError(
        f"Redis: {error}", code="store-unavailable", remedy="Start Redis, or see in its log why it refuses."
    )
