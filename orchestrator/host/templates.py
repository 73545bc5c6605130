"""The templates of this host: which are wanted, which are there, and which a job's machine may start from.

Made in the background, one at a time, where there is room that no job needs; a job that needs it takes it back.  Only
a template that was read and compared with its manifest by this process is handed out, and its files are looked at
again each time (`template_files.identity`).  What fails is told, and tried again after growing pauses; meanwhile jobs boot
cold, and their records say why.
"""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from orchestrator.core.errors import HostError, IronCDError
from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Failure, ObservedTemplate, TemplateState
from orchestrator.host import template_files as files
from orchestrator.host.images import LocalImage, find_image
from orchestrator.host.parts import Cancelled, Parts
from orchestrator.host.template_build import Build
from orchestrator.host.template_files import Template
from orchestrator.host.template_key import Basis, basis_of
from orchestrator.host.template_memory import SharedMemory, memory_of, no_room, opens_read_only

log = structlog.get_logger()

LOOK_S = 5.0
PAUSES_S = (10.0, 60.0, 300.0, 1800.0)
"""After a build that failed, longer after each one in a row."""
UNWANTED_S = 3600.0
"""A template that no class asks for stays for so long after its last use: another agent's may be beside ours."""
DOUBTS = 2
"""A template that was found whole and failed so often in a row is made anew."""

_PASSING = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR})
"""Errors of this machine while a template is read, which say nothing of the template."""

Uses = Callable[[], dict[str, int]]
HostMemory = Callable[[], tuple[int, int]]
"""MiB that VMs and templates can have together, and those that VMs have."""


class Cold(Exception):
    """There is no clone to be had; the text says why, for a person."""


@dataclass(frozen=True)
class Lease:
    """A template to start one machine from."""

    template: Template
    memory: SharedMemory


@dataclass
class _Known:
    basis: Basis
    machine: MachineClass
    classes: tuple[str, ...] = ()
    image: LocalImage | None = None
    state: TemplateState = "building"
    since: float = 0.0
    reason: str = "not made yet"
    failures: int = 0
    not_before: float = 0.0
    doubts: int = 0
    unchecked: bool = True
    template: Template | None = None
    memory: SharedMemory | None = None
    identity: tuple[tuple[int, ...], ...] = ()


class Templates:
    """Not needed for a machine to start: where anything here fails, it boots cold."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._known: dict[str, _Known] = {}
        self._classes: tuple[MachineClass, ...] = ()
        self._asked: dict[str, MachineClass] = {}
        self._since = 0.0
        self._removed: Mapping[str, float] = {}
        self._looked_at = 0.0
        self._thread: threading.Thread | None = None
        self._build: Build | None = None
        self._hypervisor = ""
        self._problem: Failure | None = None
        self._closed = False
        self.uses: Uses = dict
        """Living clones by their template's key; the agent knows."""
        self.memory: HostMemory = lambda: (sys.maxsize, 0)

    # --- for a machine that starts

    def lease(self, machine: MachineClass, image: LocalImage) -> Lease:
        """The template for ``machine``.  Raises `Cold`."""
        if machine.start == "cold":
            raise Cold("")
        if machine.gpus:
            raise Cold("a machine with a GPU can't be cloned")
        if self._parts.qemu_group is None and self._parts.domain_type != "test":
            raise Cold("QEMU's user isn't its own on this host")
        with self._lock:
            key = self._basis(machine, image).key
            known = self._known.get(key)
            if known is None:
                self._asked[key] = machine
                raise Cold("there is no template of this size yet")
            if known.state != "ready" or known.template is None or known.memory is None:
                raise Cold(f"its template isn't ready: {known.reason or known.state}")
            if not self._is_as_it_was(known, known.template):
                self._let_go(known, "its files were changed")
                raise Cold("its template was changed, and is looked at")
            files.note_use(known.template.folder, self._parts.clock())
            return Lease(known.template, known.memory)

    def doubt(self, key: str, why: str) -> None:
        """A clone of it failed.  It is compared with its manifest again, and after a second time made anew."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                known.doubts += 1
                log.warning("template_doubted", key=key[:12], why=why, times=known.doubts)
                self._let_go(known, f"a clone failed: {why}")
        self._parts.changed()

    def trust(self, key: str) -> None:
        """A clone of it passed the gate."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                known.doubts = 0

    # --- for the agent

    def want(
        self, classes: Iterable[MachineClass], since: float = 0.0, removed: Mapping[str, float] | None = None
    ) -> None:
        """Templates for ``classes``, made after ``since`` (seconds since the epoch), and those in ``removed`` after their own time."""
        with self._lock:
            self._classes, self._since, self._removed = tuple(classes), since, removed or {}
            self._looked_at = 0.0

    @property
    def building(self) -> MachineClass | None:
        """What a build takes of this host's room at this moment."""
        build = self._build
        return build.machine if build is not None else None

    def make_room(self) -> None:
        """A job needs what the build has."""
        build = self._build
        if build is not None:
            log.info("template_put_off", key=build.key[:12])
            build.cancel()

    def turn(self, now: float, has_room: Callable[[MachineClass], bool]) -> None:
        """Start what is next, unless something is under way.  ``now``: seconds since the host's boot."""
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            if now - self._looked_at < LOOK_S:
                return
            self._looked_at = now
            self._look()
            work = self._next(now, has_room)
            if work is not None:
                self._thread = threading.Thread(target=work, name="templates", daemon=True)
                self._thread.start()

    def observe(self) -> tuple[ObservedTemplate, ...]:
        uses = self.uses()
        with self._lock:
            return tuple(
                ObservedTemplate(
                    key=key,
                    classes=known.classes,
                    image=known.basis.image,
                    state=known.state,
                    since=known.since,
                    disk_bytes=_size(known.template),
                    clones=uses.get(key, 0),
                    reason=known.reason,
                )
                for key, known in sorted(self._known.items())
            )

    def ready(self) -> dict[str, str]:
        """Class name to the key of its template, of the classes that have one now."""
        with self._lock:
            return {name: key for key, known in self._known.items() if known.state == "ready" for name in known.classes}

    def problem(self) -> Failure | None:
        return self._problem

    def sealed_bytes(self) -> int:
        """Memory of this machine that the sealed copies can take."""
        with self._lock:
            return self._kept_mib() << 20

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.make_room()
        thread = self._thread
        if thread is not None:
            thread.join(30)
        with self._lock:
            for known in self._known.values():
                _close(known)

    # --- within

    def _basis(self, machine: MachineClass, image: LocalImage) -> Basis:
        if not self._hypervisor:
            self._hypervisor = self._parts.hypervisor.identity()
        return basis_of(machine, image, self._parts.domain_type, self._hypervisor)

    def _look(self) -> None:
        """Which templates are wanted now, and which are there."""
        self._hypervisor = ""
        self._remove()
        wanted: dict[str, _Known] = {}
        for machine in (*self._classes, *self._asked.values()):
            if machine.start == "cold" or machine.gpus:
                continue
            try:
                image = find_image(self._parts.paths.images, machine.image)
                basis = self._basis(machine, image)
            except (HostError, OSError):
                continue  # there is no such image; the job will be told
            known = (
                wanted.get(basis.key) or self._known.get(basis.key) or _Known(basis, machine, since=self._parts.clock())
            )
            names = (*known.classes, machine.name) if basis.key in wanted else (machine.name,)
            known.classes, known.image = tuple(sorted(set(names))), image
            wanted[basis.key] = known
        for key, known in self._known.items():
            if key not in wanted:
                known.classes = ()
                wanted[key] = known
        self._known = wanted
        for known in wanted.values():
            if known.template is not None and known.template.manifest.created < self._since:
                self._discard(known, "to be made anew")
        self._make_way()
        self._forget_unwanted(self._parts.clock())

    def _remove(self) -> None:
        """What an admin removed goes.  A class has it made anew; a size that a job asked for waits until the next one does."""
        folder = self._parts.paths.templates
        for key in self._removed.keys() & set(files.list_keys(folder)):
            try:
                created = files.read(folder / key).manifest.created
            except HostError:
                continue  # it isn't whole, and goes for that
            if created >= self._removed[key]:
                continue
            log.info("template_removed", key=key[:12], by="an admin")
            self._asked.pop(key, None)
            known = self._known.get(key)
            if known is None:
                files.remove(folder / key)
            else:
                self._discard(known, "removed, and to be made anew")

    def _next(self, now: float, has_room: Callable[[MachineClass], bool]) -> Callable[[], None] | None:
        folder = self._parts.paths.templates
        there = set(files.list_keys(folder))
        due = {key: known for key, known in self._known.items() if now >= known.not_before}
        for key, known in due.items():
            if known.unchecked and key in there and not self._is_kept_out(known):
                return lambda known=known: self._check(known)  # type: ignore[misc]  # mypy infers no type for a default
        for key, known in due.items():
            missing = known.classes and known.image is not None and key not in there
            if missing and not self._is_kept_out(known) and has_room(known.machine):
                self._build = Build(self._parts, known.machine, known.image, known.basis)  # type: ignore[arg-type]
                self._tell(known, "building", "")
                return lambda known=known, build=self._build: self._make(known, build)  # type: ignore[misc]
        return None

    def _check(self, known: _Known) -> None:
        """Read all of a template that is there; what isn't whole goes."""
        key = known.basis.key
        try:
            template = files.read(self._parts.paths.templates / key)
            files.verify(template, but=(files.RAM,))
            memory = memory_of(template, self._parts.hypervisor.version(), self._parts.qemu_group or 0)
            identity = files.identity(template)
        except (IronCDError, OSError) as error:
            if _is_passing(error):
                log.warning("template_unread", key=key[:12], error=str(error), again_in=PAUSES_S[0])
                known.not_before = self._parts.uptime() + PAUSES_S[0]
                return
            log.warning("template_broken", key=key[:12], error=str(error))
            with self._lock:
                self._discard(known, str(error))
            return
        with self._lock:
            _close(known)
            known.template, known.memory, known.identity, known.unchecked = template, memory, identity, False
            if known.doubts >= DOUBTS:
                self._discard(known, "its clones fail, though it is whole")
                return
            self._tell(known, "ready", "")
        log.info("template_ready", key=key[:12], classes=known.classes)

    def _make(self, known: _Known, build: Build) -> None:
        try:
            build.run()
        except Cancelled:
            self._tell(known, "building", "put off: its room was needed")
            known.not_before = self._parts.uptime() + PAUSES_S[0]
            return
        except (IronCDError, OSError) as error:
            self._failed(known, error)
            return
        finally:
            self._build = None
            self._looked_at = 0.0
        with self._lock:
            known.failures, known.doubts, known.unchecked, self._problem = 0, 0, True, None
        self._check(known)

    def _failed(self, known: _Known, error: Exception) -> None:
        pause = PAUSES_S[min(known.failures, len(PAUSES_S) - 1)]
        known.failures += 1
        known.not_before = self._parts.uptime() + pause
        log.warning("template_failed", key=known.basis.key[:12], error=str(error), again_in=pause)
        message = error.message if isinstance(error, IronCDError) else str(error)
        self._problem = Failure(
            "template-failed", message, "Jobs of its classes boot cold; it is tried again by itself."
        )
        self._tell(known, "failed", message)

    def _is_kept_out(self, known: _Known) -> bool:
        """Whether there is no memory for its sealed copy; jobs boot cold then, as its reason says."""
        if opens_read_only(self._hypervisor):  # its QEMU's version is the first number in there
            return False
        total, taken = self.memory()
        why = no_room(known.machine.memory_mib, total, taken, self._kept_mib(but=known), self._largest_mib())
        if why and why != known.reason:
            self._tell(known, "failed", why)
        return bool(why)

    def _make_way(self) -> None:
        """Let sealed copies go, the largest first, that leave too little for a machine of a class that is wanted now."""
        total, _ = self.memory()
        for known in sorted(self._known.values(), key=lambda known: -known.machine.memory_mib):
            if self._kept_mib() and total - self._kept_mib() < self._largest_mib():
                _close(known)
                self._let_go(known, "a class needs the memory of its sealed copy")

    def _kept_mib(self, but: _Known | None = None) -> int:
        kept = (known.memory for known in self._known.values() if known is not but and known.memory is not None)
        return sum(memory.taken_bytes for memory in kept) >> 20

    def _largest_mib(self) -> int:
        return max((machine.memory_mib for machine in (*self._classes, *self._asked.values())), default=0)

    def _tell(self, known: _Known, state: TemplateState, reason: str) -> None:
        known.state, known.reason, known.since = state, reason, self._parts.clock()
        self._parts.changed()

    def _is_as_it_was(self, known: _Known, template: Template) -> bool:
        try:
            return files.identity(template) == known.identity
        except OSError:
            return False

    def _let_go(self, known: _Known, why: str) -> None:
        """Hand it out no more until it was read again."""
        known.unchecked = True
        self._looked_at = 0.0
        self._tell(known, "building", why)

    def _discard(self, known: _Known, why: str) -> None:
        """Its files go, unseen by clones that run from it: QEMU has them open."""
        files.remove(self._parts.paths.templates / known.basis.key)
        _close(known)
        known.template, known.unchecked, known.doubts = None, True, 0
        self._looked_at = 0.0
        self._tell(known, "building", why)

    def _forget_unwanted(self, now: float) -> None:
        """Let go of what no class asks for, and of the longest unused where there is too much; never of one with clones."""
        folder, uses = self._parts.paths.templates, self.uses()
        files.clear_half_built(folder, now - UNWANTED_S)
        there = {key: folder / key for key in files.list_keys(folder) if not uses.get(key)}
        used_at = {key: place.stat().st_mtime for key, place in there.items()}
        total = sum(files.disk_bytes(folder / key) for key in files.list_keys(folder))
        limit = self._parts.settings.templates_gib << 30
        for key in sorted(there, key=lambda key: (self._is_wanted(key), used_at[key])):
            over = total > limit
            stale = not self._is_wanted(key) and now - used_at[key] > UNWANTED_S
            if not over and not stale:
                continue
            log.info("template_removed", key=key[:12], wanted=self._is_wanted(key), over=over)
            total -= files.disk_bytes(there[key])
            files.remove(there[key])
            self._forget(key)
        for key in [key for key, known in self._known.items() if not known.classes and known.template is None]:
            del self._known[key]

    def _forget(self, key: str) -> None:
        known = self._known.get(key)
        if known is None:
            return
        _close(known)
        known.template = None
        if known.classes:  # what is wanted is more than may be kept: made again at once it would push out the next
            known.unchecked, known.not_before = True, self._parts.uptime() + UNWANTED_S
            self._tell(known, "failed", "there is no room for it within host.templates_gib")

    def _is_wanted(self, key: str) -> bool:
        known = self._known.get(key)
        return known is not None and bool(known.classes)


def _is_passing(error: Exception) -> bool:
    if isinstance(error, HostError):
        return error.code.startswith("libvirt-")
    return isinstance(error, OSError) and error.errno in _PASSING


def _close(known: _Known) -> None:
    if known.memory is not None:
        known.memory.close()
        known.memory = None


def _size(template: Template | None) -> int:
    try:
        return files.disk_bytes(template.folder) if template is not None else 0
    except OSError:
        return 0
