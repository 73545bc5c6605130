"""Virtual machines: what the agent needs of a hypervisor, and libvirt's version of it.  No other module imports libvirt.

A domain of ours has our metadata, with this agent's site, *and* the name that its ULID gives; anything else on the host
isn't ours and is never touched, another agent's VMs included.  Domains are transient: nothing of them is left once they end.

Ends are told by events and found by looking: libvirt's events say why a VM ended (a crash, a kill, its own power-off),
and a list every second catches what an event missed, for instance while libvirtd was restarted.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import libvirt
import libvirt_qemu
import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.names import names_of, ulid_of
from orchestrator.host import qemu_process, qemu_state
from orchestrator.host.domain_xml import DomainSpec, domain_xml, empty_seed_xml, owner_in, qemu_group, seed_source

log = structlog.get_logger()

DomainState = Literal["paused", "running", "stopped", "crashed"]
Ended = Callable[[str, str], None]
"""Called with a domain's name and why it ended: ``shutdown``, ``crashed``, ``destroyed``, ``failed`` or ``gone``."""


class Domain(msgspec.Struct, frozen=True):
    ulid: str
    name: str
    state: DomainState


class Hypervisor(Protocol):
    """Every method may block for as long as libvirt does, and raises HostError (``libvirt-...``) where it fails."""

    def start_paused(self, spec: DomainSpec) -> None: ...

    def resume(self, name: str) -> None: ...

    def save_state(self, name: str, target: int) -> None:
        """Stop the VM and write its devices' state, without its memory, to the open file ``target``."""

    def load_state(self, name: str, source: int) -> None:
        """Load what `save_state` wrote from the open file ``source`` into a VM made with ``-incoming defer``."""

    def destroy(self, name: str) -> None:
        """End the VM at once; nothing happens where there is none.  Refuses a domain that isn't ours."""

    def kill(self, name: str) -> bool:
        """Kill the VM and wait for nothing but its death: True where it is dead, its processors and memory free.

        What libvirt has of it stays until `destroy`.  False where there is no process that could be looked at.
        """

    def ours(self) -> list[Domain]: ...

    def state(self, name: str) -> DomainState | None:
        """None where there is no such domain."""

    def eject_seed(self, name: str) -> bool:
        """Empty the seed's drive; True where it was looked at afterwards and is empty."""

    def on_end(self, ended: Ended) -> None:
        """Have ``ended`` called, from a thread of the hypervisor's, when a domain of ours has ended."""

    def group(self) -> int | None:
        """The group that QEMU runs with; None where the driver runs no QEMU."""

    def version(self) -> str:
        """Of QEMU, as three numbers."""

    def identity(self) -> str:
        """Of all that reads or writes a VM's state: a saved one fits only the same."""

    def alive(self) -> bool: ...

    def close(self) -> None: ...


_STATES: dict[int, DomainState] = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
}
_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "failed",
}

_events_started = threading.Lock()
_events_running = False


def _start_event_loop() -> None:
    """Libvirt has one event loop a process; it must stand before the first connection."""
    global _events_running  # noqa: PLW0603 - the loop is the process's, not an object's
    with _events_started:
        if _events_running:
            return
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

        def turn() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=turn, name="libvirt-events", daemon=True).start()
        _events_running = True


class Libvirt:
    """`Hypervisor` on a libvirt connection, which is made anew where it broke.  ``site`` tells this agent's VMs from others'."""

    def __init__(self, uri: str, site: str) -> None:
        _start_event_loop()
        self._uri = uri
        self._site = site
        self._lock = threading.Lock()
        self._connection: Any = None
        self._ended: Ended | None = None

    def start_paused(self, spec: DomainSpec) -> None:
        with _told("start", spec.name):
            if spec.domain_type == "test":  # the in-memory driver has no such flag, and no guest that could run
                self._open().createXML(domain_xml(spec), 0).suspend()
                return
            self._open().createXML(domain_xml(spec), libvirt.VIR_DOMAIN_START_PAUSED)

    def resume(self, name: str) -> None:
        with _told("resume", name):
            self._open().lookupByName(name).resume()

    def save_state(self, name: str, target: int) -> None:
        with _told("save", name):
            domain = self._open().lookupByName(name)
            domain.suspend()
            if self._has_qemu():
                qemu_state.save(_Monitor(domain), target)

    def load_state(self, name: str, source: int) -> None:
        with _told("load", name):
            if self._has_qemu():
                qemu_state.load(_Monitor(self._open().lookupByName(name)), source)

    def destroy(self, name: str) -> None:
        domain = self._find(name)
        if domain is None:
            return
        with _told("destroy", name):
            try:
                if not self._is_ours(domain):
                    raise HostError(
                        f"domain {name!r} isn't one of ours",
                        code="domain-foreign",
                        remedy="Rename it: names that begin with ironcd- and a ULID belong to IronCD.",
                    )
                domain.destroy()
            except libvirt.libvirtError as error:
                if not _is_absent(error) and not _is_ended(error):
                    raise

    def kill(self, name: str) -> bool:
        domain = self._find(name)
        with _told("kill", name):
            try:
                if domain is None or not self._is_ours(domain):
                    return False
            except libvirt.libvirtError as error:
                if _is_absent(error):  # it ended by itself since it was found
                    return False
                raise
        return qemu_process.kill(name)

    def ours(self) -> list[Domain]:
        with _told("list", "domains"):
            domains = self._open().listAllDomains()
        found = []
        for domain in domains:
            with contextlib.suppress(libvirt.libvirtError):  # it ended between the list and the question
                if self._is_ours(domain):
                    name = domain.name()
                    found.append(Domain(ulid_of(name) or "", name, _STATES.get(domain.state()[0], "stopped")))
        return found

    def state(self, name: str) -> DomainState | None:
        if qemu_process.is_unreaped(name):
            return "stopped"
        domain = self._find(name)
        if domain is None:
            return None
        with _told("ask", name):
            try:
                return _STATES.get(domain.state()[0], "stopped")
            except libvirt.libvirtError as error:
                if _is_absent(error):
                    return None
                raise

    def eject_seed(self, name: str) -> bool:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
        with _told("eject the seed of", name):
            domain = self._open().lookupByName(name)
            if seed_source(domain.XMLDesc()) is not None:
                domain.updateDeviceFlags(empty_seed_xml(), flags)
            return seed_source(domain.XMLDesc()) is None

    def on_end(self, ended: Ended) -> None:
        self._ended = ended
        self._open()

    def group(self) -> int | None:
        with _told("ask", "capabilities"):
            return qemu_group(self._open().getCapabilities())

    def version(self) -> str:
        with _told("ask", "version"):
            number = self._open().getVersion()
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    def identity(self) -> str:
        with _told("ask", "version"):
            return f"QEMU {self.version()}, libvirt {self._open().getLibVersion()}"

    def alive(self) -> bool:
        try:
            return bool(self._open().isAlive())
        except HostError:
            return False

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    self._connection.close()
                self._connection = None

    def _has_qemu(self) -> bool:
        return not self._uri.startswith("test:")

    def _open(self) -> Any:
        with self._lock:
            if self._connection is not None and self._connection.isAlive():
                return self._connection
            try:
                connection = libvirt.open(self._uri)
            except libvirt.libvirtError as error:
                raise HostError(
                    f"libvirt doesn't answer at {self._uri}: {error}",
                    code="libvirt-away",
                    remedy="Start libvirtd (and virtlogd), and see that this user may use it.",
                ) from error
            with contextlib.suppress(libvirt.libvirtError):  # the in-memory driver has no connection to keep alive
                connection.setKeepAlive(5, 3)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
            self._connection = connection
            return connection

    def _is_ours(self, domain: Any) -> bool:
        ulid = ulid_of(domain.name())
        if ulid is None or names_of(ulid).domain != domain.name():
            return False
        qemu_process.wait_reaped(domain.name())
        return owner_in(domain.XMLDesc()) == (ulid, self._site)

    def _find(self, name: str) -> Any:
        qemu_process.wait_reaped(name)
        with _told("look for", name):
            try:
                return self._open().lookupByName(name)
            except libvirt.libvirtError as error:
                if _is_absent(error):
                    return None
                raise

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        name = domain.name()
        if self._ended is None or ulid_of(name) is None:
            return
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._ended(name, _REASONS.get(detail, "gone"))
        elif event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN and detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST:
            # The guest has powered itself off; QEMU is being ended, which takes seconds where PID 1 reaps slowly.
            self._ended(name, "shutdown")
        elif event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
            self._ended(name, "crashed")


class _Monitor:
    """`qemu_state.Monitor` through libvirt, which doesn't mind: none of these commands changes what it keeps track of."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None, *, file: int | None = None) -> Any:
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        if file is None:
            answer = libvirt_qemu.qemuMonitorCommand(self._domain, request, 0)
        else:
            answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, request, [file])
        said = json.loads(answer)
        if "error" in said:
            raise HostError(
                f"QEMU refuses {command}: {said['error'].get('desc', '')}",
                code="clone-failed",
                remedy="The job boots cold; the template is looked at, and made anew.",
            )
        return said["return"]


def _is_absent(error: Any) -> bool:
    return bool(error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def _is_ended(error: Any) -> bool:
    """It has ended in the meantime, and libvirt is just tidying up after it."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)


@contextlib.contextmanager
def _told(verb: str, name: str) -> Iterator[None]:
    """Libvirt's error as ours, and a line in the log where a call took longer than it should."""
    begun = time.monotonic()
    try:
        yield
    except libvirt.libvirtError as error:
        raise HostError(
            f"libvirt can't {verb} {name}: {error}",
            code="libvirt-failed",
            remedy=f"See libvirtd's log and /var/log/libvirt/qemu/{name}.log.",
        ) from error
    finally:
        took = time.monotonic() - begun
        if took > 5:
            log.warning("libvirt_slow", verb=verb, name=name, seconds=round(took, 1))
