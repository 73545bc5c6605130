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
from orchestrator.egress.relay import Pipes, Relay, reset


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


class Ends:
    def __init__(self) -> None:
        self.client, inner_client = connected()
        self.server, inner_server = connected()
        self.pipes = Pipes()
        self.relay = Relay(inner_client, inner_server, pipes=self.pipes, loop=asyncio.get_running_loop(), sent_up=7)
        self.relay.start()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.relay.abort("test over")
    ends.pipes.close()
    ends.client.close()
    ends.server.close()


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
    assert ends.relay.bytes_up == 7 + 10 * 5 + 10 * 6
    assert ends.relay.bytes_down == 80


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_000, 20_000_000])
async def test_bulk_arrives_as_it_was_both_ways_at_once(ends: Ends, size: int) -> None:
    loop = asyncio.get_running_loop()
    up, down = os.urandom(size), os.urandom(size)

    async def send(sock: socket.socket, data: bytes) -> None:
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    async with asyncio.timeout(20):
        _, _, got_up, got_down = await asyncio.gather(
            send(ends.client, up), send(ends.server, down), read_all(ends.server), read_all(ends.client)
        )
        assert await ends.relay.finished == "ended"
    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
    assert (ends.relay.bytes_up, ends.relay.bytes_down) == (7 + size, size)


async def test_a_slow_reader_holds_the_sender_and_loses_nothing(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(8_000_000)
    sending = asyncio.create_task(loop.sock_sendall(ends.client, data))
    await asyncio.sleep(0.2)
    moved = ends.relay.bytes_up
    assert moved < len(data)
    await asyncio.sleep(0.1)
    assert ends.relay.bytes_up == moved
    got = bytearray()
    async with asyncio.timeout(20):
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
    assert not ends.relay.finished.done()
    await loop.sock_sendall(ends.server, b"answer")
    ends.server.close()
    assert await read_all(ends.client) == b"answer"
    assert await ends.relay.finished == "ended"


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
    assert await ends.relay.finished == "reset"


async def test_an_abort_resets_both_sides(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    ends.relay.abort("policy")
    for sock in (ends.client, ends.server):
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(sock, 10)
    assert await ends.relay.finished == "policy"


async def test_pipes_go_back_to_the_pool_when_they_are_empty(ends: Ends) -> None:
    loop = asyncio.get_running_loop()
    data = bytes(1_000_000)
    sending = asyncio.create_task(loop.sock_sendall(ends.client, data))
    left = len(data)
    async with asyncio.timeout(10):
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
        ends.pipes.close()
        ends.client.close()
        ends.server.close()
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before


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
    ends.relay.abort("test over")
    ends.pipes.close()
    ends.client.close()
    ends.server.close()


def test_resetting_a_closed_socket_is_nothing() -> None:
    one, other = connected()
    one.close()
    reset(one)
    other.close()
