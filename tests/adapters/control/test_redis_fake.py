"""The Redis in memory answers as a real one does: the same random commands to both, and every answer compared."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.exceptions import ResponseError

from orchestrator.control.redis_fake import RedisFake
from orchestrator.control.store import Store
from orchestrator.core.errors import StoreError

pytestmark = pytest.mark.real
COMMANDS = 1500
Draw = random.Random
Call = Callable[[Any], Any]


@pytest.fixture
async def real(redis_server) -> AsyncIterator[aioredis.Redis]:  # type: ignore[no-untyped-def]
    client = Store.at(redis_server.url).client
    await client.config_set("appendfsync", "no")  # it is asked for answers here, not for durability
    yield client
    await client.aclose()


def key(rng: Draw) -> str:
    """Few keys of each kind, and now and then one of the wrong kind."""
    return f"{rng.choice('sshhhzzzl')}{rng.randrange(3)}"


def field(rng: Draw) -> str:
    return f"f{rng.randrange(5)}"


def command(rng: Draw) -> Call:
    name, other, value, number = key(rng), field(rng), f"v{rng.randrange(9)}", rng.randrange(-3, 9)
    string, hash_, ordered = f"s{rng.randrange(3)}", f"h{rng.randrange(3)}", f"z{rng.randrange(3)}"
    choices: list[Call] = [
        lambda r: r.get(name),
        lambda r: r.set(string, value, nx=number > 4, ex=100 if number % 2 else None),
        lambda r: r.mget([string, "s0", "none"]),
        lambda r: r.delete(name, string),
        lambda r: r.exists(name, string),
        lambda r: r.expire(name, 50),
        lambda r: r.pexpire(name, 50_000),
        lambda r: r.ttl(name),
        lambda r: r.hget(name, other),
        lambda r: r.hset(hash_, other, value),
        lambda r: r.hset(name, other, number),
        lambda r: r.hdel(name, other, "f0"),
        lambda r: r.hgetall(name),
        lambda r: r.hmget(hash_, [other, "f1", "none"]),
        lambda r: r.hincrby("counts", other, number),
        lambda r: r.rpush("l0", value),
        lambda r: r.zrange(ordered, number, number + 3, desc=number % 2 == 0, withscores=number % 3 == 0),
        lambda r: r.zrange(name, 0, -number),
        lambda r: r.zrangebyscore(name, number, "+inf"),
    ]
    return rng.choice(choices)


def written(rng: Draw) -> tuple[Any, ...]:
    """What a commit may hold."""
    ordered, hash_, number = f"z{rng.randrange(3)}", f"h{rng.randrange(3)}", rng.randrange(9)
    return rng.choice(
        [
            ("ZADD", ordered, number / 4, field(rng)),
            ("ZREM", ordered, field(rng)),
            ("ZREMRANGEBYSCORE", ordered, "-inf", number / 8),
            ("HSET", hash_, field(rng), number / 4),
            ("HDEL", hash_, field(rng)),
            ("SET", f"s{rng.randrange(3)}", number, "EX", 100),
            ("DEL", key(rng)),
            ("INCR", "number"),
            ("HINCRBY", "counts", field(rng), number),
            ("HINCRBYFLOAT", "sums", field(rng), f"{number / 8:.3f}"),
            ("HSET", key(rng), "f0", b"raw\x00bytes"),
        ]
    )


async def answer(call: Call, redis: Any) -> Any:
    try:
        return await call(redis)
    except ResponseError as error:
        return str(error).split()[0]


@pytest.mark.parametrize("seed", [1, 2])
async def test_it_answers_as_a_real_one(seed: int, real: aioredis.Redis) -> None:
    rng, fake = random.Random(seed), RedisFake()
    stores = [Store(real, "x:"), Store(fake, "x:")]  # type: ignore[arg-type]
    for number in range(COMMANDS):
        if rng.random() < 0.3:
            call = commit([written(rng) for _ in range(rng.randrange(1, 4))])
            answers = [await answer(call, store) for store in stores]
        else:
            call = command(rng)
            answers = [await answer(call, redis) for redis in (real, fake)]
        assert answers[0] == answers[1], (number, answers)
    names = sorted(await real.keys("*"))
    assert names == sorted(await fake.keys("*"))
    for name in names:
        kind = await real.type(name)
        assert await contents(real, name, kind) == await contents(fake, name, kind), name


async def contents(redis: Any, name: bytes, kind: bytes) -> Any:
    match kind:
        case b"hash":
            return await redis.hgetall(name)
        case b"zset":
            return await redis.zrange(name, 0, -1, withscores=True)
        case b"string":
            return await redis.get(name)
        case _:
            return await redis.exists(name)


def commit(operations: list[tuple[Any, ...]]) -> Call:
    async def call(store: Store) -> None:
        changes = store.changes()
        changes.operations += operations
        lease = await store.acquire()
        assert lease is not None
        try:
            await store.commit(lease, changes)
        except StoreError as error:
            raise ResponseError(str(error.__cause__)) from error
        finally:
            await store.release(lease)

    return call


async def test_keys_end_by_the_callers_clock() -> None:
    now = 0.0
    fake = RedisFake(clock=lambda: now)
    await fake.set("a", "1", ex=10)
    now = 9.9
    assert await fake.get("a") == b"1"
    now = 10.0
    assert (await fake.get("a"), await fake.keys("*")) == (None, [])
    assert await fake.set("a", "2", nx=True)


async def test_streams_are_read_in_order(real: aioredis.Redis) -> None:
    for redis in (real, RedisFake()):
        client: Any = redis
        ids = [await client.xadd("q", {"d": str(n), "b": b"x"}) for n in range(5)]
        entries = await client.xrange("q", count=3)
        assert [(entry, fields[b"d"]) for entry, fields in entries] == [(ids[n], b"%d" % n) for n in range(3)]
        assert await client.xrange("q", ids[4], ids[4]) == [(ids[4], {b"d": b"4", b"b": b"x"})]
        assert await client.xlen("q") == 5
