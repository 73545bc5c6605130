"""``python -m bench.free_pages``: what free-page reporting gives back of a guest's memory, by what that memory is; see ADR 21.

A small guest (the image's kernel, busybox, nothing else) fills 300 MiB, frees them and waits.  Its memory is what a machine has
that boots; what a clone would have if it mapped its template's file; and what it has: a sealed copy, or from QEMU 8.2 on a file
that is opened for reading only.  The template's content is compared before and after.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from bench.machine import scratch
from bench.start_memory import MIB, private_mib_of
from orchestrator.host.template_files import digest_of
from orchestrator.host.template_memory import opens_read_only, seal
from orchestrator.surface.demo.image import NAME, ensure_image
from orchestrator.surface.demo.lab import CACHE
from orchestrator.system.process import environment, run
from runner_image.initrd import Entry, cpio

Kind = Literal["booted", "file", "sealed", "read-only"]
TITLES: dict[Kind, str] = {
    "booted": "memory of its own, as of a machine that boots",
    "file": "the template's file, mapped privately",
    "sealed": "a sealed copy of it, as clones have it with QEMU before 8.2",
    "read-only": "the file opened for reading only, as clones have it from 8.2 on",
}
SIZE_MIB, FILLED_MIB = 768, 300
GUEST_WITHIN_S, BACK_WITHIN_S = 180.0, 20.0
"""How long a guest may take to its next word; how long it is watched for pages that come back."""
MODULE = "virtio_balloon.ko"

_INIT = f"""#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
$bb insmod /modules/{MODULE}
$bb mount -t tmpfs -o size=100% tmp /many
$bb dd if=/dev/zero of=/many/pages bs=1M count={FILLED_MIB} 2>/dev/null
echo FILLED >/dev/ttyS0
$bb sleep 2
$bb rm /many/pages
echo FREED >/dev/ttyS0
$bb sleep 3600
"""


class Seen(msgspec.Struct, frozen=True):
    """Private MiB of QEMU, and what became of the template.  ``said``: by QEMU itself, its last line."""

    kind: Kind
    reporting: bool
    filled: float
    after: float
    template: str
    said: str


def observe(kind: Kind, folder: Path, *, reporting: bool) -> Seen:
    """Let one guest fill and free its memory.  Raises RuntimeError where it doesn't get there."""
    image, console, template = CACHE / "images" / NAME, folder / "console", folder / "template"
    console.write_bytes(b"")
    _make_template(template)
    before, sealed = digest_of(template), -1
    if kind == "sealed":
        sealed = os.memfd_create("template", os.MFD_ALLOW_SEALING)
        os.ftruncate(sealed, SIZE_MIB * MIB)
        digest_of(template, lambda place, data: _copy(sealed, place, data))
        seal(sealed)
    process = subprocess.Popen(
        _argv(image, folder, _memory(kind, template, sealed), reporting=reporting),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("wb"),
        pass_fds=[sealed] if sealed >= 0 else [],
        env=environment(),
    )
    try:
        _until(lambda: b"FILLED" in console.read_bytes(), process, GUEST_WITHIN_S)
        filled = private_mib_of(process.pid)
        _until(lambda: b"FREED" in console.read_bytes(), process, GUEST_WITHIN_S)
        deadline = time.monotonic() + BACK_WITHIN_S
        while private_mib_of(process.pid) > filled - FILLED_MIB / 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(2)
        after = private_mib_of(process.pid)
    finally:
        process.kill()
        process.wait()
        if sealed >= 0:
            os.close(sealed)
    changed = "damaged" if digest_of(template) != before else "as it was"
    said = (folder / "errors").read_text(errors="replace").strip().splitlines()
    return Seen(kind, reporting, filled, after, "" if kind == "booted" else changed, said[-1] if said else "")


def _copy(target: int, place: int, data: bytes) -> None:
    os.pwrite(target, data, place)


def _make_template(path: Path) -> None:
    """No page of it is zero, so that a hole shows."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        for _ in range(SIZE_MIB):
            file.write(b"template" * (MIB // 8))


def _memory(kind: Kind, template: Path, sealed: int) -> str:
    if kind == "booted":
        return f"memory-backend-ram,id=ram,size={SIZE_MIB}M"
    path = f"/proc/self/fd/{sealed}" if kind == "sealed" else str(template)
    read_only = ",readonly=on,rom=off" if kind == "read-only" else ""
    return f"memory-backend-file,id=ram,size={SIZE_MIB}M,mem-path={path},share=off{read_only}"


def _argv(image: Path, folder: Path, memory: str, *, reporting: bool) -> list[str]:
    return [
        *("qemu-system-x86_64", "-machine", "q35,accel=tcg,memory-backend=ram", "-cpu", "max", "-object", memory),
        *("-m", str(SIZE_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *(
            "-kernel",
            str(image / "vmlinuz"),
            "-initrd",
            str(folder / "initrd"),
            "-append",
            "console=ttyS0 loglevel=4 panic=1",
        ),
        *("-serial", f"file:{folder / 'console'}"),
        *("-device", f"virtio-balloon-pci,free-page-reporting={'on' if reporting else 'off'}"),
    ]


def make_initrd(image: Path, target: Path) -> None:
    """The image's initrd, with another script and one module more, which is in the base that the image was made from."""
    kernel = json.loads((image / "manifest.json").read_bytes())["kernel"]
    files = [
        Entry("many", stat.S_IFDIR | 0o755),
        Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
        Entry(f"modules/{MODULE}", stat.S_IFREG | 0o644, _module(CACHE / "bases", kernel)),
    ]
    target.write_bytes(
        (image / "initrd").read_bytes() + cpio(files)
    )  # of files with one name the kernel takes the last


def _module(bases: Path, kernel: str) -> bytes:
    for base in sorted(bases.glob("*.tar")):
        with tarfile.open(base) as archive:
            for member in archive:
                if kernel in member.name and member.name.endswith(f"/{MODULE}.xz"):
                    found = archive.extractfile(member)
                    assert found is not None
                    return lzma.decompress(found.read())
    raise RuntimeError(f"no base that an image was made from has {MODULE} of kernel {kernel}")


def _until(what: Callable[[], bool], process: subprocess.Popen[bytes], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the guest didn't get there (status of QEMU: {process.returncode})")
        time.sleep(0.05)


def main() -> int:
    ensure_image(CACHE, lambda _step: None)
    version = re.findall(r"version (\S+)", run(["qemu-system-x86_64", "--version"]))[0]
    table = Table("memory", "reporting", "filled, MiB", "freed, MiB", "template", "QEMU said", title=f"QEMU {version}")
    with scratch("pages") as folder:
        make_initrd(CACHE / "images" / NAME, folder / "initrd")
        for kind, reporting in (
            ("booted", False),
            ("booted", True),
            ("file", True),
            ("sealed", True),
            ("read-only", True),
        ):
            if kind == "read-only" and not opens_read_only(version):
                table.add_row(TITLES["read-only"], "", "", "", "", "this QEMU can't")
                continue
            seen = observe(kind, folder, reporting=reporting)  # type: ignore[arg-type]  # a literal in the tuple above
            figures = (f"{seen.filled:.0f}", f"{seen.after:.0f}")
            table.add_row(TITLES[seen.kind], "on" if reporting else "off", *figures, seen.template, seen.said)
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
