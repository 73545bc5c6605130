"""A machine's devices are saved and loaded again, by real QEMUs under libvirt: emulated, and under KVM where there is one.

Its guest does nothing, so it shows of KVM what there is to show also where that can't run a stock kernel: that QEMU can save the state
of the machine that we describe at all.  It refuses where the processor has what can't be saved (an invariant TSC), and then no
host with KVM would ever have a template.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from orchestrator.core.errors import HostError
from orchestrator.host import hypervisor
from orchestrator.host.accelerator import KVM
from orchestrator.host.domain_xml import DomainSpec, Memory, domain_xml
from orchestrator.host.parts import VM_USERS
from tests.adapters.host.test_hypervisor import Qemu

pytestmark = pytest.mark.real

OWNER = VM_USERS + 1


@pytest.fixture
def backend() -> Iterator[Qemu]:
    made = Qemu()
    yield made
    made.close()


def without_arch_capabilities(spec: DomainSpec) -> str:
    """Some nested KVMs refuse a register that they offer, and QEMU then doesn't start with all that the host has."""
    root = ET.fromstring(domain_xml(spec))
    cpu = root.find("cpu")
    assert cpu is not None
    ET.SubElement(cpu, "feature", {"policy": "disable", "name": "arch-capabilities"})
    return ET.tostring(root, encoding="unicode")


def spec_of(backend: Qemu, kind: Literal["kvm", "qemu"], memory: Memory) -> DomainSpec:
    owner = f"+{OWNER}:+{backend.hypervisor.group()}"
    return msgspec.structs.replace(backend.spec(), domain_type=kind, memory=memory, owner=owner)


def start(backend: Qemu, spec: DomainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        backend.hypervisor.start_paused(spec)
    except HostError as error:
        if spec.domain_type != "kvm":
            raise
        monkeypatch.setattr(hypervisor, "domain_xml", without_arch_capabilities)
        try:
            backend.hypervisor.start_paused(spec)
        except HostError:
            pytest.skip(f"QEMU doesn't start under this machine's KVM: {error.message}")


@pytest.mark.parametrize("kind", ["qemu", "kvm"])
def test_a_machine_is_saved_and_its_clone_loaded(backend, kind, monkeypatch, tmp_path):
    if kind == "kvm" and not KVM.exists():
        pytest.skip(f"there is no {KVM}")
    ram, state = backend.folder / "ram", tmp_path / "state"
    ram.touch(0o600)
    os.truncate(ram, 64 << 20)
    os.chown(ram, OWNER, backend.hypervisor.group())
    template = spec_of(backend, kind, Memory(str(ram), "template"))
    start(backend, template, monkeypatch)
    backend.hypervisor.resume(template.name)  # one that never ran isn't paused when it is loaded
    with state.open("wb") as target:
        backend.hypervisor.save_state(template.name, target.fileno())
    backend.hypervisor.destroy(template.name)
    clone = spec_of(backend, kind, Memory(str(ram), "clone"))
    backend.hypervisor.start_paused(clone)
    with state.open("rb") as source:
        backend.hypervisor.load_state(clone.name, source.fileno())
    assert backend.hypervisor.state(clone.name) == "paused"
    assert 0 < state.stat().st_size < 16 << 20, "devices, and no memory"
    assert _blocks(ram) < 64 << 20
    if kind == "qemu":
        backend.hypervisor.resume(clone.name)
        assert backend.hypervisor.state(clone.name) == "running"


def _blocks(path: Path) -> int:
    return path.stat().st_blocks * 512
