"""The NoCloud seed: the one place on this host where a JIT configuration touches a disk.

It is written with mode 0600, handed to QEMU's user by libvirt, and ejected and deleted as soon as the guest says that it
has read it, before its runner starts.  Nothing else is secret in it.  JSON is YAML, so the documents are JSON after their
first line.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pycdlib

from orchestrator.core.errors import HostError
from orchestrator.core.names import Names
from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.host.slots import Slot
from orchestrator.system.process import CommandFailed, run

JIT_FILE = "/run/ironcd/jit"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Authority(msgspec.Struct, frozen=True):
    """A certificate that the guest trusts beyond Debian's; ``subject`` is OpenSSL's hash of its subject."""

    subject: str
    pem: str


def user_data(names: Names, jit: str, cas: Sequence[Authority]) -> str:
    """cloud-config: the JIT configuration in a file for root only, and the authorities."""
    files: list[dict[str, Any]] = [{"path": JIT_FILE, "content": jit, "owner": "root:root", "permissions": "0600"}]
    for number, authority in enumerate(cas):
        files += _trusted(number, authority, sum(other.subject == authority.subject for other in cas[:number]))
    config: dict[str, Any] = {"hostname": names.domain, "write_files": files}
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def _trusted(number: int, authority: Authority, alike: int) -> list[dict[str, Any]]:
    """What ``update-ca-certificates`` would come to, which takes a minute in an emulated guest: cloud-init's ca_certs runs it.

    OpenSSL finds an authority by the hash of its subject or in the bundle.  A later run of that program, started by a
    package, finds the file that it reads itself and comes to the same.
    """
    return [
        {"path": f"/usr/local/share/ca-certificates/ironcd-{number}.crt", "content": authority.pem},
        {"path": f"/etc/ssl/certs/{authority.subject}.{alike}", "content": authority.pem},
        {"path": _BUNDLE, "content": authority.pem, "append": True},
    ]


def authorities(pems: Iterable[str]) -> list[Authority]:
    """Every certificate in ``pems``.  Raises HostError (code ``ca-invalid``) for text that holds none."""
    found = []
    for pem in pems:
        certificates = _CERTIFICATE.findall(pem)
        try:
            subjects = [_subject_of(one) for one in certificates]
        except CommandFailed as error:
            raise _no_authority(error.output) from error
        if not certificates:
            raise _no_authority("no certificate in it")
        found += [Authority(subject, one + "\n") for subject, one in zip(subjects, certificates, strict=True)]
    return found


@functools.lru_cache(maxsize=256)
def _subject_of(certificate: str) -> str:
    """Kept: every start asks for the same few, and a program's start costs a job some 20 ms."""
    return run(["openssl", "x509", "-noout", "-subject_hash"], stdin=certificate).strip()


def _no_authority(why: str) -> HostError:
    return HostError(
        f"an authority for guests can't be read: {why.strip()[:200]}",
        code="ca-invalid",
        remedy="Let each of host.guest_ca_files hold certificates in PEM.",
    )


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


BLANK_BYTES = 4 << 20
"""Size of a seed that is written later; most of it stays a hole."""


def make_seed(path: Path, names: Names, slot: Slot, *, jit: str, cas: tuple[str, ...]) -> None:
    """Write the ISO image ``path``, labelled ``cidata``."""
    iso = _iso(names, slot, jit=jit, cas=cas)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        iso.write_fp(file)
    iso.close()


def make_blank_seed(path: Path) -> None:
    """A file of zeros in the place of a seed: a VM's drive has it in it, and it is filled when there is a job."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, BLANK_BYTES)
    finally:
        os.close(descriptor)


def fill_seed(path: Path, names: Names, slot: Slot, *, jit: str, cas: tuple[str, ...]) -> None:
    """Write the ISO image into the file of `make_blank_seed`, which QEMU has open: it stays the same file, of the same size.

    Raises HostError (code ``seed-too-large``) where it doesn't fit.
    """
    iso, made = _iso(names, slot, jit=jit, cas=cas), io.BytesIO()
    iso.write_fp(made)
    iso.close()
    if len(made.getbuffer()) > BLANK_BYTES:
        raise HostError(
            f"a seed of {len(made.getbuffer())} bytes doesn't fit into {BLANK_BYTES}",
            code="seed-too-large",
            remedy="List fewer authorities in host.guest_ca_files.",
        )
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "r+b") as file:
        file.write(made.getbuffer())


def _iso(names: Names, slot: Slot, *, jit: str, cas: tuple[str, ...]) -> Any:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    documents = {
        "user-data": user_data(names, jit, authorities(cas)),
        "meta-data": meta_data(names),
        "network-config": network_config(slot),
    }
    for name, text in documents.items():
        data = text.encode()
        plain = name.upper().replace("-", "_")
        iso.add_fp(io.BytesIO(data), len(data), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    return iso
