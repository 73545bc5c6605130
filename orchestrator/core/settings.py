"""The settings that a host's processes need, as plain values.  Reading files and the environment is the surface's work."""

from __future__ import annotations

from typing import Literal

import msgspec

Accelerator = Literal["auto", "kvm", "tcg"]
DiskErase = Literal["unlink", "discard", "zero"]


class HostSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host's agent and gateway read the same settings, handed over as a JSON file (``--settings FILE``)."""

    name: str
    """Of this host, as the control plane knows it."""
    control_url: str = "http://127.0.0.1:8470"
    """Where the agent finds the control plane; between machines ``https://``."""
    token_file: str = "/etc/ironcd/host-token"  # noqa: S105 - a path
    """Holds the bearer token; mode 0600."""
    state_dir: str = "/var/lib/ironcd"
    """disks/, seeds/, ledger/, desired.json"""
    cache_dir: str = "/var/cache/ironcd"
    """images/<digest>/"""
    run_dir: str = "/run/ironcd"
    """links/, channels/, gateway.sock"""
    libvirt_uri: str = "qemu:///system"
    """Of libvirt's QEMU driver on this host."""
    accelerator: Accelerator = "auto"
    """``auto`` tries a real guest under KVM and falls back to emulation where `allow_emulation` is set."""
    allow_emulation: bool = False
    """Without it a host whose guests can't start under KVM refuses jobs."""
    netns: str = "ironcd"
    """The network namespace that VMs' links live in.  It has no way out: see `docs/adr/0002`."""
    uplink_netns: str = ""
    """The namespace that the gateway dials from; empty for the host's own."""
    links_range: str = "10.201.0.0/16"
    """Cut into /31 links, one per VM; seen by nobody outside `netns`."""
    upstream_dns: tuple[str, ...] = ()
    """``address`` or ``address:port`` of the resolvers that the gateway asks; empty for the host's resolv.conf."""
    guest_ca_files: tuple[str, ...] = ()
    """PEM files that every guest trusts on top of Debian's (GitHub Enterprise Server, a company's proxy)."""
    tls_port: int = 10443
    """The gateway's port for TLS, inside `netns`."""
    tcp_port: int = 10022
    """The gateway's port for connections to ranges that a policy opens, inside `netns`."""
    dns_port: int = 10053
    """The resolver's port, inside `netns`."""
    nflog_group: int = 5
    """The kernel's log group that drops are read from."""
    echo_group: int = 6
    """The kernel's log group that sandboxes' ICMP echoes are read from; the gateway sends its own in their place."""
    hello_timeout_s: float = 10.0
    """How long a client may take to send a whole ClientHello, in seconds."""
    idle_timeout_s: float = 3600.0
    """A connection on which nothing moved for so many seconds is closed."""
    templates_dir: str = ""
    """Where the booted templates that clones start from are kept; empty for ``templates/`` in ``state_dir``."""
    templates_gib: int = 40
    """What templates may take on the disk, in GiB: the longest unused go first."""
    reserve_vcpus: int = 0
    """Processors kept back from VMs, for the host itself."""
    reserve_memory_mib: int = 2048
    """Memory kept back from VMs, in MiB."""
    reserve_disk_gib: int = 5
    """Disk kept back from VMs, in GiB."""
    warm_age_s: float = 3600.0
    """A machine that has waited for a job for so many seconds is replaced by a new one."""
    disk_erase: DiskErase = "unlink"
    """What becomes of a disk's contents: ``unlink`` frees its blocks, ``discard`` has the device discard them too,
    ``zero`` overwrites them first."""
    block_when_ledger_full: bool = True
    """With no room for the record, block; without this, let through what can't be recorded."""
    ledger_days: int = 90
    """The host keeps its own copy of its ledger for so many days after the control plane has it; 0 keeps it for ever."""
