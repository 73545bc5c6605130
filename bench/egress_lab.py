"""Gateways side by side: ours, HAProxy and nginx behind the same wall, and plain kernel forwarding beside it.

```
 vm ─ tap ─ [vms: the product's nftables] ─ (ours :10443 | HAProxy :11443 | nginx :11444) ─ [up] ─ [out: servers]
  └─ veth ─ [forwards packets] ─────────────────────────────────────────────────────────────────────┘
```
Each gateway takes its connections out of the same namespace, through the same chains and the same redirect; ports 443,
8443 and 8444 say which one is meant.  HAProxy and nginx have one thread, log nothing, resolve nothing, and know their two
servers by name; ours decides, resolves, and keeps the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.machine import on_core, scratch
from bench.peers import end, running
from orchestrator.core.link import Limits
from orchestrator.core.policy import Policy, Rule
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.security.lab import world
from tests.security.lab.lab import Lab
from tests.security.lab.machine import Machine

SCRIPT = str(Path(__file__).resolve().with_name("egress_load.py"))
ANSWERS, BULK = ("answers.example", "203.0.113.60"), ("bulk.example", "203.0.113.61")
UNBOUNDED = Limits(1_000_000, 1_000_000, 1_000_000, 1_000_000)

_HAPROXY = """
global
  nbthread 1
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend tls
  bind 0.0.0.0:11443 namespace {vms} backlog 4096
  option splice-auto
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend answers if {{ req.ssl_sni -i {answers[0]} }}
  use_backend bulk if {{ req.ssl_sni -i {bulk[0]} }}
backend answers
  option splice-auto
  server one {answers[1]}:443
backend bulk
  option splice-auto
  server one {bulk[1]}:443
"""
_NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 8000; multi_accept on; }}
stream {{
  map $ssl_preread_server_name $site {{ {answers[0]} {answers[1]}:443; {bulk[0]} {bulk[1]}:443; }}
  server {{ listen 0.0.0.0:11444 backlog=4096; ssl_preread on; proxy_pass $site; }}
}}
"""


class Side:
    """One way from the client to the servers: who listens, at which port it is reached, and as which process."""

    def __init__(self, name: str, namespace: str, port: int, pid: int) -> None:
        self.name = name
        self._namespace = namespace
        self._port = port
        self._pid = pid

    def connections(self, core: int, count: int, at_once: int) -> dict[str, Any]:
        """Times ``count`` connections; ``cpu`` is what the gateway's process took, in seconds."""
        return self._load(core, "connections", ANSWERS, str(count), str(at_once))

    def bulk(self, core: int, seconds: float, flows: int) -> dict[str, Any]:
        return self._load(core, "receive", BULK, str(seconds), str(flows))

    def _load(self, core: int, what: str, server: tuple[str, str], *rest: str) -> dict[str, Any]:
        argv = [sys.executable, SCRIPT, what, server[1], str(self._port), server[0], *rest]
        before = self._cpu()
        result: dict[str, Any] = json.loads(
            run(["ip", "netns", "exec", self._namespace, *on_core(core, argv)], timeout_s=120)
        )
        if result.get("failed"):
            raise RuntimeError(f"{self.name}: {result['failed']} connections failed")
        return {**result, "cpu": self._cpu() - before}

    def _cpu(self) -> float:
        if not self._pid:
            return 0.0
        # Nanoseconds on a processor, thread by thread; /proc/PID/stat counts in hundredths of a second.
        tasks = Path(f"/proc/{self._pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextlib.contextmanager
def sides(served: int, load: int) -> Iterator[dict[str, Side]]:
    """Everything up: ``ironcd``, ``haproxy``, ``nginx`` (all on core ``served``) and ``kernel``."""
    for name, address in (ANSWERS, BULK):
        world.ZONE[name] = [address]
    lab = Lab()
    with scratch("egress") as folder, contextlib.ExitStack() as stack:
        stack.callback(lab.stop)
        lab.start()
        vm = lab.machine("bench", _policy(), limits=UNBOUNDED)
        _pin(lab.gateway_pid, served)
        _serve(lab, stack, load)
        _redirect(lab, vm)
        haproxy = _haproxy(lab, stack, folder, served)
        nginx = _nginx(lab, stack, folder, served)
        _forwarding(lab, stack)
        yield {
            "ironcd": Side("ironcd", vm.namespace, 443, lab.gateway_pid),
            "haproxy": Side("haproxy", vm.namespace, 8443, haproxy),
            "nginx": Side("nginx", vm.namespace, 8444, nginx),
            "kernel": Side("kernel", f"{lab.tag}-plain", 443, 0),
        }


def _policy() -> Policy:
    return Policy("enforce", tuple(Rule(f"bench#{n}", host=host) for n, (host, _) in enumerate((ANSWERS, BULK), 1)))


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def _serve(lab: Lab, stack: contextlib.ExitStack, core: int) -> None:
    for what, (_, address) in (("answer", ANSWERS), ("bulk", BULK)):
        run(["ip", "-n", lab.out, "address", "add", f"{address}/24", "dev", "up0"])
        argv = ["ip", "netns", "exec", lab.out, *on_core(core, [sys.executable, SCRIPT, what, address, "443"])]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        stack.callback(_kill, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _redirect(lab: Lab, vm: Machine) -> None:
    """The peers' redirects, and their way through the VM's chain, beside ours and of the same form."""
    rules = f"""
        insert rule inet ironcd pre iifname "{vm.tap}" tcp dport 8443 redirect to :11443
        insert rule inet ironcd pre iifname "{vm.tap}" tcp dport 8444 redirect to :11444
        insert rule inet ironcd vm_{vm.tap} ct status dnat tcp dport {{ 11443, 11444 }} accept
        insert rule inet ironcd input ct status dnat tcp dport {{ 11443, 11444 }} accept
    """
    run(["ip", "netns", "exec", lab.settings.netns, "nft", "-f", "-"], stdin=rules)


def _haproxy(lab: Lab, stack: contextlib.ExitStack, folder: Path, core: int) -> int:
    config = folder / "haproxy.cfg"
    config.write_text(_HAPROXY.format(vms=lab.settings.netns, answers=ANSWERS, bulk=BULK))
    argv = ["ip", "netns", "exec", lab.settings.uplink_netns, *on_core(core, ["haproxy", "-db", "-f", str(config)])]
    ready = _listens(lab, 11443)
    return stack.enter_context(running(argv, folder / "haproxy.log", ready=ready)).pid


def _nginx(lab: Lab, stack: contextlib.ExitStack, folder: Path, core: int) -> int:
    """Nginx can't enter a namespace for its listener alone: it inherits one, as over its own upgrades."""
    with netns.inside(lab.settings.netns):
        listener = stack.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 11444))
    listener.listen(4096)
    listener.setblocking(False)  # nginx takes it as it is
    os.set_inheritable(listener.fileno(), True)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, answers=ANSWERS, bulk=BULK))
    argv = on_core(core, ["nginx", "-p", str(folder), "-c", str(config)])
    process = subprocess.Popen(
        ["ip", "netns", "exec", lab.settings.uplink_netns, *argv],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NGINX": f"{listener.fileno()};"},
        pass_fds=(listener.fileno(),),
        stderr=subprocess.DEVNULL,  # it has a log of its own
    )
    stack.callback(end, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 10
    while not children.read_text():
        if time.monotonic() > until:
            raise RuntimeError(f"nginx has no worker: {(folder / 'nginx-error.log').read_text()}")
        time.sleep(0.05)
    return int(children.read_text().split()[0])


def _listens(lab: Lab, port: int) -> Any:
    shown = ["ip", "netns", "exec", lab.settings.netns, "ss", "-Hltn", f"sport = :{port}"]
    return lambda: bool(run(shown).strip())


def _forwarding(lab: Lab, stack: contextlib.ExitStack) -> None:
    """A client whose packets a namespace between forwards, with no rule and no state."""
    client, between = f"{lab.tag}-plain", f"{lab.tag}-fwd"
    for name in (client, between):
        stack.callback(netns.delete, name)
        netns.create(name)
    run(["ip", "link", "add", "eth0", "netns", client, "type", "veth", "peer", "name", "tap0", "netns", between])
    run(["ip", "link", "add", "up1", "netns", between, "type", "veth", "peer", "name", "up1", "netns", lab.out])
    for name, device, address in (
        (client, "eth0", "10.202.0.1/31"),
        (between, "tap0", "10.202.0.0/31"),
        (between, "up1", "10.203.0.0/31"),
        (lab.out, "up1", "10.203.0.1/31"),
    ):
        run(["ip", "-n", name, "address", "add", address, "dev", device])
        run(["ip", "-n", name, "link", "set", device, "up"])
    run(["ip", "netns", "exec", between, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    run(["ip", "-n", client, "route", "add", "default", "via", "10.202.0.0"])
    run(["ip", "-n", between, "route", "add", "203.0.113.0/24", "via", "10.203.0.1"])
    run(["ip", "-n", lab.out, "route", "add", "10.202.0.0/31", "via", "10.203.0.0"])
