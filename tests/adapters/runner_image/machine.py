"""A VM from an image under plain QEMU, and the host's side of its channel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from base64 import b64encode
from pathlib import Path

from orchestrator.core.names import Names
from orchestrator.host.seed import make_seed
from orchestrator.host.slots import Slot
from runner_image.store import Image


class Machine:
    """Software emulation, no network behind the link, the seed in a SCSI drive: the devices that a host gives a VM."""

    def __init__(self, folder: Path, image: Image, names: Names, slot: Slot, *, jit: str, authority: str) -> None:
        self.disk, self.seed, self.console = folder / "disk.qcow2", folder / "seed.iso", folder / "console.log"
        self._channel_path, self._monitor_path = folder / "channel", folder / "monitor"
        make_seed(self.seed, names, slot, jit=jit, cas=(authority,))
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.folder / "disk.qcow2")]
        subprocess.run([*create, str(self.disk), "10G"], check=True)
        self.started = time.monotonic()
        self.process = subprocess.Popen(self._command(image), stdin=subprocess.DEVNULL)
        self._link: socket.socket | None = None
        self._rest = b""
        self.heard: list[tuple[float, dict[str, object]]] = []

    def _command(self, image: Image) -> list[str]:
        return [
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(image.folder / "vmlinuz"), "-initrd", str(image.folder / "initrd")),
            *("-append", image.manifest.cmdline, "-serial", f"file:{self.console}"),
            *("-drive", f"file={self.disk},if=virtio,cache=unsafe", "-device", "virtio-scsi-pci"),
            *("-drive", f"if=none,id=seed,file={self.seed},format=raw,readonly=on", "-device", "scsi-cd,drive=seed"),
            *("-netdev", "user,id=link,restrict=on", "-device", "virtio-net-pci,netdev=link,mac=02:00:00:00:00:01"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=channel,path={self._channel_path},server=on,wait=off"),
            *("-device", "virtserialport,chardev=channel,name=org.ironcd.0"),
            *("-monitor", f"unix:{self._monitor_path},server=on,wait=off"),
        ]

    def connect(self) -> None:
        self._link, self._rest = _connect(self._channel_path), b""

    def disconnect(self) -> None:
        assert self._link is not None
        self._link.close()
        self._link = None

    def send(self, **order: object) -> None:
        assert self._link is not None
        self._link.sendall(json.dumps(order).encode() + b"\n")

    def open_gate(self) -> None:
        """As the host's agent does, once the machine says hello."""
        self.send(m="open", now_ns=time.time_ns(), random=b64encode(os.urandom(64)).decode())

    def next(self, within_s: float) -> dict[str, object] | None:
        """The next message that isn't a heartbeat, nor a question for the time, which is answered; None where there is none within that time, or ever."""
        assert self._link is not None
        deadline = time.monotonic() + within_s
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                message = json.loads(line)
                self.heard.append((time.monotonic() - self.started, message))
                if message["m"] == "what_time":
                    self.send(m="time", now_ns=time.time_ns())
                elif message["m"] != "beat":
                    return message
                continue
            self._link.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._link.recv(4096)
            except TimeoutError:
                return None
            if not data:
                return None
            self._rest += data

    def eject_seed(self) -> None:
        with _connect(self._monitor_path) as monitor:
            monitor.sendall(b"eject -f seed\n")
            time.sleep(0.5)
            answer = monitor.recv(4096).decode()
            assert "Error" not in answer, answer
        self.seed.unlink()

    def end(self) -> None:
        if self._link is not None:
            self._link.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def story(self) -> str:
        """For a test that fails: what was heard, and the console's end."""
        console = self.console.read_text(errors="replace")[-4000:] if self.console.exists() else ""
        return "\n".join(f"{at:7.2f} s  {message}" for at, message in self.heard) + "\n" + console


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(path))
        except OSError:
            link.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return link
