"""The durable inbox: deliveries are written to Redis in groups, one round trip and one sync for each group.

While one group is on its way the next gathers, so the cost of a sync is shared by all that came in the meantime and
nobody waits longer than for two of them.  One script does it all: a delivery id that was seen is counted as a repeat and
nothing else; one that is new is remembered *and* stored, or neither; and whether the worker must be told comes back with
the answer.  Redis replies after its append-only file is synced (``appendfsync always``), so an answer is durable.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import redis.asyncio as aioredis
import structlog
from redis.exceptions import RedisError

from orchestrator.core.errors import StoreError
from orchestrator.core.inbox import HINT_FOR_S, SEEN_FOR_S, Delivery, Keys

Stored = Literal["accepted", "repeat", "foreign", "dead"]

GROUP_LIMIT = 256
GROUP_BYTES = 8 << 20
WAITING_LIMIT = 4096
WAITING_BYTES = 256 << 20
DEAD_KEPT = 10_000
DEAD_BODY = 64 << 10
COUNT_EVERY_S = 0.5

_SCRIPT = """
local prefix, hint = KEYS[1], KEYS[2]
local inbox, dead, counters, seen, foreign = prefix..'inbox', prefix..'dead', prefix..'counters', prefix..'seen:', prefix..'foreign:'
local out, fresh, tally = {}, false, {}
for i = 4, #ARGV, 5 do
  local guid, installation, entry, body, why = ARGV[i], ARGV[i+1], ARGV[i+2], ARGV[i+3], ARGV[i+4]
  local result
  if not redis.call('SET', seen..guid, '1', 'NX', 'EX', ARGV[1]) then
    result = 'repeat'
  elseif why ~= '' then
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[3], '*', 'd', entry, 'b', body, 'why', why)
    result = 'dead'
  elseif installation ~= '0' and redis.call('EXISTS', foreign..installation) == 1 then
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[3], '*', 'd', entry, 'b', string.sub(body, 1, 65536), 'why', 'foreign installation')
    result = 'foreign'
  else
    redis.call('XADD', inbox, '*', 'd', entry, 'b', body)
    result, fresh = 'accepted', true
  end
  out[#out+1] = result
  tally[result] = (tally[result] or 0) + 1
end
for result, count in pairs(tally) do
  redis.call('HINCRBY', counters, 'deliveries{result='..result..'}', count)
end
if fresh and redis.call('SET', hint, '1', 'NX', 'EX', ARGV[2]) then
  out[#out+1] = 'hint'
end
return out
"""

log = structlog.get_logger()
_encoder = msgspec.json.Encoder()


class _Waiting(msgspec.Struct):
    args: tuple[str | bytes, ...]
    size: int
    done: asyncio.Future[Stored]


class Inbox:
    """Writes deliveries down.  One for each process; ``hint`` is called when the worker should be told."""

    def __init__(self, client: aioredis.Redis, keys: Keys, *, hint: Callable[[], None] = lambda: None) -> None:
        self._keys = keys
        self._hint = hint
        self._client = client
        self._script = client.register_script(_SCRIPT)
        self._waiting: list[_Waiting] = []
        self._bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._tally: Counter[str] = Counter()
        self._counting: asyncio.Task[None] | None = None

    @classmethod
    def at(cls, url: str, keys: Keys, *, hint: Callable[[], None] = lambda: None) -> Inbox:
        client = aioredis.Redis.from_url(
            url, socket_timeout=8, socket_connect_timeout=2, max_connections=4, health_check_interval=30
        )
        return cls(client, keys, hint=hint)

    async def put(self, delivery: Delivery, body: bytes | bytearray) -> Stored:
        """Store one delivery; back once it is durable.  Raises StoreError where that can't be promised."""
        installation = delivery.job.installation if delivery.job else 0
        return await self._submit(delivery, str(installation), bytes(body), "")

    async def put_aside(self, delivery: Delivery, body: bytes | bytearray, why: str) -> Stored:
        """Keep a signed delivery that can't be used, its body cut to 64 KiB, with the reason."""
        return await self._submit(delivery, "0", bytes(body[:DEAD_BODY]), why)

    def count(self, result: str) -> None:
        """Count a delivery that is neither stored nor kept aside.  Nobody waits for it: a flood costs Redis nothing."""
        self._tally[result] += 1
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._count_later())

    async def _count_later(self) -> None:
        await asyncio.sleep(COUNT_EVERY_S)
        await self._write_counts()

    async def _write_counts(self) -> None:
        tally, self._tally = self._tally, Counter()
        if not tally:
            return
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for result, count in tally.items():
                    pipe.hincrby(self._keys.counters, f"deliveries{{result={result}}}", count)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("counts_lost", counts=dict(tally), error=str(error))

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        await self._write_counts()
        await self._client.aclose()

    def _submit(self, delivery: Delivery, installation: str, body: bytes, why: str) -> asyncio.Future[Stored]:
        if len(self._waiting) >= WAITING_LIMIT or (self._waiting and self._bytes + len(body) > WAITING_BYTES):
            raise _unavailable("too many deliveries wait to be stored")
        done: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        args = (delivery.guid, installation, _encoder.encode(delivery), body, why)
        self._waiting.append(_Waiting(args, len(body), done))
        self._bytes += len(body)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return done

    async def _write(self) -> None:
        while self._waiting:
            group = self._take()
            try:
                answer = await self._script(
                    keys=[self._keys.prefix, self._keys.hint],
                    args=[SEEN_FOR_S, HINT_FOR_S, DEAD_KEPT, *(arg for one in group for arg in one.args)],
                )
            except (RedisError, OSError) as error:
                log.warning("inbox_unavailable", error=str(error), deliveries=len(group))
                for one in group:
                    if not one.done.done():
                        one.done.set_exception(_unavailable(str(error)))
                continue
            self._answer(group, answer)

    def _take(self) -> list[_Waiting]:
        """The next group: as many as fit in the limits, and at least one."""
        size = count = 0
        for one in self._waiting[:GROUP_LIMIT]:
            if count and size + one.size > GROUP_BYTES:
                break
            size += one.size
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        self._bytes -= size
        return group

    def _answer(self, group: list[_Waiting], answer: list[Any]) -> None:
        results: list[Any] = [item.decode("ascii") if isinstance(item, bytes) else item for item in answer]
        for one, result in zip(group, results, strict=False):
            if not one.done.done():
                one.done.set_result(result)
        if len(results) > len(group):
            self._hint()


def _unavailable(why: str) -> StoreError:
    return StoreError(
        f"the inbox can't be written: {why}",
        code="store-unavailable",
        remedy="Start Redis, or see why it refuses writes; GitHub keeps the delivery for redelivery.",
    )
