"""After a HelloRetryRequest the client says hello again: it must name the same host (RFC 8446, 4.1.2).

The upstream is pinned by then, so another name could reach a co-tenant of the same place at most.  It is refused all the same.
"""

from __future__ import annotations

from orchestrator.egress.hello import Hello, HelloReader

_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_BEFORE = (0x14, 0x17)
"""Records that may come first: change_cipher_spec (RFC 8446, D.4), and early data sent before the client was asked again."""
MAX_HELD = 131_072


def asks_again(flight: bytes) -> bool:
    """True where a server's first bytes are a HelloRetryRequest: a ServerHello with its one random value."""
    return flight[:1] == b"\x16" and flight[5:6] == b"\x02" and flight[11:43] == _RETRY


class SecondHello:
    """Takes the client's bytes from there on.  ``verdict``: None while more are needed, then whether the name is ``name``."""

    __slots__ = ("_allow_ech", "_name", "_reader", "_start", "data", "verdict")

    def __init__(self, name: str | None, *, allow_ech: bool) -> None:
        self.data = bytearray()
        self.verdict: bool | None = None
        self._name = name
        self._start: bytearray | None = bytearray()
        self._allow_ech = allow_ech
        self._reader: HelloReader | None = None
        """Made when it is needed: hardly any server asks again."""

    def feed(self, data: bytes) -> bool | None:
        self.data += data
        if len(self.data) > MAX_HELD:
            self.verdict = False
            return False
        if self._start is not None:
            self._start += data
            self._skip()
            if not self._start or self._start[0] in _BEFORE:
                return None
            data, self._start = bytes(self._start), None
        if self._reader is None:
            self._reader = HelloReader(allow_ech=self._allow_ech)
        result = self._reader.feed(data)
        if result is not None:
            self.verdict = isinstance(result, Hello) and result.name == self._name
        return self.verdict

    def _skip(self) -> None:
        """Pass over the whole records that may come before the hello."""
        start = self._start
        while start and start[0] in _BEFORE and len(start) >= 5:
            end = 5 + int.from_bytes(start[3:5], "big")
            if len(start) < end:
                return
            del start[:end]
