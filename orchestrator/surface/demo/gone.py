"""The demo's own look for what a runner had, beside the agent's proof: by the system's tools, not by IronCD's code."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.core.names import Names, names_of
from orchestrator.core.settings import HostSettings
from orchestrator.surface.demo.judge import Check
from orchestrator.system.process import CommandFailed, run


def look(ulid: str, host: HostSettings) -> list[Check]:
    """What is left of a runner, as virsh, ip, nft and the file system show it."""
    names = names_of(ulid)
    domains = run(["virsh", "--connect", host.libvirt_uri, "list", "--all", "--name"]).split()
    return [
        _absent("virsh knows no such domain", names.domain in domains, names.domain),
        _absent("no such interface, here or in the VMs' namespace", names.tap in _interfaces(host), names.tap),
        _absent("no rule, chain or element in nftables names it", names.tap in _ruleset(host), names.tap),
        _no_file(names, host),
    ]


def _absent(name: str, found: object, what: str) -> Check:
    return Check(name, not found, "nothing" if not found else f"{what} is there")


def _interfaces(host: HostSettings) -> set[str]:
    found = set()
    for argv in (["ip", "-json", "link"], ["ip", "-n", host.netns, "-json", "link"]):
        found |= {link["ifname"] for link in json.loads(run(argv) or "[]")}
    return found


def _ruleset(host: HostSettings) -> str:
    try:
        return run(["ip", "netns", "exec", host.netns, "nft", "list", "ruleset"])
    except CommandFailed as error:
        return error.message


def _no_file(names: Names, host: HostSettings) -> Check:
    """Records of the past may name it (ledger, log); no disk, seed, socket or link may."""
    kept = {"ledger", "runners", "consoles"}
    left = [
        str(path)
        for root in (Path(host.state_dir), Path(host.run_dir))
        for path in root.rglob("*")
        if (names.domain in path.name or names.tap in path.name) and not kept & set(path.relative_to(root).parts)
    ]
    return Check("no disk, seed, socket or link file of it", not left, "nothing" if not left else "; ".join(left[:3]))
