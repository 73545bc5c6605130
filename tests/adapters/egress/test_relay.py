"""The relay between real sockets: bytes, ends and resets pass both ways, large and small."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from orchestrator.egress import relay as module
from orchestrator.egress.poller import ENDED, READABLE, Poller
from orchestrator.egress.relay import Pipes, Relay, reset
from orchestrator.egress.second_hello import SecondHello
from tests.unit.egress.hellos import hello


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


class Ends:
    def __init__(self, head: bytes = b"", tls: SecondHello | None = None) -> None:
        self.client, inner_client = connected()
        self.server, inner_server = connected()
        self.pipes = Pipes()
        self.poller = Poller(loop := asyncio.get_running_loop())
        self.finished: asyncio.Future[str] = loop.create_future()
        self._inner = (inner_client, inner_server)
        self.relay = Relay(
            inner_client, inner_server, pipes=self.pipes, loop=loop, finished=self.over, head=head, tls=tls
        )
        for sock, ready in ((inner_client, self.relay.client_ready), (inner_server, self.relay.upstream_ready)):
            self.poller.watch(sock.fileno(), ready, self.failed)
        self.relay.start(client=READABLE & ~ENDED, upstream=READABLE & ~ENDED)

    def over(self, reason: str) -> None:
        """What a session does at its end."""
        for sock in self._inner:
            self.poller.forget(sock.fileno())
            sock.close() if reason == "ended" else reset(sock)
        self.finished.set_result(reason)

    def failed(self, error: Exception) -> None:
        self.finished.set_exception(error)

    def close(self) -> None:
        self.relay.abort("test over")
        self.pipes.close()
        self.poller.close()
        self.client.close()
        self.server.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


async def read_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while piece := await loop.sock_recv(sock, 1 << 18):
        data += piece
    return bytes(data)


async def test_small_pieces_pass_both_ways_and_are_counted(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    for number in range(20):
        await loop.sock_sendall(ends.client, b"ping%d" % number)
        assert await loop.sock_recv(ends.server, 100) == b"ping%d" % number
        await loop.sock_sendall(ends.server, b"pong")
        assert await loop.sock_recv(ends.client, 100) == b"pong"
    assert ends.relay.bytes_up == 10 * 5 + 10 * 6
    assert ends.relay.bytes_down == 80


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_000, 20_000_000])
async def test_bulk_arrives_as_it_was_both_ways_at_once(ends: Ends, size: int) -> None:
    loop = asyncio.get_running_loop()
    up, down = os.urandom(size), os.urandom(size)

    async def send(sock: socket.socket, data: bytes) -> None:
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    async with asyncio.timeout(120):
        _, _, got_up, got_down = await asyncio.gather(
            send(ends.client, up), send(ends.server, down), read_all(ends.server), read_all(ends.client)
        )
        assert await ends.finished == "ended"
    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
    assert (ends.relay.bytes_up, ends.relay.bytes_down) == (size, size)


async def test_a_slow_reader_holds_the_sender_and_loses_nothing(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(32_000_000)
    sending = asyncio.create_task(loop.sock_sendall(ends.client, data))
    moved = -1
    async with asyncio.timeout(60):  # the sockets' buffers fill; how far and how fast is the kernel's business
        while moved != ends.relay.bytes_up or not moved:
            moved = ends.relay.bytes_up
            await asyncio.sleep(0.3)
    assert moved < len(data)
    assert not sending.done()
    got = bytearray()
    async with asyncio.timeout(120):
        while len(got) < len(data):
            got += await loop.sock_recv(ends.server, 1 << 16)
        await sending
    assert bytes(got) == data


async def test_one_sides_end_leaves_the_other_way_open(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(ends.client, b"request")
    ends.client.shutdown(socket.SHUT_WR)
    assert await read_all(ends.server) == b"request"
    await asyncio.sleep(0.05)
    assert not ends.finished.done()
    await loop.sock_sendall(ends.server, b"answer")
    ends.server.close()
    assert await read_all(ends.client) == b"answer"
    assert await ends.finished == "ended"


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_is_passed_on_as_a_reset(ends: Ends, who: str) -> None:
    loop = asyncio.get_running_loop()
    one, other = (ends.client, ends.server) if who == "client" else (ends.server, ends.client)
    await loop.sock_sendall(one, b"x")
    await loop.sock_recv(other, 10)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(other, 10)
    assert await ends.finished == "reset"


async def test_an_abort_resets_both_sides(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    ends.relay.abort("policy")
    for sock in (ends.client, ends.server):
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(sock, 10)
    assert await ends.finished == "policy"


async def test_pipes_go_back_to_the_pool_when_they_are_empty(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    data = bytes(1_000_000)
    sending = asyncio.create_task(loop.sock_sendall(ends.client, data))
    left = len(data)
    async with asyncio.timeout(60):
        while left:
            left -= len(await loop.sock_recv(ends.server, 1 << 18))
        await sending
    assert len(ends.pipes._idle) >= 1
    pipe = ends.pipes.take()
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)
    ends.pipes.put(pipe)


async def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for reason in ("ended", "policy"):
        ends = Ends()
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(ends.client, bytes(3_000_000)))
        await asyncio.sleep(0.05)
        if reason == "ended":
            with contextlib.suppress(OSError):
                sending.cancel()
        ends.relay.abort(reason)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        ends.close()
    async with asyncio.timeout(60):
        while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)


def spy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    real, calls = os.splice, 0

    def splice(*args: int, **fields: int) -> int:
        nonlocal calls
        calls += 1
        return real(*args, **fields)

    monkeypatch.setattr(module.os, "splice", splice)
    return lambda: calls


async def test_only_bulk_is_spliced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spy(monkeypatch)
    ends = Ends()
    loop = asyncio.get_running_loop()
    for _ in range(100):
        await loop.sock_sendall(ends.client, bytes(1000))
        await loop.sock_recv(ends.server, 2000)
    assert calls() == 0
    sending = asyncio.create_task(loop.sock_sendall(ends.client, bytes(4_000_000)))
    left = 4_000_000
    while left:
        left -= len(await loop.sock_recv(ends.server, 1 << 18))
    await sending
    assert calls() > 0
    ends.close()


RETRY = b"\x16\x03\x03\x00\x58\x02\x00\x00\x54\x03\x03" + bytes.fromhex(
    "cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
)
EARLY_DATA = b"\x17\x03\x03\x00\x05early"
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"


async def after_retry(second: bytes, *, step: int = 10_000) -> tuple[str, bytes]:
    """How a session ends, and what the server gets after it asked for another hello and ``second`` came."""
    loop = asyncio.get_running_loop()
    ends = Ends(hello(b"allowed.example"), SecondHello("allowed.example", allow_ech=False))
    try:
        async with asyncio.timeout(60):
            await loop.sock_recv(ends.server, 10_000)
            await loop.sock_sendall(ends.server, RETRY)
            assert await loop.sock_recv(ends.client, 100) == RETRY
            for at in range(0, len(second), step):
                await loop.sock_sendall(ends.client, second[at : at + step])
                await asyncio.sleep(0)
            got = b""
            while len(got) < len(second) and not ends.finished.done():
                with contextlib.suppress(ConnectionError):
                    got += await loop.sock_recv(ends.server, 10_000)
                await asyncio.sleep(0)
            return ends.finished.result() if ends.finished.done() else "", got
    finally:
        ends.close()


@pytest.mark.parametrize("before", [b"", CHANGE_CIPHER_SPEC, EARLY_DATA + CHANGE_CIPHER_SPEC])
@pytest.mark.parametrize("step", [10_000, 1])
async def test_a_second_hello_names_the_same_host(before: bytes, step: int) -> None:
    second = before + hello(b"allowed.example") + b"\x17\x03\x03\x00\x01x"
    assert await after_retry(second, step=step) == ("", second)


@pytest.mark.parametrize("before", [b"", CHANGE_CIPHER_SPEC, EARLY_DATA + CHANGE_CIPHER_SPEC])
@pytest.mark.parametrize("step", [10_000, 1])
async def test_a_second_hello_that_names_another_host_goes_nowhere(before: bytes, step: int) -> None:
    assert await after_retry(before + hello(b"evil.example"), step=step) == ("sni_changed", b"")


async def test_a_server_that_speaks_no_tls_is_cut_off() -> None:
    loop = asyncio.get_running_loop()
    for answer, reason in ((b"SSH-2.0-x", "upstream_not_tls"), (b"\x15\x03\x03\x00\x02\x02\x28", "")):
        ends = Ends(hello(b"allowed.example"), SecondHello("allowed.example", allow_ech=False))
        assert await loop.sock_recv(ends.server, 10_000) == hello(b"allowed.example")
        await loop.sock_sendall(ends.server, answer)
        if reason:
            assert await ends.finished == reason
            with pytest.raises(ConnectionError):
                await loop.sock_recv(ends.client, 100)
        else:
            assert await loop.sock_recv(ends.client, 100) == answer
        ends.close()


def test_resetting_a_closed_socket_is_nothing() -> None:
    one, other = connected()
    one.close()
    reset(one)
    other.close()
