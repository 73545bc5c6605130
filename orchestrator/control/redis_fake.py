"""A Redis in memory: the commands that `orchestrator.control.store` gives, with the answers of the real one, and no protocol.

It ships beside the store so that whoever plays thousands of histories of a control plane needs no server; the contract tests of
the store hold it to a real Redis.  Time is the caller's: keys end by ``clock``, not by the machine's.

The store's scripts are the same steps in Python here.  As in Redis nothing comes in between them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from redis.exceptions import ResponseError

from orchestrator.control.host_decisions import DECIDE, TAKE_OVER
from orchestrator.control.redis_fake_data import Data, Value, as_bytes
from orchestrator.control.store import ACQUIRE, COMMIT, RELEASE

Reply = Any
Script = Callable[[Data, list[Value], list[Value]], Reply]


class _Asked:
    """Commands by redis-py's names for them; what becomes of one is `_do`'s."""

    def _do(self, *command: Any) -> Any:
        raise NotImplementedError

    def get(self, key: Value) -> Any:
        return self._do("GET", key)

    def set(self, key: Value, value: Value, *, nx: bool = False, ex: int | None = None) -> Any:
        parts = (*(("NX",) if nx else ()), *(("EX", ex) if ex is not None else ()))
        return self._do("SET", key, value, *parts)

    def delete(self, *keys: Value) -> Any:
        return self._do("DEL", *keys)

    def exists(self, *keys: Value) -> Any:
        return self._do("EXISTS", *keys)

    def keys(self, pattern: str) -> Any:
        return self._do("KEYS", pattern)

    def mget(self, keys: Iterable[Value]) -> Any:
        return self._do("MGET", *keys)

    def expire(self, key: Value, seconds: int) -> Any:
        return self._do("EXPIRE", key, seconds)

    def pexpire(self, key: Value, milliseconds: int) -> Any:
        return self._do("PEXPIRE", key, milliseconds)

    def ttl(self, key: Value) -> Any:
        return self._do("TTL", key)

    def pttl(self, key: Value) -> Any:
        return self._do("PTTL", key)

    def hget(self, key: Value, field: Value) -> Any:
        return self._do("HGET", key, field)

    def hset(self, key: Value, field: Value, value: Value) -> Any:
        return self._do("HSET", key, field, value)

    def hdel(self, key: Value, *fields: Value) -> Any:
        return self._do("HDEL", key, *fields)

    def hgetall(self, key: Value) -> Any:
        return self._do("HGETALL", key)

    def hkeys(self, key: Value) -> Any:
        return self._do("HKEYS", key)

    def hvals(self, key: Value) -> Any:
        return self._do("HVALS", key)

    def hmget(self, key: Value, fields: Iterable[Value]) -> Any:
        return self._do("HMGET", key, *fields)

    def hincrby(self, key: Value, field: Value, by: int) -> Any:
        return self._do("HINCRBY", key, field, by)

    def rpush(self, key: Value, *values: Value) -> Any:
        return self._do("RPUSH", key, *values)

    def zrange(self, key: Value, start: int, stop: int, *, desc: bool = False, withscores: bool = False) -> Any:
        return self._do("ZRANGE", key, start, stop, desc, withscores)

    def zrangebyscore(self, key: Value, low: Value, high: Value) -> Any:
        return self._do("ZRANGEBYSCORE", key, low, high)

    def xadd(self, key: Value, fields: dict[str, Value]) -> Any:
        return self._do("XADD", key, "*", *itertools.chain.from_iterable(fields.items()))

    def xlen(self, key: Value) -> Any:
        return self._do("XLEN", key)

    def xrange(self, key: Value, start: Value = "-", end: Value = "+", count: int | None = None) -> Any:
        return self._do("XRANGE", key, start, end, count)


class RedisFake(_Asked):
    """``clock``: seconds since the epoch."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._listeners: list[PubSub] = []
        self.data = Data(clock, self._publish)

    async def _do(self, *command: Any) -> Any:
        return self.data.execute(*command)

    def register_script(self, text: str) -> Callable[..., Awaitable[Reply]]:
        script = _SCRIPTS[text]

        async def call(*, keys: list[Value], args: list[Value]) -> Reply:
            return script(self.data, keys, args)

        return call

    def pipeline(self, *, transaction: bool) -> Pipeline:
        del transaction  # here nothing ever comes in between
        return Pipeline(self.data)

    async def blpop(self, keys: list[str], *, timeout: float) -> tuple[bytes, bytes] | None:  # noqa: ASYNC109 - redis-py's name
        """Looks each 10 ms: who waits here isn't in a hurry."""
        patience = time.monotonic() + timeout
        while True:
            for key in map(as_bytes, keys):
                found = self.data.first(key)
                if found is not None:
                    return key, found
            if time.monotonic() >= patience:
                return None
            await asyncio.sleep(0.01)

    def pubsub(self, *, ignore_subscribe_messages: bool) -> PubSub:
        del ignore_subscribe_messages  # there are none
        return PubSub(self._listeners)

    async def flushall(self) -> None:
        self.data.clear()

    async def aclose(self) -> None:
        pass

    def _publish(self, channel: bytes, message: bytes) -> int:
        hearing = [listener for listener in self._listeners if channel in listener.channels]
        for listener in hearing:
            listener.messages.put_nowait({"data": message})
        return len(hearing)


class Pipeline(_Asked):
    def __init__(self, data: Data) -> None:
        self._data = data
        self._commands: list[tuple[Any, ...]] = []

    def _do(self, *command: Any) -> Pipeline:
        self._commands.append(command)
        return self

    async def execute(self) -> list[Reply]:
        commands, self._commands = self._commands, []
        return [self._data.execute(*command) for command in commands]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class PubSub:
    def __init__(self, listeners: list[PubSub]) -> None:
        self._listeners = listeners
        self.channels: set[bytes] = set()
        self.messages: asyncio.Queue[dict[str, bytes]] = asyncio.Queue()

    async def subscribe(self, channel: Value) -> None:
        self.channels.add(as_bytes(channel))

    async def get_message(self, *, timeout: float) -> dict[str, bytes] | None:  # noqa: ASYNC109 - redis-py's name
        try:
            return await asyncio.wait_for(self.messages.get(), timeout)
        except TimeoutError:
            return None

    async def __aenter__(self) -> Self:
        self._listeners.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listeners.remove(self)


def _commit(redis: Data, keys: list[Value], args: list[Value]) -> int:
    if redis.execute("GET", keys[0]) != as_bytes(args[0]):
        raise ResponseError("FENCED another worker has the lease")
    redis.execute("PEXPIRE", keys[0], args[1])
    at = 2
    while at < len(args):
        size = int(args[at])
        name, *rest = args[at + 1 : at + 1 + size]
        redis.execute(str(name), *rest)
        at += size + 1
    return 1


def _acquire(redis: Data, keys: list[Value], args: list[Value]) -> int:
    token: int = redis.execute("INCR", keys[1])
    return token if redis.execute("SET", keys[0], token, "NX", "PX", args[0]) else 0


def _release(redis: Data, keys: list[Value], args: list[Value]) -> int:
    held = redis.execute("GET", keys[0]) == as_bytes(args[0])
    return redis.execute("DEL", keys[0]) if held else 0


def _decide(redis: Data, keys: list[Value], args: list[Value]) -> int:
    last = float(redis.execute("HGET", keys[1], args[1]) or 0)
    at = redis.now if redis.now > last else last + 0.001
    redis.execute("HSET", keys[1], args[1], f"{at:.6f}")
    redis.execute(*(("HSET", keys[0], args[0], args[2]) if len(args) > 2 else ("HDEL", keys[0], args[0])))
    return 1


def _take_over(redis: Data, keys: list[Value], args: list[Value]) -> int:
    host, field, value, at, *barred = args
    if redis.execute("HGET", keys[0], host) is not None:
        return 0
    if any(redis.execute("HGET", keys[1], known) is not None for known in (field, *barred)):
        return 0
    redis.execute("HSET", keys[1], field, at)
    redis.execute("HSET", keys[0], host, value)
    return 1


_SCRIPTS: dict[str, Script] = {
    COMMIT: _commit,
    ACQUIRE: _acquire,
    RELEASE: _release,
    DECIDE: _decide,
    TAKE_OVER: _take_over,
}
