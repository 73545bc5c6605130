"""The link, once cloud-init has written down how it is configured: systemd-networkd runs already, and is told to look."""

from __future__ import annotations

import contextlib
import glob
import os
import signal

CONFIGURED = "/etc/systemd/network/10-cloud-init-*.network"
RESOLV_CONF = "/etc/resolv.conf"
ROUTES = "/proc/net/route"


def apply() -> None:
    """Name the resolvers, and have systemd-networkd configure the link."""
    name_resolvers()
    for pid in processes("systemd-network"):  # the kernel cuts a name off after 15 bytes
        os.kill(pid, signal.SIGHUP)


def name_resolvers(pattern: str = CONFIGURED, target: str = RESOLV_CONF) -> None:
    servers = []
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition("=")
                if key.strip() == "DNS":
                    servers += value.split()
    made = f"{target}.ironcd"  # a link to what nobody writes may stand there
    with open(made, "w", encoding="ascii") as file:
        file.writelines(f"nameserver {server}\n" for server in servers)
    os.replace(made, target)


def is_up(path: str = ROUTES) -> bool:
    """There is a way out: a route to 0.0.0.0 by a gateway."""
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return any(line.split()[1:2] == ["00000000"] for line in file)
    return False


def processes(name: str, folder: str = "/proc") -> list[int]:
    found = []
    for entry in os.listdir(folder):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"{folder}/{entry}/comm", encoding="utf-8") as file:
                if file.read().strip() == name:
                    found.append(int(entry))
    return found
