"""What lies in a Redis in memory (`orchestrator.control.redis_fake`), and the commands on it.  Answers are Redis' own, as
redis-py gives them: values are bytes, what isn't there is None, and what is empty is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import ResponseError

Value = str | bytes | int | float


def as_bytes(value: Value) -> bytes:
    """What Redis stores for it."""
    if type(value) is bytes:
        return value
    if type(value) is str:
        return value.encode()
    return repr(value).encode()


class _Sorted(dict[bytes, float]):
    pass


class _Stream(dict[bytes, dict[bytes, bytes]]):
    pass


class Data:
    """``clock``: seconds since the epoch; keys end by it.  ``publish`` takes a channel and a message."""

    def __init__(self, clock: Callable[[], float], publish: Callable[[bytes, bytes], int]) -> None:
        self._clock = clock
        self._publish_it = publish
        self._data: dict[bytes, Any] = {}
        self._ends: dict[bytes, float] = {}
        self._entries = itertools.count(1)

    @property
    def now(self) -> float:
        return self._clock()

    def execute(self, name: str, *args: Any) -> Any:
        """One command, now.  Raises ResponseError."""
        command = _COMMANDS.get(name)
        if command is None:
            raise ResponseError(f"unknown command {name!r}")
        return command(self, *args)

    def clear(self) -> None:
        self._data.clear()
        self._ends.clear()

    def everything(self) -> bytes:
        """All that lies here, for those who look for what must not."""
        return repr(self._data).encode()

    def first(self, key: bytes) -> bytes | None:
        """Take the first of a list."""
        values = self._read(key, list)
        if not values:
            return None
        found: bytes = values.pop(0)
        self._tidy(key, values)
        return found

    def _read(self, key: bytes, kind: type[Any]) -> Any:
        """The value of ``key``, None where there is none (any more)."""
        if self._ends and key in self._ends and self._clock() >= self._ends[key]:
            self._drop(key)
        value = self._data.get(key)
        if value is not None and type(value) is not kind:
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _made(self, key: bytes, kind: type[Any]) -> Any:
        value = self._read(key, kind)
        if value is None:
            value = self._data[key] = kind()
        return value

    def _take_out(self, key: Value, kind: type[Any], names: Iterable[Value]) -> int:
        """Of a value that goes with its last part; how many parts were there."""
        found = self._read(as_bytes(key), kind)
        if found is None:
            return 0
        gone = sum(found.pop(as_bytes(name), None) is not None for name in names)
        self._tidy(as_bytes(key), found)
        return gone

    def _tidy(self, key: bytes, value: Any) -> None:
        if not value:
            self._drop(key)

    def _drop(self, key: bytes) -> bool:
        self._ends.pop(key, None)
        return self._data.pop(key, None) is not None

    def _there(self, key: bytes) -> bool:
        if key in self._ends and self._clock() >= self._ends[key]:
            self._drop(key)
        return key in self._data

    # Keys and strings

    def _get(self, key: Value) -> bytes | None:
        found: bytes | None = self._read(as_bytes(key), bytes)
        return found

    def _set(self, key: Value, value: Value, *options: Value) -> bool | None:
        name, words = as_bytes(key), list(options)
        if "NX" in words and self._there(name):
            return None
        self._drop(name)
        self._data[name] = as_bytes(value)
        for word, unit in (("EX", 1.0), ("PX", 0.001)):
            if word in words:
                self._ends[name] = self._clock() + float(words[words.index(word) + 1]) * unit
        return True

    def _incr(self, key: Value) -> int:
        name = as_bytes(key)
        number = int(self._read(name, bytes) or 0) + 1
        self._data[name] = as_bytes(number)
        return number

    def _del(self, *keys: Value) -> int:
        return sum(self._there(key) and self._drop(key) for key in map(as_bytes, keys))

    def _exists(self, *keys: Value) -> int:
        return sum(self._there(key) for key in map(as_bytes, keys))

    def _keys(self, pattern: str) -> list[bytes]:
        """Of a prefix and ``*``, which is all that is asked for here."""
        prefix = as_bytes(pattern.removesuffix("*"))
        return [key for key in list(self._data) if key.startswith(prefix) and self._there(key)]

    def _mget(self, *keys: Value) -> list[bytes | None]:
        """Not an error where one is no string, says Redis."""
        found = [self._data[key] if self._there(key) else None for key in map(as_bytes, keys)]
        return [value if type(value) is bytes else None for value in found]

    def _pexpire(self, key: Value, milliseconds: Value) -> int:
        name = as_bytes(key)
        if not self._there(name):
            return 0
        self._ends[name] = self._clock() + float(milliseconds) / 1000
        return 1

    def _expire(self, key: Value, seconds: Value) -> int:
        return self._pexpire(key, float(seconds) * 1000)

    def _pttl(self, key: Value) -> int:
        name = as_bytes(key)
        if not self._there(name):
            return -2
        return round((self._ends[name] - self._clock()) * 1000) if name in self._ends else -1

    def _ttl(self, key: Value) -> int:
        left = self._pttl(key)
        return left if left < 0 else round(left / 1000)

    # Hashes

    def _hget(self, key: Value, field: Value) -> bytes | None:
        found: bytes | None = (self._read(as_bytes(key), dict) or {}).get(as_bytes(field))
        return found

    def _hset(self, key: Value, field: Value, value: Value) -> int:
        fields, name = self._made(as_bytes(key), dict), as_bytes(field)
        fresh = name not in fields
        fields[name] = as_bytes(value)
        return int(fresh)

    def _hdel(self, key: Value, *names: Value) -> int:
        return self._take_out(key, dict, names)

    def _hgetall(self, key: Value) -> dict[bytes, bytes]:
        return dict(self._read(as_bytes(key), dict) or {})

    def _hkeys(self, key: Value) -> list[bytes]:
        return list(self._read(as_bytes(key), dict) or {})

    def _hvals(self, key: Value) -> list[bytes]:
        return list((self._read(as_bytes(key), dict) or {}).values())

    def _hmget(self, key: Value, *names: Value) -> list[bytes | None]:
        fields = self._read(as_bytes(key), dict) or {}
        return [fields.get(as_bytes(name)) for name in names]

    def _hincrby(self, key: Value, field: Value, by: Value) -> int:
        number = int(self._hget(key, field) or 0) + int(by)
        self._hset(key, field, number)
        return number

    def _hincrbyfloat(self, key: Value, field: Value, by: Value) -> bytes:
        number = as_bytes(f"{float(self._hget(key, field) or 0) + float(by):.17g}")
        self._hset(key, field, number)
        return number

    # Lists and sorted sets

    def _rpush(self, key: Value, *values: Value) -> int:
        found = self._made(as_bytes(key), list)
        found += map(as_bytes, values)
        return len(found)

    def _zadd(self, key: Value, score: Value, member: Value) -> int:
        found, name = self._made(as_bytes(key), _Sorted), as_bytes(member)
        fresh = name not in found
        found[name] = float(score)
        return int(fresh)

    def _zrem(self, key: Value, *members: Value) -> int:
        return self._take_out(key, _Sorted, members)

    def _zrange(self, key: Value, start: int, stop: int, desc: bool, withscores: bool) -> list[Any]:
        found = self._ranked(key)
        if desc:
            found.reverse()
        size = len(found)
        low, high = (size + number if number < 0 else number for number in (start, stop))
        found = found[max(0, low) : high + 1] if high >= 0 else []
        return found if withscores else [member for member, _ in found]

    def _zrangebyscore(self, key: Value, low: Value, high: Value) -> list[bytes]:
        return [member for member, score in self._ranked(key) if float(low) <= score <= float(high)]

    def _zremrangebyscore(self, key: Value, low: Value, high: Value) -> int:
        return self._zrem(key, *self._zrangebyscore(key, low, high))

    def _ranked(self, key: Value) -> list[tuple[bytes, float]]:
        found = self._read(as_bytes(key), _Sorted) or {}
        return sorted(found.items(), key=lambda item: (item[1], item[0]))

    # Streams and channels

    def _xadd(self, key: Value, *parts: Value) -> bytes:
        """A stream's length is left to itself: ``MAXLEN ~`` is a wish, and far above what lies here."""
        fields = parts[list(parts).index("*") + 1 :]
        entry = b"%d-%d" % (self._clock() * 1000, next(self._entries))
        pairs = zip(map(as_bytes, fields[::2]), map(as_bytes, fields[1::2]), strict=True)
        self._made(as_bytes(key), _Stream)[entry] = dict(pairs)
        return entry

    def _xdel(self, key: Value, *entries: Value) -> int:
        found = self._read(as_bytes(key), _Stream) or {}
        return sum(found.pop(as_bytes(entry), None) is not None for entry in entries)

    def _xlen(self, key: Value) -> int:
        return len(self._read(as_bytes(key), _Stream) or ())

    def _xrange(
        self, key: Value, start: Value, end: Value, count: int | None
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """From ``-`` to ``+``, or one entry."""
        found = self._read(as_bytes(key), _Stream) or {}
        if start == "-" and end == "+":
            return list(itertools.islice(found.items(), count))
        return [(as_bytes(start), found[as_bytes(start)])] if as_bytes(start) in found else []

    def _publish(self, channel: Value, message: Value) -> int:
        return self._publish_it(as_bytes(channel), as_bytes(message))


_COMMANDS: dict[str, Callable[..., Any]] = {
    name.removeprefix("_").upper(): getattr(Data, name)
    for name in (
        *("_get", "_set", "_incr", "_del", "_exists", "_keys", "_mget", "_expire", "_pexpire", "_ttl", "_pttl"),
        *("_hget", "_hset", "_hdel", "_hgetall", "_hkeys", "_hvals", "_hmget", "_hincrby", "_hincrbyfloat"),
        *("_rpush", "_zadd", "_zrem", "_zrange", "_zrangebyscore", "_zremrangebyscore"),
        *("_xadd", "_xdel", "_xlen", "_xrange", "_publish"),
    )
}
