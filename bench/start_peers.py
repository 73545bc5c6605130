"""What stands beside a clone through libvirt: the same QEMU command by hand, and libvirt's own restore of a saved guest."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.start_host import Host, Vm
from orchestrator.core.names import names_of
from orchestrator.host import template_files
from orchestrator.host.disk import make_overlay
from orchestrator.host.qemu_process import PIDS
from orchestrator.host.template_files import Template
from orchestrator.surface.demo.lab import LIBVIRT
from orchestrator.system.process import environment, run

READY_WITHIN_S = 20.0
_DROPPED = ("-add-fd", "-sandbox", "-S", "-name", "-uuid")
_FLAGS = frozenset({"-S", "-no-user-config", "-nodefaults", "-no-hpet", "-no-reboot", "-no-shutdown"})


def arguments_of(vm: Vm) -> list[str]:
    """The command line of a VM's QEMU, as libvirt started it."""
    pid = int((PIDS / f"{vm.domain}.pid").read_text())
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


def by_hand(arguments: Sequence[str], host: Host, folder: Path) -> float:
    """Seconds from the start of QEMU with a clone's own arguments until its vCPUs run, over QEMU's monitor and no libvirt.

    What libvirt hands over as descriptors is opened by QEMU itself: its monitor, the guest's channel, the link.
    """
    vm = host.new()
    lease = host.parts.templates.lease(host.machine, host.image)
    tap, plan = names_of(vm.ulid).tap, host.plan(vm)
    host.parts.wires.make(tap)
    make_overlay(lease.template.file(template_files.DISK), plan.files.disk, size_gib=host.machine.disk_gib)
    monitor = folder / f"{vm.ulid}.qmp"
    argv = rewritten(
        arguments,
        lease.template,
        disk=str(plan.files.disk),
        tap=tap,
        monitor=str(monitor),
        channel=str(plan.files.channel),
    )
    state = os.open(lease.template.file(template_files.STATE), os.O_RDONLY)
    began = time.perf_counter()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[state],
        env=environment(),
    )
    try:
        with _connected(monitor, process) as link:
            qmp = _Qmp(link)
            qmp.ask("qmp_capabilities")
            qmp.ask("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})
            qmp.ask("migrate-incoming", {"uri": f"fd:{state}"})
            while qmp.ask("query-status")["status"] == "inmigrate":
                time.sleep(0.002)
            qmp.ask("cont")
            while not qmp.ask("query-status")["running"]:
                time.sleep(0.002)
        return time.perf_counter() - began
    finally:
        os.close(state)
        process.kill()
        process.wait()
        host.tidy(vm)


def rewritten(
    arguments: Sequence[str], template: Template, *, disk: str, tap: str, monitor: str, channel: str
) -> list[str]:
    """A clone's command line for a QEMU that nobody hands anything over: same machine, devices and places."""
    done, rest = [arguments[0]], list(arguments[1:])
    while rest:
        option = rest.pop(0)
        value = rest.pop(0) if option not in _FLAGS and rest else None
        if option in _DROPPED or (option == "-object" and value and "masterKey0" in value):
            continue
        if value is None:
            done.append(option)
            continue
        done += [option, _value(option, value, template, disk=disk, tap=tap, monitor=monitor, channel=channel)]
    return done


def _value(option: str, value: str, template: Template, *, disk: str, tap: str, monitor: str, channel: str) -> str:
    files = {"-kernel": template_files.KERNEL, "-initrd": template_files.INITRD}
    if option in files:
        return str(template.file(files[option]))
    if option == "-chardev" and "id=charmonitor" in value:
        return f"socket,id=charmonitor,path={monitor},server=on,wait=off"
    if option == "-chardev" and "id=charchannel0" in value:
        return f"socket,id=charchannel0,path={channel},server=on,wait=off"
    if option == "-chardev" and "id=charserial0" in value:
        return "null,id=charserial0"
    if option == "-netdev":
        return json.dumps(
            {"type": "tap", "ifname": tap, "script": "no", "downscript": "no", "vnet_hdr": True, "id": "hostnet0"}
        )
    if option == "-object" and "mem-path=" in value:
        return re.sub(r"mem-path=[^,]*", f"mem-path={template.file(template_files.RAM)}", value)
    if option == "-blockdev" and "/disks/" in value:
        return re.sub(r'("filename":")[^"]*/disks/[^"]*', rf"\g<1>{disk}", value)
    return value


class _Qmp:
    """QEMU's monitor; events between answers are skipped."""

    def __init__(self, link: socket.socket) -> None:
        self._file = link.makefile("rwb")
        self._file.readline()  # its greeting

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n")
        self._file.flush()
        while True:
            said = json.loads(self._file.readline())
            if "error" in said:
                raise RuntimeError(f"QEMU by hand refuses {command}: {said['error'].get('desc')}")
            if "return" in said:
                return said["return"]


def _connected(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(path))
        except OSError:
            link.close()
            if process.poll() is not None or time.monotonic() > deadline:
                error = process.stderr.read().decode(errors="replace")[-500:] if process.stderr else ""
                raise RuntimeError(f"QEMU by hand didn't start (status {process.returncode}): {error}") from None
            time.sleep(0.002)
            continue
        return link


def save(vm: Vm, folder: Path) -> Path:
    """Have libvirt save a machine that stands in front of its gate; the file with all of it."""
    file = folder / "saved"
    run(["virsh", "--connect", LIBVIRT, "save", vm.domain, str(file)], timeout_s=300)
    return file


def restore(vm: Vm, file: Path, host: Host) -> float:
    """Seconds that libvirt's restore of ``file`` takes until its vCPUs run; the machine is ended again."""
    hypervisor = host.parts.hypervisor
    began = time.perf_counter()
    run(["virsh", "--connect", LIBVIRT, "restore", str(file)], timeout_s=300)
    took = time.perf_counter() - began
    hypervisor.kill(vm.domain)
    hypervisor.destroy(vm.domain)
    deadline = time.monotonic() + READY_WITHIN_S
    while hypervisor.state(vm.domain) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    return took
