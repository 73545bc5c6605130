"""What the agent's steps work with: the host's own things behind their protocols, so that tests can put others there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.link import Limits, Link
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import Names, names_of
from orchestrator.core.policy import compile_policy
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import DesiredRunner, Mark
from orchestrator.host.channels import Talk
from orchestrator.host.domain_xml import DomainType
from orchestrator.host.gateway import Gateway
from orchestrator.host.hypervisor import Hypervisor
from orchestrator.host.links import Wires
from orchestrator.host.paths import HostPaths, VmPaths, vm_paths
from orchestrator.host.record import Record, Records
from orchestrator.host.ruleset import VmRules
from orchestrator.host.slots import Slot, Slots
from orchestrator.host.wall import Firewall
from orchestrator.system.boot import uptime

if TYPE_CHECKING:
    from orchestrator.host.guest import Message
    from orchestrator.host.templates import Templates

log = structlog.get_logger()

VM_USERS = 1_990_000_000
"""QEMU of the VM on link N runs as this user id + N: what one VM's QEMU owns, no other's can open."""


@dataclass
class Parts:
    settings: HostSettings
    paths: HostPaths
    hypervisor: Hypervisor
    wall: Firewall
    wires: Wires
    gateway: Gateway
    slots: Slots
    records: Records
    domain_type: DomainType = "qemu"
    qemu_group: int | None = None
    """Each VM's QEMU runs as a user of its own in this group; None where it runs as libvirt is configured."""
    clock: Callable[[], float] = time.time
    """Seconds since the epoch: what is told to others.  Nothing here waits by it, since it can be set."""
    uptime: Callable[[], float] = uptime
    """Seconds since the host's boot, the same in every process of that boot: nobody can set it."""
    talk: Talk = None  # type: ignore[assignment]  # set by the agent, which hears what the channels say
    templates: Templates = None  # type: ignore[assignment]  # set by the agent, which knows what runs
    reserved: dict[str, Callable[[Message], None]] = field(default_factory=dict)
    """VMs that no runner has (yet), by ULID, with who hears what their guests say.  The sweep leaves them alone."""
    unwaited: Callable[[MachineClass], str] = lambda _machine: ""
    """Why no machine waited for a job that is started without one; set by the pool."""
    changed: Callable[[], None] = lambda: None
    """Called when something that the control plane should see has changed."""


class Cancelled(Exception):
    pass


@dataclass
class Runner:
    """One runner on this host while this process lives.  ``lock`` guards ``record`` and what stands beside it."""

    record: Record
    lock: threading.RLock = field(default_factory=threading.RLock)
    busy: str = ""
    """The verb of the step that is being carried out."""
    cancel: threading.Event = field(default_factory=threading.Event)
    applied: bool = False
    stop_told: bool = False
    refused_at: float = 0.0
    seed_tried_at: float = 0.0
    waited: bool = False
    """Its machine stands in front of the gate already (`orchestrator.host.pool`): it is claimed, not started."""
    not_before: float = 0.0
    """A step that failed is tried again then.  These three are seconds since the host's boot."""
    secret: str = ""
    """Its JIT configuration, for as long as the seed exists: taken out of the console's text."""

    @property
    def names(self) -> Names:
        return names_of(self.record.id)

    def paths(self, parts: Parts) -> VmPaths:
        return vm_paths(parts.paths, self.names)

    def mark(self, parts: Parts, mark: Mark) -> None:
        with self.lock:
            if not self.record.mark(mark, parts.clock(), parts.uptime()):
                return
        self.save(parts)

    def save(self, parts: Parts) -> None:
        """Keep the record.  With no room for it the VM goes on: what is known in memory is written with the next change."""
        try:
            with self.lock:
                parts.records.save(self.record)
        except HostError as error:
            log.warning("record_unsaved", runner=self.record.id, error=error.message)
        parts.changed()


def link_of(want: DesiredRunner, slot: Slot, *, limits: Limits | None = None) -> Link:
    """What the gateway is told of the link of ``want``."""
    return Link(
        tap=names_of(want.id).tap,
        guest_ip=slot.guest_ip,
        gateway_ip=slot.gateway_ip,
        identity=want.identity,
        policy=want.policy,
        generation=want.generation,
        bound=want.bound,
        limits=limits or Limits(),
    )


def rules_of(link: Link) -> VmRules:
    """What the packet filter holds for ``link``."""
    ranges = tuple(compile_policy(link.policy).cidr_ports())
    sandbox = link.policy.profile == "sandbox"
    return VmRules(link.tap, link.guest_ip, link.gateway_ip, link.limits, ranges, echo=sandbox)


def without_secret(want: DesiredRunner) -> DesiredRunner:
    return msgspec.structs.replace(want, jit="")
