"""Cordons and drains in Redis, and how they outlive it.  Only the APIs write them.

Beside what is decided stands when, also of what was taken back.  A host says again what it was told (`orchestrator.core.decided`);
that is taken over where Redis knows of no decision at all, which is where it was emptied.  So an old report never
overrides an admin: whatever was decided since, in either direction, is known.  Each write is one script, since reports and admins
come at the same moment.

A host may take back only the drain that it asked for itself.  Where Redis was emptied it isn't known whose it was: that it was
taken back is noted, and only a drain of the host's own isn't taken over then.
"""

from __future__ import annotations

from typing import Any

import msgspec
import redis.asyncio as aioredis

from orchestrator.control.changes import Names
from orchestrator.core.decided import Decided, Drain

UNTIMED = 1.0
"""When what was decided before times were kept counts as decided: later than never, earlier than anything."""

DECIDE = """
local t = redis.call('TIME')
local at, last = t[1] + t[2] / 1000000, tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0')
if at <= last then at = last + 0.001 end
redis.call('HSET', KEYS[2], ARGV[2], string.format('%.6f', at))
if #ARGV > 2 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) else redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
"""
TAKE_OVER = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
for i = 5, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then return 0 end
end
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[4]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class HostDecisions:
    """A part of `orchestrator.control.store.Store`, whose ``client``, ``names`` and ``_ask`` it uses."""

    client: aioredis.Redis
    names: Names

    def __init__(self) -> None:
        self._decided = self.client.register_script(DECIDE)
        self._taken_over = self.client.register_script(TAKE_OVER)

    async def cordoned(self) -> dict[str, str]:
        """Hosts that an admin cordoned, each with the reason that was given."""
        return texts(await self._ask(self.client.hgetall(self.names.cordoned)))

    async def cordon(self, host: str, why: str) -> None:
        await self._decide(self.names.cordoned, host, _cordon(host), why)

    async def uncordon(self, host: str) -> None:
        await self._decide(self.names.cordoned, host, _cordon(host))

    async def draining(self) -> dict[str, Drain]:
        """Hosts that are to be empty."""
        return drains(await self._ask(self.client.hgetall(self.names.draining)))

    async def drain(self, host: str, drain: Drain) -> None:
        await self._decide(self.names.draining, host, _drain(host), msgspec.json.encode(drain))

    async def undrain(self, host: str) -> None:
        await self._decide(self.names.draining, host, _drain(host))

    async def undrain_its_own(self, host: str) -> None:
        """The host takes back a drain of its own that isn't known here, if there was one."""
        await self._decide(self.names.draining, host, _own_drain(host))

    async def take_over(self, host: str, said: Decided) -> None:
        """Of what ``host`` says, what was decided of it and is forgotten here."""
        if said.cordoned is not None:
            await self._take_over(self.names.cordoned, host, _cordon(host), said.cordoned, said.cordoned_at)
        if said.drain is not None:
            barred = (_own_drain(host),) if said.drain.by == "host" else ()
            drain = msgspec.json.encode(said.drain)
            await self._take_over(self.names.draining, host, _drain(host), drain, said.drained_at, *barred)

    async def _decide(self, key: str, host: str, field: str, *value: str | bytes) -> None:
        await self._ask(self._decided(keys=[key, self.names.decided], args=[host, field, *value]))

    async def _take_over(self, key: str, host: str, field: str, value: str | bytes, at: float, *barred: str) -> None:
        arguments = [host, field, value, f"{at:.6f}", *barred]
        await self._ask(self._taken_over(keys=[key, self.names.decided], args=arguments))

    async def _ask(self, call: Any) -> Any:
        raise NotImplementedError


def decided_of(host: str, cordoned: dict[str, str], draining: dict[str, Drain], times: dict[str, float]) -> Decided:
    """What is decided of ``host``, for it to keep."""
    cordon, drain = cordoned.get(host), draining.get(host)
    return Decided(
        cordoned=cordon,
        cordoned_at=times.get(_cordon(host), UNTIMED if cordon is not None else 0.0),
        drain=drain,
        drained_at=max(
            times.get(_drain(host), UNTIMED if drain is not None else 0.0),
            times.get(_own_drain(host), 0.0),
        ),
    )


def _cordon(host: str) -> str:
    return f"cordon {host}"


def _drain(host: str) -> str:
    return f"drain {host}"


def _own_drain(host: str) -> str:
    return f"own-drain {host}"


def drains(fields: dict[bytes, bytes]) -> dict[str, Drain]:
    return {key.decode(): msgspec.json.decode(raw, type=Drain) for key, raw in fields.items()}


def texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode("utf-8", "replace") for key, value in fields.items()}
