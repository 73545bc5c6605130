"""What the demo's job does: a little work, then one way out of the machine after the other.

`PROBES` is the one list of attempts: the workflow's steps are made from it, and the score is kept by it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import msgspec

ALLOWED = "allowed.example"
REFUSED = "evil.example"
POLICY_PATH = ".ironcd/policy.yml"
POLICY = f"""\
# What jobs of this repository may reach, beside GitHub itself.
mode: enforce
allow:
  - host: {ALLOWED}
"""


Step = dict[str, Any]
"""Of a workflow, as GitHub has it."""


class Places(msgspec.Struct, frozen=True):
    """Addresses of the simulated outside."""

    allowed: str
    attacker: str
    resolver: str


class Probe(msgspec.Struct, frozen=True):
    """One attempt.  ``target`` is a host name, an address, or ``gateway`` for the VM's own next hop."""

    name: str
    title: str
    kind: Literal["tls", "tcp", "udp", "dns", "hello"]
    target: str
    port: int
    server_name: str = ""
    want: Literal["reaches", "blocked", "diverted"] = "blocked"
    """``diverted``: may connect, but to the real owner of the name and not to the address that was dialled."""
    reason: str = ""
    """Of a ``hello`` (whose shape is in ``server_name``): why the record must say that it was blocked."""


def probes_of(places: Places) -> tuple[Probe, ...]:
    return (
        Probe("allowed", f"HTTPS to {ALLOWED}, which the policy allows", "tls", ALLOWED, 443, ALLOWED, "reaches"),
        Probe("not-allowed", f"HTTPS to {REFUSED}, which it doesn't", "tls", REFUSED, 443, REFUSED),
        Probe(
            "not-allowed-address", f"the same, by its address {places.attacker}", "tls", places.attacker, 443, REFUSED
        ),
        Probe(
            "borrowed-sni", "an allowed SNI to the attacker's address", "tls", places.attacker, 443, ALLOWED, "diverted"
        ),
        Probe("http", f"plain HTTP to {ALLOWED}'s address", "tcp", places.allowed, 80),
        Probe("http-attacker", "plain HTTP to the attacker", "tcp", places.attacker, 80),
        Probe("ssh", "SSH to the attacker", "tcp", places.attacker, 22),
        Probe("shell", "a reverse shell on port 4444", "tcp", places.attacker, 4444),
        Probe("quic", "QUIC to the attacker", "udp", places.attacker, 443),
        Probe("udp", "UDP to the attacker", "udp", places.attacker, 9999),
        Probe("dns-outside", "DNS to an outside resolver", "dns", places.resolver, 53, f"outside.{REFUSED}"),
        Probe("dns-attacker", "DNS to the attacker", "dns", places.attacker, 53, f"secret-in-a-name.{REFUSED}"),
        *(
            Probe(f"hello-{shape}", title, "hello", places.attacker, 443, shape, reason=reason)
            for shape, (title, reason) in HELLOS.items()
        ),
        Probe("dns-tls", "DNS over TLS to the attacker", "tcp", places.attacker, 853),
        Probe("metadata", "the cloud's metadata service", "tcp", "169.254.169.254", 80),
        *(
            Probe(f"host-{port}", f"the host's own {what}", "tcp", "gateway", port)
            for port, what in HOST_SERVICES.items()
        ),
    )


HELLOS = {
    "split": ("a hello whose name is cut in two by a TLS record", "not_allowed"),
    "two-names": ("a hello with two names, the first one allowed", "several_names"),
    "twice": ("a hello with two name extensions, the first one allowed", "duplicate_extension"),
    "ech": ("a hello with an allowed name outside and another, encrypted, inside", "ech"),
    "no-name": ("a hello without a name", "missing_sni"),
    "ssh": ("SSH on port 443", "not_tls"),
}
"""First bytes of `probe.py`'s making, by shape: what they are, and why they are blocked."""

HOST_SERVICES = {22: "SSH", 6379: "Redis", 8470: "control API", 10443: "gateway, dialled directly", 16509: "libvirt"}
"""Ports of the VM's next hop that are tried."""


def workflow_of(places: Places, *, jobs: int, more: Sequence[Step] = ()) -> dict[str, Any]:
    """The workflow as GitHub has it: ``jobs`` equal jobs that need not wait for each other, ``more`` steps at the end of each."""
    names = ["build"] if jobs == 1 else [f"build-{number}" for number in range(1, jobs + 1)]
    return {
        "name": "CI",
        "jobs": {name: {"runs-on": ["ironcd"], "steps": [*steps_of(places), *more]} for name in names},
    }


def steps_of(places: Places) -> list[Step]:
    probe = resources.files("orchestrator.surface.demo").joinpath("probe.py").read_text(encoding="utf-8")
    steps: list[Step] = [
        {"name": "Where am I", "run": "id; uname -srm; . /etc/os-release; echo $PRETTY_NAME; date -u +%FT%TZ"},
        {"name": "Fetch from an allowed host", "run": f"curl --fail --silent --show-error https://{ALLOWED}/"},
        {"name": "Write the probe", "run": f"cat > probe.py <<'END_OF_PROBE'\n{probe}\nEND_OF_PROBE\n"},
    ]
    steps += [{"name": f"Try {probe.title}", "run": _command(probe)} for probe in probes_of(places)]
    steps.append({"name": "Fail on purpose, and go on", "run": "exit 3", "continue-on-error": True})
    return steps


def _command(probe: Probe) -> str:
    head = ""
    target = shlex.quote(probe.target)
    if probe.target == "gateway":
        head, target = "gateway=$(ip route show default | cut -d' ' -f3)\n", '"$gateway"'
    return f"{head}python3 probe.py {probe.name} {probe.kind} {target} {probe.port} {shlex.quote(probe.server_name)}\n"
