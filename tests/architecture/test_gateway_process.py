"""A gateway that runs is asked what it has loaded: contracts on imports say what may be, this says what is."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.link import GatewayReply
from orchestrator.core.settings import HostSettings
from orchestrator.system import netns

FORBIDDEN = {"redis", "rq", "fastapi", "starlette", "githubkit", "libvirt", "typer", "httpx", "pydantic", "nftables"}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and network namespaces"),
]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Path]:
    """The socket of a gateway process whose listeners are in a namespace of their own."""
    name = f"icdt-{secrets.token_hex(4)}"
    settings = HostSettings(
        name="arch",
        state_dir=str(tmp_path / "state"),
        run_dir=str(tmp_path / "run"),
        netns=name,
        uplink_netns=name,
        upstream_dns=("127.0.0.1",),
    )
    file = tmp_path / "settings.json"
    file.write_bytes(msgspec.json.encode(settings))
    netns.create(name)
    process = subprocess.Popen([sys.executable, "-m", "orchestrator.egress", "--settings", str(file)], stderr=-3)
    try:
        yield tmp_path / "run" / "gateway.sock"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        netns.delete(name)


def ask(path: Path, request: bytes) -> GatewayReply:
    deadline = time.monotonic() + 120
    with socket.socket(socket.AF_UNIX) as sock:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                sock.connect(str(path))
                break
            assert time.monotonic() < deadline, "the gateway didn't come up"
            time.sleep(0.05)
        sock.sendall(request + b"\n")
        with sock.makefile("rb") as file:
            return msgspec.json.decode(file.readline(), type=GatewayReply)


def test_a_running_gateway_has_loaded_nothing_of_the_control_plane(gateway: Path) -> None:
    modules = set(ask(gateway, b'{"op":"stats"}').modules)
    assert {"orchestrator", "uvloop", "dns", "cryptography"} <= modules  # it is the real process that answers
    assert modules & FORBIDDEN == set()


def test_it_answers_what_is_no_request_and_goes_on(gateway: Path) -> None:
    for request in (
        b"",
        b"not json",
        b'{"op":"explode"}',
        b'{"op":"apply","tap":"../../etc/passwd"}',
        b'{"op":"apply"}',
    ):
        reply = ask(gateway, request)
        assert not reply.ok
        assert reply.error
    assert ask(gateway, b'{"op":"ping"}').ok
    assert ask(gateway, b'{"op":"drop","tap":"ic0000000000000"}').ok
