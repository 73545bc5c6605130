"""The image of the demo started by hand: one QEMU command and a NoCloud seed, to the end of cloud-init."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from pathlib import Path

import pycdlib

from orchestrator.host.guest import encode, opening
from orchestrator.host.ruleset import GUEST_MAC
from orchestrator.surface.demo.image import NAME
from orchestrator.surface.demo.lab import CACHE
from orchestrator.surface.demo.scenario import CLASS
from orchestrator.system.process import environment, run

MARKER = "bench: cloud-init is done"
WITHIN_S = 300.0


def boot_by_hand(folder: Path, *, accelerator: str) -> float:
    """Seconds from the start of QEMU until the last command of the seed has run.  Raises RuntimeError where it never does."""
    image = CACHE / "images" / NAME
    console = folder / "console.log"
    disk, seed = folder / "disk.qcow2", folder / "seed.iso"
    backing = str((image / "disk.qcow2").resolve())
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, str(disk), f"{CLASS['disk_gib']}G"])
    _make_seed(seed)
    began = time.monotonic()
    process = subprocess.Popen(
        _argv(image, disk, seed, console, accelerator),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    link = socket.socket(socket.AF_UNIX)  # held until the end: what is sent to a port that is then closed may be lost
    try:
        _open_gate(link, folder / "channel", began + WITHIN_S)
        while not console.exists() or MARKER not in console.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() - began > WITHIN_S:
                said = console.read_text(errors="replace")[-800:] if console.exists() else ""
                raise RuntimeError(f"the guest by hand didn't get there (status {process.returncode}): {said}")
            time.sleep(0.02)
        return time.monotonic() - began
    finally:
        link.close()
        process.kill()
        process.wait()


def _open_gate(link: socket.socket, path: Path, deadline: float) -> None:
    """What the host's agent does: the guest waits for it in front of cloud-init."""
    while link.connect_ex(str(path)) != 0:
        if time.monotonic() > deadline:
            raise RuntimeError("the guest by hand has no channel")
        time.sleep(0.02)
    link.settimeout(max(1.0, deadline - time.monotonic()))
    while b'"hello"' not in (said := link.recv(4096)):
        if not said:
            raise RuntimeError("the guest by hand ended before it came to its gate")
    link.sendall(encode(opening()))


def _argv(image: Path, disk: Path, seed: Path, console: Path, accelerator: str) -> list[str]:
    cmdline = json.loads((image / "manifest.json").read_bytes())["cmdline"]
    cpu = "host" if accelerator == "kvm" else "max"
    return [
        *("qemu-system-x86_64", "-machine", f"q35,accel={accelerator}", "-cpu", cpu),
        *("-smp", str(CLASS["vcpus"]), "-m", str(CLASS["memory_mib"])),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"), "-append", cmdline),
        *("-drive", f"file={disk},if=virtio,format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-scsi-pci", "-drive", f"file={seed},if=none,id=seed,format=raw,media=cdrom,readonly=on"),
        *("-device", "scsi-cd,drive=seed", "-object", "rng-random,id=rng,filename=/dev/urandom"),
        *("-chardev", f"socket,id=channel,path={disk.with_name('channel')},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=org.ironcd.0"),
        *("-device", "virtio-rng-pci,rng=rng", "-netdev", "user,id=net,restrict=on"),
        *("-device", f"virtio-net-pci,netdev=net,mac={GUEST_MAC}", "-serial", f"file:{console}"),
    ]


def _make_seed(path: Path) -> None:
    link = {"match": {"macaddress": GUEST_MAC}, "dhcp4": False, "link-local": [], "addresses": ["10.0.2.15/24"]}
    documents = {
        "meta-data": json.dumps({"instance-id": "bench", "local-hostname": "bench"}),
        "user-data": "#cloud-config\n" + json.dumps({"runcmd": [f"echo '{MARKER}' >/dev/ttyS0"]}),
        "network-config": json.dumps({"version": 2, "ethernets": {"link": link}}),
    }
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, text in documents.items():
        data = text.encode()
        plain = name.upper().replace("-", "_")
        iso.add_fp(io.BytesIO(data), len(data), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
