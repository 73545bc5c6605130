"""The simulated internet in real network namespaces: nothing that leaves the uplink gets by unseen or stays behind."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import dns.message
import httpx
import pytest

from orchestrator.core.errors import OperationalError
from orchestrator.simulator import world as places
from orchestrator.simulator.github import Simulator
from orchestrator.simulator.runner import write_runner
from orchestrator.simulator.world import World, new_prefix
from orchestrator.system import netns
from orchestrator.system.process import run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nftables"),
]


@pytest.fixture(scope="module")
def world():
    with World(new_prefix()) as made:
        yield made


@pytest.fixture(autouse=True)
def forget(request):
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").clear()


def connect(world: World, address: str, port: int) -> socket.socket:
    with netns.inside(world.uplink_netns):
        return socket.create_connection((address, port), timeout=60)


def get(
    world: World, address: str, name: str, path: str = "/", *, trusted: bool = True, body: bytes | None = None
) -> str:
    context = ssl.create_default_context(cafile=str(world.ca_file))
    if not trusted:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(name)
    with connect(world, address, 443) as raw, context.wrap_socket(raw, server_hostname=name) as wrapped:
        connection.sock = wrapped
        connection.request("POST" if body else "GET", path, body=body)
        return connection.getresponse().read().decode()


def wait_for(world: World, **what) -> list:
    deadline = time.monotonic() + 60
    while not (found := world.received(**what)):
        assert time.monotonic() < deadline, f"nothing arrived: {what}"
        time.sleep(0.02)
    return found


def test_the_allowed_site_has_the_right_certificate_and_records_the_request(world):
    assert get(world, places.ALLOWED, "allowed.example", "/path?q=1", body=b"12345").startswith("hello from allowed")
    (item,) = wait_for(world, address=places.ALLOWED)
    assert (item.port, item.sni, item.tls, item.source) == (443, "allowed.example", True, places.UPLINK)
    (asked,) = item.requests
    assert (asked.method, asked.target, asked.body_bytes) == ("POST", "/path?q=1", 5)
    assert item.raw[:1] == b"\x16"
    assert item.bytes_in > 500
    assert item.bytes_out > 500


def test_a_large_answer_arrives_whole_and_is_counted(world):
    assert len(get(world, places.ALLOWED, "allowed.example", "/bytes/5000000")) == 5_000_000
    assert wait_for(world, address=places.ALLOWED)[0].bytes_out > 5_000_000


def test_the_attacker_takes_any_name_and_cant_prove_those_that_arent_his(world):
    with pytest.raises(ssl.SSLCertVerificationError):
        get(world, places.ATTACKER, "allowed.example")
    assert "attacker" in get(world, places.ATTACKER, "allowed.example", trusted=False)
    assert "attacker" in get(world, places.ATTACKER, "evil.example")
    names = [item.sni for item in wait_for(world, address=places.ATTACKER)]
    assert names == ["allowed.example", "allowed.example", "evil.example"]


@pytest.mark.parametrize(("address", "port"), [("8.8.8.8", 80), (places.ATTACKER, 8443), ("100.64.1.1", 1)])
def test_every_address_and_port_answers_and_records_each_byte(world, address, port):
    with connect(world, address, port) as made:
        made.sendall(b"\x00exfiltrated")
        assert made.recv(100) == b"\x00exfiltrated"
    (item,) = wait_for(world, address=address, port=port)
    assert (item.proto, item.raw, item.sni) == ("tcp", b"\x00exfiltrated", None)


def test_a_connection_that_sends_nothing_is_on_record_too(world):
    connect(world, places.ATTACKER, 9000).close()
    assert wait_for(world, address=places.ATTACKER, port=9000)[0].bytes_in == 0


def test_plain_http_and_ssh(world):
    with connect(world, places.ATTACKER, 80) as made:
        made.sendall(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert made.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert wait_for(world, port=80)[0].requests[0].target == "/x"
    with connect(world, places.ATTACKER, 22) as made:
        assert made.recv(100).startswith(b"SSH-2.0-")


def test_udp_is_echoed_and_recorded_from_the_wire(world):
    with netns.inside(world.uplink_netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(60)
        made.sendto(b"quic", (places.ATTACKER, 443))
        data, source = made.recvfrom(100)
    assert (data, source) == (b"quic", (places.ATTACKER, 443))
    (item,) = wait_for(world, proto="udp")
    assert (item.address, item.port, item.raw) == (places.ATTACKER, 443, b"quic")


@pytest.mark.parametrize("server", [places.RESOLVER, places.ATTACKER, "1.1.1.1"])
@pytest.mark.parametrize("tcp", [False, True])
def test_dns_is_answered_and_logged_wherever_it_is_asked(world, server, tcp):
    query = dns.message.make_query("data.evil.example", "A").to_wire()
    with netns.inside(world.uplink_netns):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with made:
        made.settimeout(60)
        made.connect((server, 53))
        made.sendall(len(query).to_bytes(2, "big") + query if tcp else query)
        answer = dns.message.from_wire(made.recv(1000)[2 if tcp else 0 :])
    assert str(answer.answer[0][0]) == places.ATTACKER
    (item,) = wait_for(world, proto="dns")
    assert (item.address, item.name, item.kind) == (server, "data.evil.example", "A")


def test_names_can_change(world):
    world.names.set("rebind.example", ["169.254.169.254"])
    assert world.names.find("rebind.example") == ["169.254.169.254"]


def test_a_foreign_source_address_is_counted(world):
    assert world.strangers() == {}
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 24, 0, 0, 64, 253, 0, *map(socket.inet_aton, ("10.201.0.1", "9.9.9.9"))
    )
    with netns.inside(world.uplink_netns):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        raw.sendto(head + b"leak", ("9.9.9.9", 0))
    assert wait_for(world, proto="ip-253")[0].source == "10.201.0.1"
    assert world.packets_from("10.201.0.1") == 1
    assert world.strangers() == {"10.201.0.1": 1}
    world.clear()
    assert world.packets_from("10.201.0.1") == 0


def test_a_port_can_be_left_to_somebody_else(world):
    world.keep(places.ALLOWED, 7777)
    with netns.inside(world.netns):
        listener = socket.create_server((places.ALLOWED, 7777))
    with listener, connect(world, places.ALLOWED, 7777) as made:
        accepted, _source = listener.accept()
        with accepted:
            made.sendall(b"x")
            assert accepted.recv(1) == b"x"
    assert world.received(port=7777) == []


def names_in_root() -> dict[str, str]:
    """What a world might have changed in the machine's own namespace."""
    queries = (["ip", "-j", "link"], ["ip", "-j", "route", "show", "table", "all"], ["ip", "-j", "rule"])
    return {" ".join(query): "".join(sorted(run(query))) for query in queries}


def test_it_leaves_nothing_behind_however_it_ends():
    prefix = new_prefix()
    before = names_in_root()
    made = World(prefix)
    folder = made.ca_file.parent

    def fail_inside() -> None:
        with made:
            assert netns.exists(f"{prefix}-up")
            assert names_in_root() == before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not netns.exists(f"{prefix}-up")
    assert not netns.exists(f"{prefix}-out")
    assert not folder.exists()
    made.stop()
    assert names_in_root() == before


def test_namespaces_of_somebody_else_are_not_taken_over(world):
    prefix = world.netns.removesuffix("-out")
    with pytest.raises(OperationalError) as caught:
        World(prefix).start()
    assert caught.value.code == "world-exists"
    assert netns.exists(world.netns)


@pytest.fixture
def process(tmp_path):
    """The simulator as a process of its own, with a world; gives it, its facts and its prefix."""
    prefix = new_prefix()
    (tmp_path / "c.json").write_text(json.dumps({"folder": str(tmp_path / "sim"), "world": {"prefix": prefix}}))
    command = [sys.executable, "-m", "orchestrator.simulator", "--config", str(tmp_path / "c.json")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            assert line, "it ended early"
            text += line
        yield started, json.loads(text), prefix
    finally:
        started.kill()
        started.communicate()
        World.remove(prefix)


def test_as_a_process_it_answers_and_ends_clean(process):
    started, facts, prefix = process
    assert facts == json.loads(Path(facts["private_key_file"]).with_name("ready.json").read_text())
    assert Path(facts["private_key_file"]).stat().st_mode & 0o777 == 0o600
    assert Path(facts["webhook_secret_file"]).stat().st_mode & 0o777 == 0o600
    with httpx.Client(base_url=facts["api_url"], trust_env=False) as client:
        assert client.get("/_sim/state").json()["installation_id"] == facts["installation_id"]
        with netns.inside(facts["uplink_netns"]):
            made = socket.create_connection((places.ATTACKER, 4444))
        with made:
            made.sendall(b"\x01")
            made.recv(1)
        found = client.get("/_sim/world/received", params={"port": 4444}).json()
        assert [(it["address"], it["bytes_in"]) for it in found] == [(places.ATTACKER, 1)]
        assert client.put("/_sim/world/names/new.example", json=["192.0.2.1"]).status_code == 200
        assert client.get("/_sim/world/sources").json()["strangers"] == {}
        assert client.post("/_sim/world/clear").status_code == 200
        assert client.get("/_sim/world/received").json() == []
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 0
    assert not netns.exists(f"{prefix}-up")


def test_what_a_killed_process_left_can_be_removed(process):
    started, _facts, prefix = process
    started.kill()
    started.wait(60)
    assert netns.exists(f"{prefix}-out")
    run([sys.executable, "-m", "orchestrator.simulator", "--remove", prefix])
    assert not netns.exists(f"{prefix}-up")
    assert not netns.exists(f"{prefix}-out")


def test_a_runner_finds_github_by_its_names_and_does_its_job(world, tmp_path):
    """No path that stands for a host here: DNS, port 443 and the certificates are GitHub's."""
    with Simulator(shared_keys=1) as simulator:
        world.serve_github(simulator)
        job = simulator.create_run("app", {"jobs": {"b": {"runs-on": "x", "steps": [{"run": "echo done"}]}}})["jobs"][0]
        encoded = simulator.call(lambda: registered(simulator))
        write_runner(tmp_path / "runner")
        (tmp_path / "resolv.conf").write_text(f"nameserver {places.RESOLVER}\n")
        shell = (
            f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec {tmp_path}/runner/bin/Runner.Listener run"
        )
        output = run(
            ["ip", "netns", "exec", world.uplink_netns, "unshare", "-m", "sh", "-c", shell],
            env={"ACTIONS_RUNNER_INPUT_JITCONFIG": encoded, "SSL_CERT_FILE": str(world.ca_file)},
        )
        assert "completed with result: Succeeded" in output
        assert " done\n" in simulator.job_log(job["id"])
    asked = {item.name for item in world.received(proto="dns")}
    assert "broker.actions.githubusercontent.com" in asked
    assert "productionresultssa0.blob.core.windows.net" in asked
    assert {item.proto for item in world.received()} == {"dns"}


def registered(simulator: Simulator) -> str:
    from orchestrator.simulator.github.jit import encode

    github = simulator.github
    key = github.rest.spare_key()
    runner = github.engine.add_runner(
        name="r",
        owner=github.owner,
        repository=None,
        group_id=1,
        labels=["x"],
        work_folder="_work",
        key=key.public_key(),
    )
    return encode(runner, key, github.url_of)


def test_the_control_api_isnt_served_in_the_world(world):
    with Simulator() as simulator:
        world.keep(places.GITHUB, 443)
        try:
            world.serve_github(simulator)
            assert get(world, places.GITHUB, "api.github.com", "/_sim/state") == "Not Found"
            assert "resources" in get(world, places.GITHUB, "api.github.com", "/rate_limit")
        finally:
            simulator.stop()
