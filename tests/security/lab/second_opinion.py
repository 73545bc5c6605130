"""mitmproxy's ClientHello parser beside ours, hello by hello: it must never read another name than we do.

Where we read a hello and mitmproxy doesn't, or the other way round, the case must be one of those below, with its reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

from orchestrator.egress.hello import Hello, HelloReader

FOLDER = Path(sys.prefix) / "mitmproxy"
"""Where ``scripts/setup`` puts it, hash-pinned by ``mitmproxy.lock``."""
PARSER = Path(__file__).with_name("mitmproxy_parser.py")

STRICTER: dict[str, str] = {
    "alpn": "an ALPN list with an empty name: OpenSSL refuses it, mitmproxy doesn't look",
    "cipher_suites": "an empty or odd list: mitmproxy rounds it down, and what follows could be read from another place",
    "compression": "no null method: no server may answer it (RFC 8446, 4.1.2); mitmproxy doesn't look",
    "duplicate_extension": "one extension twice: which one counts differs between servers",
    "ech": "the outer name says nothing; the policy may let it pass, mitmproxy always does",
    "extensions_length": "a block that says that it is longer or shorter than it is: mitmproxy reads what there is",
    "ip_literal": "an address in place of a name (RFC 6066, 3): mitmproxy takes it as a name",
    "name_characters": "bytes that no host name has: mitmproxy says that there is no name, and would go by the address",
    "name_empty": "a name of no bytes: mitmproxy says that there is no name",
    "name_labels": "empty or too long labels: mitmproxy says that there is no name",
    "name_length": "more than 253 bytes: mitmproxy says that there is no name",
    "not_client_hello": "a handshake message of another type: mitmproxy doesn't look at the type",
    "server_name_length": "a list that says that it is longer or shorter than it is: mitmproxy reads what there is",
    "server_name_type": "an entry of an unknown type: mitmproxy passes over it",
    "session_id": "more than 32 bytes: mitmproxy takes up to 255",
    "several_names": "several names: mitmproxy says that there is none",
    "too_big": "more than 64 KiB",
    "too_many_records": "more than 2,048 records",
    "trailing_handshake": "another message in the hello's last record: mitmproxy cuts it off",
    "version": "a version that no TLS client says: mitmproxy doesn't look",
}
"""Why we refuse (`Invalid.reason`) what mitmproxy reads.  A lenient reading is what an attacker plays two parsers off with."""

LAXER: dict[str, str] = {}
"""Why we read what mitmproxy refuses: there is no such case."""


class Disagreement(AssertionError):
    pass


class Mitmproxy:
    """Its parser in a process of its own; ``with Mitmproxy() as other``."""

    def __init__(self) -> None:
        argv = [sys.executable, "-I", "-S", str(PARSER), str(FOLDER)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, data: bytes) -> tuple[str, str]:
        """(``name``, the name or nothing), (``refused``, ""), or (``more``, "")."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data.hex() + "\n")
        self._process.stdin.flush()
        kind, _, name = self._process.stdout.readline().rstrip("\n").partition(" ")
        assert kind in ("name", "refused", "more"), "mitmproxy's process ended"
        return kind, name

    def compare(self, data: bytes) -> str:
        """What the two make of ``data``, in words.  Raises Disagreement where that isn't accepted."""
        ours, (kind, name) = HelloReader().feed(data), self.read(data)
        if isinstance(ours, Hello):
            if kind != "name":
                return _accepted(LAXER, kind, data)
            if (ours.name or "") != name.lower().removesuffix("."):
                raise Disagreement(f"we read {ours.name!r}, mitmproxy {name!r}: {data.hex()}")
            return "mitmproxy: same"
        if kind != "name":
            return "mitmproxy: refused too"
        return _accepted(STRICTER, "more" if ours is None else ours.reason, data)


def _accepted(cases: dict[str, str], case: str, data: bytes) -> str:
    if case not in cases:
        raise Disagreement(f"{case!r}, which isn't an accepted difference: {data.hex()}")
    return f"mitmproxy: {case}"
