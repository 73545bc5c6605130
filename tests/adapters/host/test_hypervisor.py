"""One contract for every hypervisor: in memory, libvirt's in-memory driver, and QEMU with a real tap."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ulid import ULID

from orchestrator.core.errors import HostError
from orchestrator.core.names import names_of
from orchestrator.host.domain_xml import DomainSpec
from orchestrator.host.fakes import FakeHypervisor
from orchestrator.host.hypervisor import Libvirt
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.parts import VM_USERS
from orchestrator.host.slots import slot_at
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.adapters.host.conftest import RANGE, new_name

SITE = new_name()


def halting_kernel() -> bytes:
    """The least that QEMU takes for a Linux kernel: its boot header, and code that halts."""
    image = bytearray(2048)
    image[0x1F1] = 1  # one sector of set-up code after the first
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x6a"  # jump past the header
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = struct.pack("<H", 0x0204)
    image[0x211] = 1
    image[0x22C:0x230] = struct.pack("<I", 0x37FFFFFF)  # the highest address for an initrd
    image[0x26C:0x270] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; again
    return bytes(image)


class Backend:
    """A hypervisor, and what is needed to make domains for it and to meddle with them."""

    can_eject = True

    def __init__(self, hypervisor) -> None:
        self.hypervisor = hypervisor
        self.ended: list[tuple[str, str]] = []
        self.told = threading.Event()
        hypervisor.on_end(self.heard)
        self.made: list[str] = []

    def heard(self, name: str, why: str) -> None:
        self.ended.append((name, why))
        self.told.set()

    def spec(self) -> DomainSpec:
        ulid = str(ULID())
        names = names_of(ulid)
        self.made.append(names.domain)
        return DomainSpec(
            ulid=ulid,
            site=SITE,
            name=names.domain,
            domain_type="test",
            vcpus=1,
            memory_mib=64,
            kernel="/nonexistent/vmlinuz",
            initrd="/nonexistent/initrd",
            cmdline="console=ttyS0",
            disk="/nonexistent/disk",
            backing="/nonexistent/image",
            seed="/nonexistent/seed",
            tap=names.tap,
            channel="/nonexistent/channel",
            console="/nonexistent/console",
        )

    def kill(self, name: str) -> None:
        """End a domain as nobody asked for."""
        self.hypervisor.crash(name)

    def plant(self, name: str) -> None:
        self.hypervisor.plant(name)

    def unplant(self, name: str) -> None:
        pass

    def close(self) -> None:
        for name in self.made:
            self.hypervisor.destroy(name)
        self.hypervisor.close()


class InMemoryLibvirt(Backend):
    can_eject = False
    domain_type = "test"

    def kill(self, name: str) -> None:
        self.hypervisor._open().lookupByName(name).shutdown()

    def plant(self, name: str) -> None:
        xml = f"<domain type='{self.domain_type}'><name>{name}</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
        self.hypervisor._open().createXML(xml, 1 if self.domain_type == "qemu" else 0)

    def unplant(self, name: str) -> None:
        self.hypervisor._open().lookupByName(name).destroy()


class Qemu(InMemoryLibvirt):
    can_eject = True
    domain_type = "qemu"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="icdt-"))
        os.chmod(self.folder, 0o711)
        self.thread = make_namespace(new_name())
        self.links = Links(self.thread)
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(self.folder / "image"), "16M"])
        super().__init__(Libvirt("qemu:///system", SITE))

    def spec(self) -> DomainSpec:
        spec = super().spec()
        place = self.folder / secrets.token_hex(4)
        place.mkdir(mode=0o711)
        (place / "vmlinuz").write_bytes(halting_kernel())
        (place / "initrd").write_bytes(b"none")
        (place / "seed").write_bytes(bytes(4096))
        image = str(self.folder / "image")
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, str(place / "disk"), "16M"])
        self.links.make(spec.tap)
        files = {name: str(place / name) for name in ("initrd", "disk", "seed", "channel", "console")}
        owner = f"+{VM_USERS + len(self.made)}:+{self.hypervisor.group()}"
        return msgspec.structs.replace(
            spec, domain_type="qemu", kernel=str(place / "vmlinuz"), backing=image, owner=owner, **files
        )

    def kill(self, name: str) -> None:
        os.kill(pid_of(name), signal.SIGKILL)

    def close(self) -> None:
        super().close()
        for tap in {names_of(name[7:].upper()).tap for name in self.made}:
            self.links.delete(tap)
        self.thread.close()
        netns.delete(self.thread.name)
        shutil.rmtree(self.folder)


def pid_of(name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"guest={name}," in (entry / "cmdline").read_text():
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError(f"no QEMU of {name}")


@pytest.fixture(
    params=["fake", pytest.param("test", marks=pytest.mark.real), pytest.param("qemu", marks=pytest.mark.real)]
)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "fake":
        made = Backend(FakeHypervisor())
    elif request.param == "test":
        made = InMemoryLibvirt(Libvirt("test:///default", SITE))
    else:
        made = Qemu()
    try:
        yield made
    finally:
        made.close()


def test_a_domain_is_paused_then_running_then_gone(backend):
    spec = backend.spec()
    backend.hypervisor.start_paused(spec)
    assert backend.hypervisor.state(spec.name) == "paused"
    assert next(found for found in backend.hypervisor.ours() if found.ulid == spec.ulid).state == "paused"
    backend.hypervisor.resume(spec.name)
    assert backend.hypervisor.state(spec.name) == "running"
    backend.hypervisor.destroy(spec.name)
    assert backend.hypervisor.state(spec.name) is None
    assert spec.ulid not in [found.ulid for found in backend.hypervisor.ours()]
    assert backend.told.wait(60)
    assert backend.ended == [(spec.name, "destroyed")]
    backend.hypervisor.destroy(spec.name)


@pytest.mark.real
def test_a_domain_that_ends_while_it_is_looked_at_needs_no_killing(monkeypatch):
    backend = InMemoryLibvirt(Libvirt("test:///default", SITE))
    try:
        spec = backend.spec()
        backend.hypervisor.start_paused(spec)
        backend.hypervisor.resume(spec.name)
        found = backend.hypervisor._find(spec.name)
        backend.kill(spec.name)
        monkeypatch.setattr(backend.hypervisor, "_find", lambda _name: found)
        assert backend.hypervisor.kill(spec.name) is False
        backend.hypervisor.destroy(spec.name)
    finally:
        backend.close()


def test_a_killed_vm_is_dead_at_once_and_gone_after_the_tidying_up(backend):
    spec = backend.spec()
    backend.hypervisor.start_paused(spec)
    backend.hypervisor.resume(spec.name)
    pid = pid_of(spec.name) if isinstance(backend, Qemu) else 0
    seen_dead = backend.hypervisor.kill(spec.name)
    if isinstance(backend, Qemu):
        assert seen_dead
        assert not Path(f"/proc/{pid}/statm").exists() or Path(f"/proc/{pid}/statm").read_text().startswith("0 "), (
            "its memory is given back"
        )
    backend.hypervisor.destroy(spec.name)
    deadline = time.monotonic() + 60
    while backend.hypervisor.state(spec.name) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert backend.hypervisor.state(spec.name) is None
    assert not backend.hypervisor.kill(spec.name)


def test_a_domain_isnt_made_twice(backend):
    spec = backend.spec()
    backend.hypervisor.start_paused(spec)
    with pytest.raises(HostError):
        backend.hypervisor.start_paused(spec)
    assert backend.hypervisor.state(spec.name) == "paused"


def test_an_end_that_nobody_asked_for_is_told(backend):
    """How soon is libvirt's affair: it waits until PID 1 has reaped QEMU.  The agent sees the channel close before."""
    spec = backend.spec()
    backend.hypervisor.start_paused(spec)
    backend.hypervisor.resume(spec.name)
    backend.kill(spec.name)
    assert backend.told.wait(60)
    assert backend.ended[0][0] == spec.name
    assert backend.ended[0][1] in ("crashed", "shutdown", "failed")
    deadline = time.monotonic() + 60
    while backend.hypervisor.state(spec.name) not in (None, "stopped") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert backend.hypervisor.state(spec.name) in (None, "stopped")


def test_the_seed_can_be_taken_out_while_the_guest_runs(backend):
    if not backend.can_eject:
        pytest.skip("libvirt's in-memory driver can't change a drive's medium")
    spec = backend.spec()
    backend.hypervisor.start_paused(spec)
    backend.hypervisor.resume(spec.name)
    assert backend.hypervisor.eject_seed(spec.name)
    assert backend.hypervisor.eject_seed(spec.name)


def test_somebody_elses_domains_are_neither_listed_nor_touched(backend):
    plain, alike = f"icdt-{secrets.token_hex(3)}", "ironcd-" + str(ULID()).lower()
    backend.plant(plain)
    if backend.can_eject is False or isinstance(backend, Qemu):
        backend.plant(alike)  # our kind of name, without our metadata
    try:
        listed = {found.name for found in backend.hypervisor.ours()}
        assert not {plain, alike} & listed
        with pytest.raises(HostError) as caught:
            backend.hypervisor.destroy(plain)
        assert caught.value.code == "domain-foreign"
        assert not backend.hypervisor.kill(plain)
        assert backend.hypervisor.state(plain) is not None
        if isinstance(backend, InMemoryLibvirt):
            with pytest.raises(HostError):
                backend.hypervisor.destroy(alike)
            assert not backend.hypervisor.kill(alike)
            assert backend.hypervisor.state(alike) is not None
    finally:
        backend.unplant(plain)
        if isinstance(backend, InMemoryLibvirt):
            backend.unplant(alike)


def test_another_agents_vms_are_left_alone(backend):
    if not isinstance(backend, InMemoryLibvirt):
        pytest.skip("the fake is one agent's")
    spec = msgspec.structs.replace(backend.spec(), site="another")
    backend.hypervisor.start_paused(spec)
    try:
        assert spec.ulid not in [found.ulid for found in backend.hypervisor.ours()]
        with pytest.raises(HostError):
            backend.hypervisor.destroy(spec.name)
        assert backend.hypervisor.state(spec.name) == "paused"
    finally:
        backend.unplant(spec.name)


def test_what_isnt_there_is_none_and_cant_be_resumed(backend):
    name = "ironcd-" + str(ULID()).lower()
    assert backend.hypervisor.state(name) is None
    with pytest.raises(HostError):
        backend.hypervisor.resume(name)


@pytest.mark.real
def test_qemu_owns_its_vms_files_and_never_the_image():
    backend = Qemu()
    try:
        one, two = backend.spec(), backend.spec()
        for spec in (one, two):
            backend.hypervisor.start_paused(spec)
        owners = [os.stat(f"/proc/{pid_of(spec.name)}").st_uid for spec in (one, two)]
        assert owners[0] != owners[1]
        assert min(owners) >= VM_USERS
        for spec, owner in zip((one, two), owners, strict=True):
            assert os.stat(spec.disk).st_uid == os.stat(spec.seed).st_uid == owner
        image = os.stat(one.backing)
        assert (image.st_uid, image.st_mode & 0o022) == (0, 0)
        for spec in (one, two):
            arguments = Path(f"/proc/{pid_of(spec.name)}/cmdline").read_text()
            assert "isa-panic" in arguments or "pvpanic" in arguments
            backend.hypervisor.destroy(spec.name)
            assert os.stat(spec.disk).st_uid == 0
    finally:
        backend.close()


@pytest.mark.real
def test_a_tap_that_qemu_holds_moves_into_the_vms_namespace():
    backend = Qemu()
    try:
        spec = backend.spec()
        backend.hypervisor.start_paused(spec)
        backend.links.move(spec.tap)
        backend.links.up(spec.tap, slot_at(RANGE, 0))
        backend.hypervisor.resume(spec.name)
        assert "LOWER_UP" in run(["ip", "-n", backend.thread.name, "link", "show", spec.tap])
        backend.hypervisor.destroy(spec.name)
        assert spec.tap in backend.links.in_namespace()
    finally:
        backend.close()
