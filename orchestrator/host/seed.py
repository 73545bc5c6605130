"""The NoCloud seed: the one place on this host where a JIT configuration touches a disk.

It is written with mode 0600, handed to QEMU's user by libvirt, and ejected and deleted as soon as the guest says that it
has read it, before its runner starts.  Nothing else is secret in it.  JSON is YAML, so the documents are JSON after their
first line.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pycdlib

from orchestrator.core.names import Names
from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.host.slots import Slot

JIT_FILE = "/run/ironcd/jit"


def user_data(names: Names, jit: str, cas: tuple[str, ...]) -> str:
    """cloud-config: the JIT configuration in a file for root only, and the authorities that the guest trusts beyond Debian's."""
    config: dict[str, Any] = {
        "hostname": names.domain,
        "write_files": [{"path": JIT_FILE, "content": jit, "owner": "root:root", "permissions": "0600"}],
    }
    if cas:
        config["ca_certs"] = {"trusted": list(cas)}
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def meta_data(names: Names) -> str:
    return json.dumps({"instance-id": names.domain, "local-hostname": names.domain}) + "\n"


def network_config(slot: Slot) -> str:
    """Version 2.  The route is ``0.0.0.0/0``: cloud-init's renderers take ``default`` for a name here."""
    link = {
        "match": {"macaddress": GUEST_MAC},
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "link-local": [],
        "addresses": [f"{slot.guest_ip}/31"],
        "routes": [{"to": "0.0.0.0/0", "via": slot.gateway_ip}],
        "nameservers": {"addresses": [slot.gateway_ip]},
    }
    return json.dumps({"version": 2, "ethernets": {"link": link}}, indent=1) + "\n"


def make_seed(path: Path, names: Names, slot: Slot, *, jit: str, cas: tuple[str, ...]) -> None:
    """Write the ISO image ``path``, labelled ``cidata``."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    documents = {
        "user-data": user_data(names, jit, cas),
        "meta-data": meta_data(names),
        "network-config": network_config(slot),
    }
    for name, text in documents.items():
        data = text.encode()
        plain = name.upper().replace("-", "_")
        iso.add_fp(io.BytesIO(data), len(data), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        iso.write_fp(file)
    iso.close()
