"""The outside, in a network namespace of its own: an allowed site, a shared CDN, an attacker, DNS, and a log of each.

Everything that a server receives is kept: the tests ask what the other side got, not what the client believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.system import netns

ALLOWED, CDN, RAW, RANGE, DNS = "203.0.113.10", "203.0.113.20", "203.0.113.30", "203.0.113.40", "203.0.113.53"
RETRY, SSH = "203.0.113.50", "203.0.113.51"
"""A site that asks for a second hello, and one that answers a hello with SSH."""
ATTACKER = "198.51.100.66"
ATTACKER_TCP = (22, 53, 80, 443, 853, 4444, 8080, 8443)
ATTACKER_UDP = (53, 80, 123, 443, 853, 4444, 8443)

ZONE: dict[str, list[str]] = {
    "allowed.example": [ALLOWED],
    "cdn-ok.example": [CDN],
    "cdn-evil.example": [CDN],
    "raw.example": [RAW],
    "retry.example": [RETRY],
    "ssh.example": [SSH],
    "evil.example": [ATTACKER],
    "to-loopback.example": ["127.0.0.1"],
    "to-metadata.example": ["169.254.169.254"],
    "to-private.example": ["10.0.0.5"],
    "to-shared.example": ["100.64.0.1"],
    "to-host.example": ["203.0.113.1"],
    "to-mixed.example": [ALLOWED, "127.0.0.1"],
    "to-mapped.example": ["::ffff:127.0.0.1"],
    "to-nat64.example": ["64:ff9b::a9fe:a9fe"],
    "to-link.example": ["10.201.0.0"],
    "silent.example": ["203.0.113.99"],
}


class Authority:
    """A certificate authority and the certificates it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab authority")])
        certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, names: list[str]) -> ssl.SSLContext:
        """A server's context with a certificate for ``names``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        certificate = self._sign(subject, key.public_key(), names=names)
        file = self.folder / f"{names[0]}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _sign(self, subject: x509.Name, key: Any, *, authority: bool = False, names: list[str] | None = None) -> Any:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            alternatives: list[x509.GeneralName] = []
            for name in names:
                try:
                    alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
                except ValueError:
                    alternatives.append(x509.DNSName(name))
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class World:
    """Servers in namespace ``name``, on a thread of their own.  ``attacker`` holds (what, bytes) of all it ever got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="icdt-world-")
        self.authority = Authority(Path(self._folder.name))
        self.requests: list[tuple[str, str | None, bytes]] = []
        """(site's address, SNI, first bytes of the request)"""
        self.attacker: list[tuple[str, bytes]] = []
        self.raw = bytearray()
        """What ``raw.example``, which speaks no TLS, got; it answers each piece with its size."""
        self.queries: list[str] = []
        self.dns_answers = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="world", daemon=True)
        self._sni: dict[int, str | None] = {}
        self._closers: list[Callable[[], None]] = []

    def start(self) -> None:
        self._thread.start()
        self._run(self._open())

    def stop(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
        self._folder.cleanup()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _open(self) -> None:
        for address, names in (
            (ALLOWED, ["allowed.example"]),
            (CDN, ["cdn-ok.example", "cdn-evil.example"]),
            (RANGE, [RANGE]),
            (RETRY, ["retry.example"]),
        ):
            context = self.authority.context(names)
            if address == RETRY:
                context.set_ecdh_curve("secp521r1")  # no client sends a key share for it unasked
            context.sni_callback = self._note_sni
            for port in (443, 4444) if address == RANGE else (443,):
                sock = self._listen(address, port)
                await self._keep(asyncio.start_server(self._site(address), sock=sock, ssl=context))
        for sock in (self._listen(RANGE, 22), self._listen(SSH, 443)):
            await self._keep(asyncio.start_server(self._ssh, sock=sock))
        await self._keep(asyncio.start_server(self._sizes, sock=self._listen(RAW, 443)))
        for port in ATTACKER_TCP:
            await self._keep(asyncio.start_server(self._record(f"tcp/{port}"), sock=self._listen(ATTACKER, port)))
        for port in ATTACKER_UDP:
            await self._datagrams(ATTACKER, port, self._record_datagram(port))
        await self._datagrams(DNS, 53, self._answer)

    async def _close(self) -> None:
        for close in self._closers:
            close()
        await asyncio.sleep(0.05)

    async def _keep(self, starting: Coroutine[Any, Any, asyncio.Server]) -> None:
        self._closers.append((await starting).close)

    def _listen(self, address: str, port: int) -> socket.socket:
        with netns.inside(self.name):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(512)
        return sock

    async def _datagrams(self, address: str, port: int, handler: Callable[[bytes], bytes]) -> None:
        with netns.inside(self.name):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
        sock.setblocking(False)

        def ready() -> None:
            data, peer = sock.recvfrom(65_536)
            reply = handler(data)
            if reply:
                sock.sendto(reply, peer)

        self._loop.add_reader(sock.fileno(), ready)

        def close() -> None:
            self._loop.remove_reader(sock.fileno())
            sock.close()

        self._closers.append(close)

    def _note_sni(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self._sni[id(connection)] = name

    def _site(self, address: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        """Answers each line with ``ADDRESS got LINE``; ``GET`` closes after it, ``SEND n`` sends n bytes, ``#`` none."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            name = self._sni.pop(id(writer.get_extra_info("ssl_object")), None)
            try:
                while line := await reader.readline():
                    self.requests.append((address, name, line))
                    if line.startswith(b"#"):
                        continue
                    if line.startswith(b"SEND "):
                        writer.write(bytes(int(line[5:])))
                    else:
                        writer.write(address.encode() + b" got " + line)
                    await writer.drain()
                    if line.startswith(b"GET "):
                        break
            except (OSError, ssl.SSLError):
                pass
            finally:
                writer.close()

        return talk

    async def _ssh(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-lab\r\n")
        with contextlib.suppress(OSError):
            self.requests.append((RANGE, None, await reader.read(100)))
        writer.close()

    async def _sizes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = b"\x16"  # as a TLS server's answer begins, and no further
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                self.raw += data
                writer.write(begun + b"%d " % len(data))
                begun = b""
                await writer.drain()
        writer.close()

    def _record(self, what: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.attacker.append((what, b"(connected)"))
            try:
                while data := await reader.read(65_536):
                    self.attacker.append((what, data))
            except OSError:
                pass
            writer.close()

        return talk

    def _record_datagram(self, port: int) -> Callable[[bytes], bytes]:
        def got(data: bytes) -> bytes:
            self.attacker.append((f"udp/{port}", data))
            return b""

        return got

    def _answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries.append(name)
        if not self.dns_answers:
            return b""
        reply = dns.message.make_response(query)
        kind = dns.rdatatype.to_text(question.rdtype)
        target = name
        if name == "to-evil-cname.example":
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "CNAME", "evil.example."))
            target = "evil.example"
        found = [a for a in ZONE.get(target, ()) if (":" in a) == (kind == "AAAA")]
        if target not in ZONE and not target.endswith((".wild.example", ".cdn-ok.example")):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        if target.endswith(".wild.example") and kind == "A":
            found = [CDN]
        if found and kind in ("A", "AAAA"):
            ttl = 0 if target.startswith("to-") else 30
            owner = dns.rrset.from_text(target + ".", ttl, "IN", kind, *found)
            reply.answer.append(owner)
        return reply.to_wire()
