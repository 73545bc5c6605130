"""Redis for mortals: one that can be away and be emptied, and whose clients die before or after each command.

It is the store's own stand-in, which is held to a real Redis, with the inbox's script beside the store's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from redis.exceptions import ConnectionError as RedisAway

from orchestrator.control.redis_fake import Pipeline, RedisFake
from orchestrator.control.redis_fake_data import Value, as_bytes
from tests.chaos.mortal import Mortal

Kind = TypeVar("Kind")


class Memory:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._redis = RedisFake(clock=clock)
        self.away = False

    def client(self, mortal: Mortal) -> Any:
        return Client(self, self._redis, mortal)

    def empty(self) -> None:
        self._redis.data.clear()

    def values_of(self, key: str, kind: type[Kind]) -> list[Kind]:
        """What a hash has, as it is now: for whoever only looks on."""
        return [msgspec.json.decode(raw, type=kind) for raw in self._redis.data.execute("HVALS", key)]


class Client(RedisFake):
    def __init__(self, memory: Memory, redis: RedisFake, mortal: Mortal) -> None:
        self._memory = memory
        self._mortal = mortal
        self._listeners, self.data = redis._listeners, redis.data

    async def reached(self) -> None:
        """What is asked for is on its way; others may be heard before."""
        self._mortal.point("redis")
        await asyncio.sleep(0)
        if self._memory.away:
            raise RedisAway("Redis is away")

    async def _do(self, *command: Any) -> Any:
        await self.reached()
        answer = self.data.execute(*command)
        self._mortal.point("redis")
        return answer

    def register_script(self, text: str) -> Callable[..., Awaitable[Any]]:
        script = super().register_script(text) if "prefix..'inbox'" not in text else self._inbox

        async def call(*, keys: list[Value], args: list[Value]) -> Any:
            await self.reached()
            answer = await script(keys=keys, args=args)
            self._mortal.point("redis")
            return answer

        return call

    def pipeline(self, *, transaction: bool) -> Pipeline:
        del transaction
        return _Pipeline(self)

    async def _inbox(self, *, keys: list[Value], args: list[Value]) -> list[str]:
        """The same steps as the script of `orchestrator.intake.inbox`."""
        prefix, do = str(keys[0]), self.data.execute
        out: list[str] = []
        for at in range(3, len(args), 5):
            guid, installation, entry, body, why = args[at : at + 5]
            if not do("SET", f"{prefix}seen:{guid!s}", "1", "NX", "EX", args[0]):
                out.append("repeat")
                continue
            foreign = installation != "0" and do("EXISTS", f"{prefix}foreign:{installation!s}")
            if why or foreign:
                why = why or "foreign installation"
                do("XADD", prefix + "dead", "*", "d", entry, "b", as_bytes(body)[:65536], "why", why)
                out.append("foreign" if foreign else "dead")
            else:
                do("XADD", prefix + "inbox", "*", "d", entry, "b", body)
                out.append("accepted")
        for result, count in Counter(out).items():
            do("HINCRBY", prefix + "counters", f"deliveries{{result={result}}}", count)
        if "accepted" in out and do("SET", keys[1], "1", "NX", "EX", args[1]):
            out.append("hint")
        return out


class _Pipeline(Pipeline):
    def __init__(self, client: Client) -> None:
        super().__init__(client.data)
        self._client = client

    async def execute(self) -> list[Any]:
        await self._client.reached()
        answers = await super().execute()
        self._client._mortal.point("redis")
        return answers
