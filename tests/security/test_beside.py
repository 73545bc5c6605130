"""Rows 63 to 66: what lies beside the network path.  Whose policy counts, marks, side doors of the VM, and GitHub itself."""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from orchestrator.control.github_kit import KitGitHub
from orchestrator.control.policies import PATH, PolicyBook
from orchestrator.core.policy import Policy
from orchestrator.host.domain_xml import domain_xml
from orchestrator.simulator.github import GitHub as SimulatedGitHub
from policies import load_presets
from tests.security.lab.lab import Lab
from tests.security.lab.machine import Machine
from tests.security.lab.world import ATTACKER
from tests.unit.egress.hellos import hello
from tests.unit.host.test_domain_xml import SPEC

MERGED = b"mode: enforce\nallow:\n  - host: allowed.example\n"
PROPOSED = b"mode: warn\nallow:\n  - host: allowed.example\n  - host: evil.example\n"


async def test_row_63_a_pull_requests_policy_counts_once_it_is_merged() -> None:
    key = rsa.generate_private_key(65_537, 2048)
    simulated = SimulatedGitHub(org="acme", repositories=("app",), private_key=key)
    simulated.put_file("app", PATH, MERGED)
    simulated.put_file("app", PATH, PROPOSED, branch="attackers-branch")
    simulated.create_run(
        "app",
        {"name": "ci", "jobs": {"build": {"runs-on": ["self-hosted"], "steps": [{"run": "true"}]}}},
        event="pull_request",
        branch="attackers-branch",
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    github = KitGitHub(
        simulated.app_record.id, pem, api_url="http://github.test", transport=httpx.ASGITransport(simulated.app)
    )
    try:
        book = PolicyBook(github, load_presets(), fresh_s=0)
        policy = await book.policy_of(simulated.installation_id, "acme/app", None, 1.0)
        assert isinstance(policy, Policy)
        assert policy.mode == "enforce"
        hosts = {rule.host for rule in policy.rules}
        assert "allowed.example" in hosts
        assert "evil.example" not in hosts
        simulated.put_file("app", PATH, PROPOSED)
        merged = await book.policy_of(simulated.installation_id, "acme/app", None, 2.0)
        assert isinstance(merged, Policy)
        assert merged.mode == "warn"
    finally:
        await github.close()


@pytest.mark.parametrize("mark", [1, 0x4000, 0x7FFFFFFF])
def test_row_64_a_packets_mark_stays_in_the_vm(lab: Lab, attacker: Machine, mark: int) -> None:
    seq = lab.seq()
    with lab.nothing_leaves(), attacker.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.connect((ATTACKER, 443))
        sock.sendall(hello(b"evil.example"))
        with pytest.raises(ConnectionError):
            sock.recv(100)
    lab.blocked(seq, attacker, "not_allowed", host="evil.example")


def test_row_65_the_vm_has_no_other_door() -> None:
    devices = ET.fromstring(domain_xml(SPEC)).find("devices")
    assert devices is not None
    for kind in ("vsock", "filesystem", "hostdev", "redirdev", "shmem", "smartcard", "graphics", "tpm"):
        assert devices.findall(kind) == []
    assert [channel.find("target").get("name") for channel in devices.findall("channel")] == ["org.ironcd.0"]  # type: ignore[union-attr]
    assert {port.get("type") for kind in ("serial", "console", "parallel") for port in devices.findall(kind)} <= {
        "file",
        "pty",
    }
    assert [interface.get("type") for interface in devices.findall("interface")] == ["ethernet"]


def test_row_66_github_is_needed_and_what_needs_no_job_is_left_out() -> None:
    # Logs, artifacts, caches and the API go to GitHub by design.  The record counts what goes there (row 52's test).
    presets = load_presets()
    hosts = {entry.host: entry for entry in presets.by_name["github"].entries}
    assert "api.github.com" in hosts
    assert hosts["api.github.com"].multi_tenant
    assert not {"gist.github.com", "uploads.github.com", "*.github.com", "**.github.com"} & set(hosts)
    assert not {host for host in hosts if host.startswith("*") and host.endswith("blob.core.windows.net")}
