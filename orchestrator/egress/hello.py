"""Reads the name out of a TLS ClientHello, or says why it won't.  No I/O: bytes in, a result out.

Rules.  Whatever a TLS server could read in another way than we do is refused, never guessed at:

- The handshake message is put together from TLS records before anything in it is looked at (a name can be cut in two by a
  record header), and the message must end where its last record ends.
- Every length must fit exactly: vectors end where their container ends, the extension block ends where the message ends.
- One ``server_name`` extension with one entry of type host_name; no extension type twice (RFC 8446, 4.2).  An ALPN list is
  whole, too (RFC 7301, 3.1): OpenSSL's server refuses one that isn't.
- A name is made of ASCII letters, digits, ``-`` and ``_`` in labels of 1 to 63 bytes, 253 in all; one final dot is dropped;
  upper case is folded after that check.  A last label that a URL parser would take for a number (``127.1``, ``0x7f000001``)
  makes it an IP literal, which RFC 6066 forbids.
- ``encrypted_client_hello`` is refused (``ech``) unless the policy lets it pass: the outer name says nothing then.
- A message of up to 64 KiB, as Go and Envoy accept, in up to 2,048 records.  Sixteen would do for every client known, but a
  proxy on the way may cut finer; at 2,048 a post-quantum hello in one-byte records is still read, and the work is linear.

What follows the hello (early data) isn't looked at.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache

import msgspec

MAX_MESSAGE = 65_536
MAX_RECORDS = 2_048
MAX_WIRE = MAX_MESSAGE + 4 + 5 * MAX_RECORDS
"""No hello that is accepted takes more bytes than this."""

_RECORD_HEADER = 5
_MAX_FRAGMENT = 16_384

_SHORT = 64
_EXTENSION = struct.Struct("!HH")

_SERVER_NAME = 0x0000
_ALPN = 0x0010
_SUPPORTED_VERSIONS = 0x002B
_KEY_SHARE = 0x0033
_ECH = frozenset({0xFE0D, 0xFFCE})
"""encrypted_client_hello (RFC 9849), and the drafts' encrypted_server_name."""

_PQ_GROUPS = {
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
    0x6399: "X25519Kyber768Draft00",
    0x0200: "MLKEM512",
    0x0201: "MLKEM768",
    0x0202: "MLKEM1024",
}
_VERSIONS = {0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}

_NAME = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_NUMBER = re.compile(rb"[0-9]+|0[xX][0-9A-Fa-f]*")


class Hello(msgspec.Struct, frozen=True):
    """A whole hello that can be read in one way only."""

    name: str | None
    """Lower case, no final dot; None where the client named no host."""
    size: int
    """Bytes of the handshake message, its header included."""
    records: int
    ech: bool = False
    alpn: str = ""
    versions: str = ""
    pq_group: str = ""

    def facts(self) -> dict[str, str | int]:
        """What the ledger's ``tls`` field says."""
        facts: dict[str, str | int] = {"hello_bytes": self.size, "records": self.records}
        if self.alpn:
            facts["alpn"] = self.alpn
        if self.versions:
            facts["versions"] = self.versions
        if self.pq_group:
            facts["pq_group"] = self.pq_group
        if self.ech:
            facts["ech"] = "present"
        return facts


class Invalid(msgspec.Struct, frozen=True):
    """Not a hello that we let pass; ``reason`` is one word."""

    reason: str


Result = Hello | Invalid


class _Refused(Exception):
    pass


class HelloReader:
    """Takes a client's bytes as they come.  `feed` answers None while more are needed; ``data`` is all that came."""

    __slots__ = ("_allow_ech", "_at", "_message", "_records", "data")

    def __init__(self, *, allow_ech: bool = False) -> None:
        self.data = bytearray()
        self._allow_ech = allow_ech
        self._at = 0
        self._message = bytearray()
        self._records = 0

    def feed(self, data: bytes) -> Result | None:
        fresh = not self.data
        self.data += data
        if fresh and (message := _usual(data)):
            return parse_message(message, allow_ech=self._allow_ech)
        try:
            return self._read()
        except _Refused as refused:
            return Invalid(str(refused))

    def _read(self) -> Result | None:
        buffer = self.data
        while True:
            rest = len(buffer) - self._at
            _check_header(buffer, self._at, rest, first=self._records == 0)
            if rest < _RECORD_HEADER:
                return None
            end = self._at + _RECORD_HEADER + _record_length(buffer, self._at)
            if end > len(buffer):
                self._peek()
                return None
            self._message += buffer[self._at + _RECORD_HEADER : end]
            self._at = end
            self._records += 1
            if self._records > MAX_RECORDS:
                raise _Refused("too_many_records")
            if self._whole():
                return parse_message(bytes(self._message), records=self._records, allow_ech=self._allow_ech)

    def _whole(self) -> bool:
        message = self._message
        if message[0] != 1:
            raise _Refused("not_client_hello")
        if len(message) < 4:
            return False
        length = int.from_bytes(message[1:4], "big")
        if length > MAX_MESSAGE:
            raise _Refused("too_big")
        if len(message) > 4 + length:
            raise _Refused("trailing_handshake")
        return len(message) == 4 + length

    def _peek(self) -> None:
        """Refuse what can't become a hello before all of its first record is there."""
        first = self._at + _RECORD_HEADER
        if self._records == 0 and len(self.data) > first and self.data[first] != 1:
            raise _Refused("not_client_hello")


def _usual(data: bytes) -> bytes:
    """The message of a client whose first read gave one record with exactly one hello in it; nothing for any other."""
    if len(data) < 9 or data[0] != 0x16 or data[1] != 3 or data[2] > 4 or data[5] != 1:
        return b""
    length = data[3] << 8 | data[4]
    end = _RECORD_HEADER + length
    if length > _MAX_FRAGMENT or end > len(data) or (data[6] << 16 | data[7] << 8 | data[8]) != length - 4:
        return b""
    return data[_RECORD_HEADER:end]


def _check_header(buffer: bytearray, at: int, rest: int, *, first: bool) -> None:
    if rest > 0 and buffer[at] != 0x16:
        raise _Refused("not_tls" if first else "interleaved_record")
    if rest > 1 and buffer[at + 1] != 0x03:
        raise _Refused("not_tls" if first else "record_version")
    if rest > 2 and buffer[at + 2] > 0x04:
        raise _Refused("record_version")


def _record_length(buffer: bytearray, at: int) -> int:
    length = buffer[at + 3] << 8 | buffer[at + 4]
    if length == 0:
        raise _Refused("empty_record")
    if length > _MAX_FRAGMENT:
        raise _Refused("record_too_big")
    return length


def parse_message(message: bytes, *, records: int = 1, allow_ech: bool = False) -> Result:
    """Judge one whole handshake message (its 4-byte header included) of type client_hello."""
    try:
        return _parse(message, records, allow_ech)
    except _Refused as refused:
        return Invalid(str(refused))
    except (IndexError, struct.error):
        return Invalid("malformed")


def _parse(message: bytes, records: int, allow_ech: bool) -> Hello:
    if message[4] != 3 or not 1 <= message[5] <= 3:
        raise _Refused("version")
    at = 38  # header 4, version 2, random 32
    session = message[at]
    if session > 32:
        raise _Refused("session_id")
    at += 1 + session
    ciphers = message[at] << 8 | message[at + 1]
    if ciphers == 0 or ciphers & 1:
        raise _Refused("cipher_suites")
    at += 2 + ciphers
    methods = message[at]
    at += 1
    if methods == 0 or 0 not in message[at : at + methods]:
        raise _Refused("compression")
    at += methods
    end = len(message)
    if at == end:
        return Hello(None, end, records)
    if at > end:
        raise _Refused("malformed")
    if at + 2 + (message[at] << 8 | message[at + 1]) != end:
        raise _Refused("extensions_length")
    return _judge(_extensions(message, at + 2, end), end, records, allow_ech)


def _extensions(message: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    header = _EXTENSION.unpack_from
    while at < end:
        kind, size = header(message, at)
        start = at + 4
        at = start + size
        if at > end:
            raise _Refused("extension_length")
        if kind in found:
            raise _Refused("duplicate_extension")
        found[kind] = message[start:at]
    return found


def _judge(extensions: dict[int, bytes], size: int, records: int, allow_ech: bool) -> Hello:
    ech = not _ECH.isdisjoint(extensions)
    if ech and not allow_ech:
        raise _Refused("ech")
    body = extensions.get(_SERVER_NAME)
    return Hello(
        None if body is None else _server_name(body),
        size,
        records,
        ech,
        _list_of(_alpn, extensions.get(_ALPN)),
        _list_of(_versions, extensions.get(_SUPPORTED_VERSIONS)),
        _pq_group(extensions.get(_KEY_SHARE, b"")),
    )


def _server_name(body: bytes) -> str:
    if len(body) < 5 or int.from_bytes(body[:2], "big") != len(body) - 2:
        raise _Refused("server_name_length")
    if body[2] != 0:
        raise _Refused("server_name_type")
    length = body[3] << 8 | body[4]
    if length > len(body) - 5:
        raise _Refused("server_name_length")
    if length < len(body) - 5:
        raise _Refused("several_names")
    name, reason = _known_name(body[5:]) if length <= 254 else host_name(body[5:])
    if name is None:
        raise _Refused(reason)
    return name


@lru_cache(maxsize=1024)
def _known_name(raw: bytes) -> tuple[str | None, str]:
    return host_name(raw)


def host_name(raw: bytes) -> tuple[str | None, str]:
    """The host name that ``raw`` spells, and an empty reason; or None and the reason why it spells none."""
    if raw.endswith(b"."):
        raw = raw[:-1]
    if not raw:
        return None, "name_empty"
    if len(raw) > 253:
        return None, "name_length"
    if _NAME.fullmatch(raw) is None:
        return None, _why_not(raw)
    if _NUMBER.fullmatch(raw, raw.rfind(b".") + 1) is not None:
        return None, "ip_literal"
    return raw.decode("ascii").lower(), ""


def _why_not(raw: bytes) -> str:
    if re.fullmatch(rb"[A-Za-z0-9_.-]+", raw) is None:
        return "name_characters"
    return "name_labels"


def _list_of(read: Callable[[bytes], str], body: bytes | None) -> str:
    """What ``read`` makes of an extension's body; a client's are the same each time, so what it made of short ones is kept."""
    if body is None:
        return ""
    return _kept(read, body) if len(body) <= _SHORT else read(body)


@lru_cache(maxsize=256)
def _kept(read: Callable[[bytes], str], body: bytes) -> str:
    return read(body)


def _alpn(body: bytes) -> str:
    names: list[str] = []
    at, end = 2, len(body)
    if end < 4 or body[0] << 8 | body[1] != end - 2:
        raise _Refused("alpn")
    while at < end:
        start = at + 1
        at = start + body[at]
        if at == start or at > end:
            raise _Refused("alpn")
        names.append(body[start:at].decode("ascii", "backslashreplace"))
    return ",".join(names[:8])[:96]


def _versions(body: bytes) -> str:
    found: list[str] = []
    for at in range(1, len(body) - 1, 2):
        version = _VERSIONS.get(body[at] << 8 | body[at + 1])
        if version is not None and version not in found:
            found.append(version)
    return ",".join(found)


def _pq_group(body: bytes) -> str:
    at = 2
    while at + 4 <= len(body):
        name = _PQ_GROUPS.get(body[at] << 8 | body[at + 1])
        if name is not None:
            return name
        at += 4 + (body[at + 2] << 8 | body[at + 3])
    return ""
