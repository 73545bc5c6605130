"""The lab: attackers, the product's wall and gateway, an uplink, and the outside, each in a namespace of its own.

```
 a ─┐
    ├─ taps ─ [vms: the product's nftables, the gateway's listeners]   (gateway) ─ [up] ── veth ── [out: world]
 b ─┘                       no route leads out of vms
```
Three oracles: what the attacker's servers got (`World.attacker`), what crossed the uplink (`Lab.counters`: kernel counters
on the far side), and the ledger (`Lab.wait_event`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from ulid import ULID

from orchestrator.core.flow import Event, Identity
from orchestrator.core.link import GatewayReply, GatewayRequest, Limits, Link
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule, compile_policy
from orchestrator.core.settings import HostSettings
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.nft import LibNft
from orchestrator.host.ruleset import GUEST_MAC, Listeners, VmRules
from orchestrator.host.slots import slot_at
from orchestrator.host.wall import Wall
from orchestrator.system import netns
from orchestrator.system.process import run
from orchestrator.system.segments import LedgerReader
from tests.security.lab.machine import Machine
from tests.security.lab.world import ATTACKER, World

LINKS = "10.201.0.0/16"
UPLINK = "203.0.113.1"
_ORACLE = """
table netdev lab {{
  counter vm {{ }}
  counter attacker {{ }}
  counter odd {{ }}
  chain in {{
    type filter hook ingress device "up0" priority 0; policy accept;
    ip saddr {links} counter name vm
    ip daddr {attacker} counter name attacker
    ether type != {{ ip, arp }} counter name odd
  }}
}}
"""


def policy(*hosts: str, mode: str = "enforce", cidr: str = "", ports: tuple[int, ...] = (443,), **fields) -> Policy:
    """A policy that allows ``hosts`` and, where given, the range ``cidr``."""
    rules = tuple(Rule(id=f"test#{n}", host=host) for n, host in enumerate(hosts, 1))
    if cidr:
        rules += (Rule(id="test#range", cidr=cidr, ports=ports),)
    return Policy(mode=mode, rules=rules, **fields)


class Lab:
    def __init__(self) -> None:
        self.tag = f"icdt-{secrets.token_hex(3)}"
        self.folder = Path(tempfile.mkdtemp(prefix="icdt-lab-"))
        self.settings = HostSettings(
            name="lab-host",
            state_dir=str(self.folder / "state"),
            run_dir=str(self.folder / "run"),
            netns=f"{self.tag}-vms",
            uplink_netns=f"{self.tag}-up",
            links_range=LINKS,
            upstream_dns=("203.0.113.53",),
            hello_timeout_s=2.0,
        )
        self.out = f"{self.tag}-out"
        self.machines: list[Machine] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self._undo = contextlib.ExitStack()
        self._reader = LedgerReader(self.ledger)

    @property
    def ledger(self) -> Path:
        return self.folder / "state" / "ledger"

    def start(self) -> None:
        self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
        (self.folder / "run" / "links").mkdir(parents=True)
        for name in (self.settings.uplink_netns, self.out):
            self._undo.callback(netns.delete, name)
            netns.create(name)
        self._undo.callback(netns.delete, self.settings.netns)
        self.thread = make_namespace(self.settings.netns)
        self._undo.callback(self.thread.close)
        self._outside()
        self.world = World(self.out)
        self.world.start()
        self._undo.callback(self.world.stop)
        self.links = Links(self.thread)
        ports = Listeners(
            self.settings.tls_port,
            self.settings.tcp_port,
            self.settings.dns_port,
            self.settings.nflog_group,
            self.settings.echo_group,
        )
        self.wall = Wall(self.thread, self.thread.call(LibNft), ports)
        self.wall.ensure_base([])
        self.start_gateway()
        self._undo.callback(self.stop_gateway)

    def stop(self) -> None:
        self._undo.close()

    def _outside(self) -> None:
        up, out = self.settings.uplink_netns, self.out
        run(["ip", "link", "add", "up0", "netns", out, "type", "veth", "peer", "name", "up0", "netns", up])
        for name in (up, out):
            run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
            run(["ip", "-n", name, "link", "set", "up0", "up"])
        run(["ip", "-n", up, "address", "add", f"{UPLINK}/24", "dev", "up0"])
        run(["ip", "-n", up, "route", "add", "198.51.100.0/24", "dev", "up0"])
        for last in (10, 20, 30, 40, 50, 51, 53):
            run(["ip", "-n", out, "address", "add", f"203.0.113.{last}/24", "dev", "up0"])
        run(["ip", "-n", out, "address", "add", f"{ATTACKER}/24", "dev", "up0"])
        run(["ip", "netns", "exec", out, "nft", "-f", "-"], stdin=_ORACLE.format(links=LINKS, attacker=ATTACKER))

    # -- machines ------------------------------------------------------------------------------------------------

    def machine(self, label: str, rules: Policy, *, limits: Limits | None = None) -> Machine:
        """A VM with its link up, its wall installed and its link registered with the gateway, in the agent's order."""
        runner = str(ULID())
        slot = slot_at(LINKS, len(self.machines) + 1)
        machine = Machine(label, f"{self.tag}-{label}", names_of(runner).tap, runner, slot)
        self.machines.append(machine)
        self._undo.callback(netns.delete, machine.namespace)
        self._undo.callback(machine.close)
        netns.create(machine.namespace)
        run(["ip", "link", "add", machine.tap, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace])
        self.links.move(machine.tap)
        self.install(machine, rules, limits=limits)
        self.apply(machine, rules, limits=limits)
        self.links.up(machine.tap, slot)
        inside = ["ip", "-n", machine.namespace]
        run([*inside, "link", "set", "eth0", "address", GUEST_MAC, "up"])
        run([*inside, "address", "add", f"{slot.guest_ip}/31", "dev", "eth0"])
        run([*inside, "route", "add", "default", "via", slot.gateway_ip])
        return machine

    def install(self, machine: Machine, rules: Policy, *, limits: Limits | None = None) -> None:
        ranges = tuple(compile_policy(rules).cidr_ports())
        slot = machine.slot
        self.wall.install(
            VmRules(machine.tap, slot.guest_ip, slot.gateway_ip, limits or Limits(), ranges, rules.profile == "sandbox")
        )

    def apply(
        self, machine: Machine, rules: Policy, *, limits: Limits | None = None, runner: str = "", generation: int = 1
    ) -> GatewayReply:
        """Write the link's file and have the gateway put it in force."""
        link = Link(
            tap=machine.tap,
            guest_ip=machine.slot.guest_ip,
            gateway_ip=machine.slot.gateway_ip,
            identity=Identity(runner=runner or machine.runner, org="lab", repo="lab/site", job=machine.label),
            policy=rules,
            generation=generation,
            bound=True,
            limits=limits or Limits(),
        )
        (self.folder / "run" / "links" / f"{machine.tap}.json").write_bytes(msgspec.json.encode(link))
        reply = self.ask("apply", machine.tap)
        assert reply.ok, reply.error
        assert reply.policy == rules.digest
        return reply

    # -- gateway -------------------------------------------------------------------------------------------------

    def start_gateway(self) -> None:
        file = self.folder / "settings.json"
        file.write_bytes(msgspec.json.encode(self.settings))
        self.log = (self.folder / "gateway.log").open("ab")
        self._gateway = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.egress", "--settings", str(file)], stderr=self.log
        )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                if self.ask("ping").ok:
                    return
            assert self._gateway.poll() is None, self.gateway_log()
            assert time.monotonic() < deadline, self.gateway_log()
            time.sleep(0.05)

    def stop_gateway(self) -> int:
        """Ask it to end; its exit status."""
        if self._gateway is None:
            return 0
        self._gateway.send_signal(signal.SIGTERM)
        return self._gone()

    def kill_gateway(self) -> None:
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGKILL)
        self._gone()

    def _gone(self) -> int:
        assert self._gateway is not None
        status = self._gateway.wait(120)
        self._gateway = None
        self.log.close()
        return status

    @property
    def gateway_pid(self) -> int:
        assert self._gateway is not None
        return self._gateway.pid

    def gateway_log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def ask(self, op: str, tap: str = "") -> GatewayReply:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.folder / "run" / "gateway.sock"))
            sock.sendall(msgspec.json.encode(GatewayRequest(op=op, tap=tap)) + b"\n")
            with sock.makefile("rb") as file:
                return msgspec.json.decode(file.readline(), type=GatewayReply)

    # -- oracles -------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Packets that reached the outside: with a VM's own address, to the attacker, and of odd kinds."""
        listing = json.loads(run(["ip", "netns", "exec", self.out, "nft", "-j", "list", "counters"]))
        found = (item["counter"] for item in listing["nftables"] if "counter" in item)
        return {counter["name"]: counter["packets"] for counter in found}

    @contextlib.contextmanager
    def nothing_leaves(self) -> Iterator[None]:
        """The attacker's servers and the uplink must have seen nothing of what the block does."""
        before, got = self.counters(), len(self.world.attacker)
        yield
        time.sleep(0.03)
        assert self.world.attacker[got:] == []
        assert self.counters() == before

    def seq(self, *, flows: int = 0) -> int:
        """Number of the last event, once all is recorded that an earlier test did; ``flows`` are open on purpose."""
        deadline = time.monotonic() + 30
        while True:
            reply = self.ask("stats")
            if reply.flows <= flows or time.monotonic() > deadline:
                return self.ask("stats").seq
            time.sleep(0.02)

    def events(self, after: int = 0) -> list[Event]:
        lines = LedgerReader(self.ledger).read(after + 1, 1_000_000)
        return [msgspec.json.decode(line, type=Event) for line in lines]

    def wait_event(self, after: int, wanted: Callable[[Event], bool], timeout_s: float = 60.0) -> Event:
        """The first event past number ``after`` that is ``wanted``."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.events(after)
            for event in seen:
                if wanted(event):
                    return event
            assert time.monotonic() < deadline, "no such event among:\n" + "\n".join(map(str, seen[-20:]))
            time.sleep(0.03)

    def blocked(self, after: int, machine: Machine, reason: str, **fields: object) -> Event:
        """The event that says that ``machine``'s attempt was blocked for ``reason``."""

        def wanted(event: Event) -> bool:
            return (
                event.who.runner == machine.runner
                and event.verdict == "blocked"
                and event.reason == reason
                and all(getattr(event, key) == value for key, value in fields.items())
            )

        return self.wait_event(after, wanted)


class Listener:
    """A server in namespace ``name`` that must not be reached: it keeps what it gets."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self.got: list[bytes] = []
        with netns.inside(name):
            self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((address, port))
        self._sock.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            with client:
                client.settimeout(1)
                self.got.append(b"(connected)")
                with contextlib.suppress(OSError):
                    self.got.append(client.recv(1000))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(2)


def root() -> bool:
    return os.geteuid() == 0
