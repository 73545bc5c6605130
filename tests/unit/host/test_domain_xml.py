from __future__ import annotations

import xml.etree.ElementTree as ET

import msgspec
import pytest

from orchestrator.core.names import names_of
from orchestrator.host.domain_xml import (
    DomainSpec,
    Memory,
    domain_xml,
    empty_seed_xml,
    owner_in,
    qemu_group,
    seed_source,
)

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
NAMES = names_of(ULID)
SPEC = DomainSpec(
    ulid=ULID,
    site="ironcd",
    name=NAMES.domain,
    domain_type="kvm",
    vcpus=3,
    memory_mib=2048,
    kernel="/b/vmlinuz",
    initrd="/b/initrd",
    cmdline='root=/dev/vda quiet="<&>"',
    disk="/d/disk.qcow2",
    backing="/i/disk.qcow2",
    seed="/s/seed.iso",
    tap=NAMES.tap,
    channel="/c/x.sock",
    console="/l/x.log",
    owner="+1990000007:+64055",
)


def _root(**changes: object) -> ET.Element:
    return ET.fromstring(domain_xml(msgspec.structs.replace(SPEC, **changes)))


def test_size_and_boot():
    root = _root()
    assert root.get("type") == "kvm"
    assert root.findtext("name") == NAMES.domain
    assert root.findtext("vcpu") == "3"
    assert (root.find("memory").get("unit"), root.findtext("memory")) == ("MiB", "2048")
    assert root.find("os/type").get("machine") == "q35"
    assert root.findtext("os/kernel") == "/b/vmlinuz"
    assert root.findtext("os/initrd") == "/b/initrd"
    assert root.findtext("os/cmdline") == 'root=/dev/vda quiet="<&>"'
    assert root.find("genid") is not None


@pytest.mark.parametrize(("kind", "mode"), [("kvm", "host-passthrough"), ("qemu", "maximum")])
def test_cpu_follows_the_accelerator(kind, mode):
    assert _root(domain_type=kind).find("cpu").get("mode") == mode


def test_under_kvm_the_processor_has_nothing_that_qemu_refuses_to_save():
    assert _root(domain_type="kvm").find("cpu").get("migratable") == "on"


@pytest.mark.parametrize("kind", ["kvm", "qemu"])
def test_no_page_is_merged_with_another_machines(kind):
    assert _root(domain_type=kind).find("memoryBacking/nosharepages") is not None


def test_the_disk_is_an_overlay_whose_image_stays_roots():
    disk = _root().find("devices/disk[@device='disk']")
    assert disk.find("source").get("file") == "/d/disk.qcow2"
    assert disk.find("driver").get("cache") == "unsafe"
    assert disk.find("backingStore/source").get("file") == "/i/disk.qcow2"
    assert disk.find("backingStore/source/seclabel").attrib == {"model": "dac", "relabel": "no"}


@pytest.mark.parametrize(("keeps", "discard"), [(False, "unmap"), (True, "ignore")])
def test_blocks_that_are_to_be_overwritten_arent_freed_before(keeps, discard):
    assert _root(keeps_blocks=keeps).find("devices/disk[@device='disk']/driver").get("discard") == discard


def test_the_seed_is_a_drive_that_can_be_emptied():
    drive = _root().find("devices/disk[@device='cdrom']")
    assert (drive.find("target").get("bus"), drive.find("readonly") is not None) == ("scsi", True)
    assert seed_source(domain_xml(SPEC)) == "/s/seed.iso"
    empty = ET.fromstring(empty_seed_xml())
    assert empty.find("source") is None
    assert empty.find("target").attrib == drive.find("target").attrib


def test_the_link_is_a_tap_of_ours_and_every_guest_has_the_same_mac():
    link = _root().find("devices/interface")
    assert link.get("type") == "ethernet"
    assert link.find("target").attrib == {"dev": NAMES.tap, "managed": "no"}
    assert link.find("mac").get("address") == "02:00:00:00:00:01"


def test_channel_and_console():
    devices = _root().find("devices")
    assert devices.find("channel/source").attrib == {"mode": "bind", "path": "/c/x.sock"}
    assert devices.find("channel/target").attrib == {"type": "virtio", "name": "org.ironcd.0"}
    assert devices.find("serial").get("type") == "file"
    assert devices.find("serial/source").get("path") == "/l/x.log"
    assert devices.find("rng/backend").text == "/dev/urandom"


def test_nothing_that_a_runner_has_no_use_for():
    devices = _root().find("devices")
    assert {child.tag for child in devices} == {
        "disk", "controller", "interface", "serial", "channel", "rng", "memballoon", "panic",
    }  # fmt: skip
    assert devices.find("memballoon").get("model") == "none"
    assert devices.find("controller[@type='usb']").get("model") == "none"


def test_one_life():
    root = _root()
    assert {root.findtext(event) for event in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}


def test_qemu_runs_as_a_user_of_its_own():
    assert _root().findtext("seclabel/label") == "+1990000007:+64055"
    assert _root(owner="").find("seclabel") is None


def test_our_metadata_tells_whose_it_is():
    assert owner_in(domain_xml(SPEC)) == (ULID, "ironcd")
    assert owner_in("<domain><metadata/></domain>") == ("", "")
    assert owner_in("<domain/>") == ("", "")


def test_the_in_memory_driver_gets_what_it_understands():
    root = _root(domain_type="test")
    assert root.find("cpu") is None
    assert root.find("seclabel") is None


def test_the_group_of_qemu_is_read_off_the_capabilities():
    capabilities = """<capabilities><host><secmodel><model>none</model></secmodel>
      <secmodel><model>dac</model><baselabel type='kvm'>+64055:+108</baselabel></secmodel></host></capabilities>"""
    assert qemu_group(capabilities) == 108
    assert qemu_group("<capabilities><host/></capabilities>") is None


def _arguments(**changes: object) -> list[str]:
    found = _root(**changes).findall(f"{QEMU}commandline/*")
    return [str(argument.get("value")) for argument in found]


@pytest.mark.parametrize("kind", ["kvm", "qemu"])
def test_libvirt_isnt_to_ask_for_each_feature_of_the_cpu(kind):
    gone = [it.get("capability") for it in _root(domain_type=kind).iterfind(f"{QEMU}capabilities/{QEMU}del")]
    assert gone == ["cpu-unavailable-features"]


def test_a_machine_that_boots_has_its_memory_from_libvirt():
    assert _arguments() == []
    assert _arguments(memory=Memory("/m", "clone"), domain_type="test") == []


def test_a_templates_memory_is_written_to_its_file_and_nothing_is_loaded():
    backend, *rest = _arguments(memory=Memory("/t/ram", "template"))[1:]
    assert backend == "memory-backend-file,id=ram,size=2048M,mem-path=/t/ram,share=on"
    assert rest == ["-machine", "memory-backend=ram"]


@pytest.mark.parametrize(("read_only", "end"), [(False, ""), (True, ",readonly=on,rom=off")])
def test_a_clones_memory_is_its_own_from_the_first_write(read_only, end):
    backend, *rest = _arguments(memory=Memory("/t/ram", "clone", read_only=read_only))[1:]
    assert backend == "memory-backend-file,id=ram,size=2048M,mem-path=/t/ram,share=off" + end
    assert rest == ["-machine", "memory-backend=ram", "-incoming", "defer"]


def test_each_file_below_a_clones_disk_stays_roots():
    backing = _root(below="/t/base.qcow2").find("devices/disk[@device='disk']/backingStore")
    places = [
        (store.find("source").get("file"), store.find("source/seclabel").get("relabel"))
        for store in (backing, backing.find("backingStore"))
    ]
    assert places == [("/i/disk.qcow2", "no"), ("/t/base.qcow2", "no")]
    assert backing.find("backingStore/backingStore").attrib == {}


def test_a_seeds_drive_may_be_empty():
    assert seed_source(domain_xml(msgspec.structs.replace(SPEC, seed=""))) is None
