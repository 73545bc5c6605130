"""The libvirt description of one runner's VM: a pure function from values to XML.

No secret is in it: whoever may ask libvirt may read it.  The JIT configuration is on the seed, which only QEMU's user
can read and which is gone before the runner starts.

What stands out:

* direct boot of the image's kernel: no firmware, no boot loader;
* the disk's cache mode is ``unsafe``: nothing on it needs to survive the host;
* the seed's drive is SCSI, since Debian's cloud kernel has no AHCI; it can be ejected;
* ``on_reboot`` and ``on_crash`` destroy: a runner has one life;
* the serial console goes to a file by virtlogd, which rotates it: a guest that prints without end can't fill the disk;
* under KVM the processor is the host's, less what QEMU can't save: with an invariant TSC it refuses to save a machine's state, and there
  would be no template;
* no page is merged with another VM's (KSM): who writes to a page that was merged is told by the time that takes what others have, and
  machines that boot are to share none at all;
* no balloon, graphics, sound, USB or input device: each is code in QEMU that a guest can talk to, and by a balloon it could
  punch holes into the memory that it shares with others (ADR 21).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Literal

import msgspec

from orchestrator.host.ruleset import GUEST_MAC

METADATA = "urn:ironcd:runner:1"
CHANNEL = "org.ironcd.0"
SEED_TARGET = "sda"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

DomainType = Literal["kvm", "qemu", "test"]


class Memory(msgspec.Struct, frozen=True):
    """The guest's memory as a file, of the guest's size.

    ``template``: what the guest writes goes into the file, and nothing is loaded.  ``clone``: the file is mapped privately
    and the device state is loaded before the VM may run.  ``read_only``: QEMU opens the file for reading only, which it
    can since version 8.2; before it wants to write even to what it maps privately.
    """

    path: str
    use: Literal["template", "clone"]
    read_only: bool = False


class DomainSpec(msgspec.Struct, frozen=True):
    """Paths are absolute.  ``memory_mib`` in MiB.  ``ulid`` ends up in our metadata, which a sweeper knows it by."""

    ulid: str
    site: str
    """Which agent's it is: two agents on one machine (a trial beside production) leave each other's VMs alone."""
    name: str
    domain_type: DomainType
    vcpus: int
    memory_mib: int
    kernel: str
    initrd: str  # empty where the kernel needs none
    cmdline: str
    disk: str
    backing: str
    seed: str  # empty: the drive has nothing in it
    tap: str
    channel: str
    console: str
    keeps_blocks: bool = False
    """The guest's discards are ignored: what is to be overwritten at the end isn't freed before."""
    below: str = ""
    """What ``backing`` itself is based on; empty where it stands alone."""
    memory: Memory | None = None
    owner: str = ""
    """``+UID:+GID`` that QEMU runs as; empty for what libvirt is configured to use."""


def domain_xml(spec: DomainSpec) -> str:
    """The domain of ``spec``, for ``virDomainCreateXML``."""
    ET.register_namespace("ironcd", METADATA)
    ET.register_namespace("qemu", _QEMU)
    root = ET.Element("domain", {"type": spec.domain_type})
    _text(root, "name", spec.name)
    ET.SubElement(root, "genid")
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{METADATA}}}runner", {"id": spec.ulid, "site": spec.site})
    _text(root, "memory", str(spec.memory_mib), {"unit": "MiB"})
    if spec.domain_type != "test":
        _add(_add(root, "memoryBacking"), "nosharepages")
    _text(root, "vcpu", str(spec.vcpus))
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", _machine(spec))
    _text(boot, "kernel", spec.kernel)
    if spec.initrd:
        _text(boot, "initrd", spec.initrd)
    _text(boot, "cmdline", spec.cmdline)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    root.extend(_cpu(spec))
    ET.SubElement(root, "clock", {"offset": "utc"})
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    if spec.owner and spec.domain_type != "test":
        label = ET.SubElement(root, "seclabel", {"type": "static", "model": "dac", "relabel": "yes"})
        _text(label, "label", spec.owner)
    devices = ET.SubElement(root, "devices")
    _disks(devices, spec)
    _link(devices, spec)
    _ports(devices, spec)
    if spec.domain_type != "test":
        if spec.memory is not None:
            root.append(_qemu_arguments(spec.memory, spec.memory_mib))
        root.append(_plain_cpu())
    return ET.tostring(root, encoding="unicode")


def empty_seed_xml() -> str:
    """The seed's drive with nothing in it, for a live update that ejects."""
    drive = ET.Element("disk", {"type": "file", "device": "cdrom"})
    ET.SubElement(drive, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(drive, "target", {"dev": SEED_TARGET, "bus": "scsi"})
    ET.SubElement(drive, "readonly")
    return ET.tostring(drive, encoding="unicode")


def owner_in(xml: str) -> tuple[str, str]:
    """(ULID, site) in the metadata of a domain's XML; empty where it has none of ours."""
    runner = ET.fromstring(xml).find(f"metadata/{{{METADATA}}}runner")  # noqa: S314 - libvirt's own answer
    return ("", "") if runner is None else (runner.get("id", ""), runner.get("site", ""))


def seed_source(xml: str) -> str | None:
    """Path of what lies in the seed's drive; None where it is empty."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    for drive in root.findall("devices/disk[@device='cdrom']"):
        source = drive.find("source")
        if source is not None:
            return source.get("file")
    return None


def qemu_group(capabilities: str) -> int | None:
    """The group that libvirt runs QEMU with, by its capabilities; None where the driver runs none."""
    root = ET.fromstring(capabilities)  # noqa: S314 - libvirt's own answer
    for model in root.findall("host/secmodel"):
        if model.findtext("model") != "dac":
            continue
        label = model.findtext("baselabel") or ""
        _, _, group = label.partition(":")
        number = group.removeprefix("+")
        return int(number) if number.isdigit() else None
    return None


def _machine(spec: DomainSpec) -> dict[str, str]:
    return {"arch": "i686"} if spec.domain_type == "test" else {"arch": "x86_64", "machine": "q35"}


def _cpu(spec: DomainSpec) -> list[ET.Element]:
    if spec.domain_type == "test":
        return []
    mode, migratable = ("host-passthrough", "on") if spec.domain_type == "kvm" else ("maximum", "off")
    return [ET.Element("cpu", {"mode": mode, "check": "none", "migratable": migratable})]


def _disks(devices: ET.Element, spec: DomainSpec) -> None:
    discard = "ignore" if spec.keeps_blocks else "unmap"
    disk = _add(devices, "disk", {"type": "file", "device": "disk"})
    _add(disk, "driver", {"name": "qemu", "type": "qcow2", "cache": "unsafe", "discard": discard})
    _add(disk, "source", {"file": spec.disk})
    if spec.backing:
        backing = _add(disk, "backingStore", {"type": "file"})
        _add(backing, "format", {"type": "qcow2"})
        image = _add(backing, "source", {"file": spec.backing})
        _add(image, "seclabel", {"model": "dac", "relabel": "no"})
        _below(_add(backing, "backingStore"), spec.below)
    _add(disk, "target", {"dev": "vda", "bus": "virtio"})
    if spec.domain_type != "test":
        _add(devices, "controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"})
    seed = _add(devices, "disk", {"type": "file", "device": "cdrom"})
    _add(seed, "driver", {"name": "qemu", "type": "raw"})
    if spec.seed:
        _add(seed, "source", {"file": spec.seed})
    _add(seed, "target", {"dev": SEED_TARGET, "bus": "scsi"})
    _add(seed, "readonly")


def _below(store: ET.Element, path: str) -> None:
    """The end of the chain of backing files, or one more link of it."""
    if not path:
        return
    store.set("type", "file")
    _add(store, "format", {"type": "qcow2"})
    image = _add(store, "source", {"file": path})
    _add(image, "seclabel", {"model": "dac", "relabel": "no"})
    _add(store, "backingStore")


def _qemu_arguments(memory: Memory, size_mib: int) -> ET.Element:
    """Libvirt has no words for this: QEMU merges a second ``-machine``, and its first memory stays untouched."""
    share = "on" if memory.use == "template" else "off"
    backend = f"memory-backend-file,id=ram,size={size_mib}M,mem-path={memory.path},share={share}"
    if memory.read_only:
        backend += ",readonly=on,rom=off"
    arguments = ["-object", backend, "-machine", "memory-backend=ram"]
    if memory.use == "clone":
        arguments += ["-incoming", "defer"]
    line = ET.Element(f"{{{_QEMU}}}commandline")
    for argument in arguments:
        ET.SubElement(line, f"{{{_QEMU}}}arg", {"value": argument})
    return line


def _plain_cpu() -> ET.Element:
    """Have libvirt read the CPU's features in three questions instead of 400, one for each: a third of a clone's time.

    It asks them of every QEMU that has this property, also where nothing is to be checked (``check="none"``); without it
    it reads the words of CPUID whole.
    """
    capabilities = ET.Element(f"{{{_QEMU}}}capabilities")
    ET.SubElement(capabilities, f"{{{_QEMU}}}del", {"capability": "cpu-unavailable-features"})
    return capabilities


def _link(devices: ET.Element, spec: DomainSpec) -> None:
    link = _add(devices, "interface", {"type": "ethernet"})
    _add(link, "mac", {"address": GUEST_MAC})
    _add(link, "target", {"dev": spec.tap, "managed": "no"})
    _add(link, "model", {"type": "virtio"})
    _add(link, "driver", {"name": "qemu"})


def _ports(devices: ET.Element, spec: DomainSpec) -> None:
    serial = _add(devices, "serial", {"type": "file"})
    _add(serial, "source", {"path": spec.console})
    _add(serial, "target", {"port": "0"})
    channel = _add(devices, "channel", {"type": "unix"})
    _add(channel, "source", {"mode": "bind", "path": spec.channel})
    _add(channel, "target", {"type": "virtio", "name": CHANNEL})
    rng = _add(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", {"model": "random"})
    _add(devices, "controller", {"type": "usb", "model": "none"})
    _add(devices, "memballoon", {"model": "none"})
    if spec.domain_type != "test":
        _add(devices, "panic", {"model": "isa"})


def _add(parent: ET.Element, tag: str, attributes: Mapping[str, str] | None = None) -> ET.Element:
    return ET.SubElement(parent, tag, dict(attributes or {}))


def _text(parent: ET.Element, tag: str, text: str, attributes: Mapping[str, str] | None = None) -> None:
    _add(parent, tag, attributes).text = text
