"""What becomes of a clone's command line where no libvirt hands anything over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from bench.start_peers import rewritten
from orchestrator.host.template_files import Template

TEMPLATE = Template(Path("/t/key"), SimpleNamespace(key="key"))
GIVEN = [
    "/usr/bin/qemu-system-x86_64", "-name", "guest=ironcd-x,debug-threads=on", "-S",
    "-object", '{"qom-type":"secret","id":"masterKey0","file":"/var/lib/libvirt/qemu/x/master-key.aes"}',
    "-machine", "pc-q35-7.2,usb=off", "-no-user-config", "-nodefaults",
    "-chardev", "socket,id=charmonitor,fd=22,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor,mode=control",
    "-kernel", "/s/boot/ironcd-x/vmlinuz", "-initrd", "/s/boot/ironcd-x/initrd",
    "-blockdev", '{"driver":"file","filename":"/t/key/disk.qcow2","node-name":"b"}',
    "-blockdev", '{"driver":"file","filename":"/s/disks/ironcd-x.qcow2","node-name":"a"}',
    "-netdev", '{"type":"tap","fd":"25","id":"hostnet0"}',
    "-add-fd", "set=0,fd=24,opaque=serial0-log", "-chardev", "file,id=charserial0,path=/dev/fdset/0",
    "-chardev", "socket,id=charchannel0,fd=21,server=on,wait=off", "-sandbox", "on,obsolete=deny",
    "-object", "memory-backend-file,id=ram,size=64M,mem-path=/proc/7/fd/9,share=off", "-incoming", "defer",
]  # fmt: skip


def test_machine_and_devices_stay_and_what_was_handed_over_is_opened_by_qemu():
    made = rewritten(GIVEN, TEMPLATE, disk="/d/new.qcow2", tap="ic0", monitor="/m.qmp", channel="/c.sock")
    text = " ".join(made)
    assert made[0] == GIVEN[0]
    for stays in ("-machine pc-q35-7.2,usb=off", "-nodefaults", "/t/key/disk.qcow2", "-incoming defer"):
        assert stays in text
    for gone in ("masterKey0", "fd=", "ironcd-x", "/proc/7"):
        assert gone not in text, gone
    assert not {"-S", "-name", "-sandbox", "-add-fd"} & set(made)
    for new in ("path=/m.qmp,server=on", "path=/c.sock,server=on", '"ifname": "ic0"', '"filename":"/d/new.qcow2"'):
        assert new in text, new
    assert "-kernel /t/key/kernel -initrd /t/key/initrd" in text
    assert "mem-path=/t/key/ram,share=off" in text
