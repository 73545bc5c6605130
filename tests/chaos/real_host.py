"""One host of the real tier: the shipped agent (`tests.chaos.real_agent`) and gateway, in a namespace of their own.

Real are HTTP, records, seeds, disks, channels' sockets, taps, chains and the gateway.  Libvirt's in-memory driver has
domains and no guests: a scripted one (`tests.chaos.guest`) opens the channel's socket where the agent has made a domain,
as QEMU would, and once that is resumed reads its registration from the seed and speaks.  Such a domain lives in the agent's process, so an agent
that is killed takes its machines with it, as a host's crash does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrator.core.names import names_of
from orchestrator.core.settings import HostSettings
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.system.process import run
from tests.chaos.guest import Guest
from tests.chaos.machine import FOREIGN_FILES

if TYPE_CHECKING:
    from tests.chaos.real_city import RealCity

LOOK_S = 0.05
FOREIGN_TABLE = "somebodys"
_JIT = re.compile(rb"eyI[A-Za-z0-9+/=]{100,}")


class RealGuest(Guest):
    tick_s = 1.0
    renew_s = 1.0
    retry_s = 0.5
    machine: RealHost  # type: ignore[assignment]
    writer: asyncio.StreamWriter | None = None

    def _says(self, line: bytes) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(line)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The agent's end of the channel, until it is closed: the machine goes with it."""
        self.writer = writer
        try:
            while not self.machine.is_resumed(self.ulid):
                if reader.at_eof():
                    return
                await asyncio.sleep(LOOK_S)
            self.began = self.city.loop.time()
            self._jit = self.machine.jit_of(self.ulid)
            self.opened()
            while line := await reader.readline():
                if self.alive:
                    self._do(self._session.heard(line, self.city.loop.time()))
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()
            self.machine.stops(self.ulid, "destroyed")


class RealHost:
    def __init__(self, city: RealCity, name: str, folder: Path, netns: str, control_url: str) -> None:
        self.city = city
        self.name = name
        (folder / name).mkdir()
        self.token_file = folder / name / "token"
        self.token_file.write_text(f"token-of-{name}")
        self.token_file.chmod(0o600)
        self.settings = HostSettings(
            name=name, control_url=control_url, token_file=str(self.token_file), state_dir=str(folder / name / "s"),
            cache_dir=str(folder / name / "c"), run_dir=str(folder / name / "r"), libvirt_uri="test:///default",
            netns=netns, upstream_dns=("127.0.0.1:9",), reserve_memory_mib=0, reserve_disk_gib=0,
        )  # fmt: skip
        self.settings_file = folder / name / "settings.json"
        self.settings_file.write_bytes(msgspec.json.encode(self.settings))
        self.paths = host_paths(self.settings)
        make_folders(self.paths)
        self.guests: dict[str, RealGuest] = {}
        self.known: set[str] = set()
        """Runners whose machine was made here."""
        self.dying = False
        """Its agent is being killed: what ends now ends by that."""
        self._resumed: set[str] = set()
        self._servers: dict[str, asyncio.Server] = {}
        self._records = Records(self.paths.records)
        self._make_image()
        for place in (self.paths.disks, self.paths.seeds):
            for file in FOREIGN_FILES:
                (place / file).write_text("not ours")

    def _make_image(self) -> None:
        place = self.paths.images / "d1"
        place.mkdir(parents=True)
        run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / "disk.qcow2"), "16M"])
        for part in ("vmlinuz", "initrd"):
            (place / part).write_bytes(b"x")
        facts = {"name": "default", "digest": "sha256:d1", "runner_version": "2.336.0"}
        (place / "manifest.json").write_text(json.dumps(facts))
        (self.paths.images / "default").symlink_to("d1")

    def nft(self, *words: str) -> str:
        return run(["ip", "netns", "exec", self.settings.netns, "nft", *words])

    def plant(self) -> None:
        """Somebody else's rules, once the agent has made the namespace."""
        self.nft("add", "table", "inet", FOREIGN_TABLE)

    # Its guests

    async def watch(self) -> None:
        """Have a guest for each domain that was made."""
        while True:
            records = {record.id: record for record in self._records.load()}
            for ulid, record in records.items():
                if (
                    record.has("domain_started")
                    and not record.has("end_begun")
                    and ulid not in self.known | self.guests.keys()
                ):
                    await self._born(ulid)
            for ulid, guest in list(self.guests.items()):
                if guest.writer is None and (ulid not in records or records[ulid].is_proved_gone):
                    self._came_late(ulid)
            self._resumed |= {ulid for ulid, record in records.items() if record.released}
            await asyncio.sleep(LOOK_S)

    async def _born(self, ulid: str) -> None:
        self.known.add(ulid)
        guest = RealGuest(self, ulid, "", boot_s=self.city.rng.uniform(0.05, 0.3))  # type: ignore[arg-type]
        self.guests[ulid] = guest
        channel = self.paths.channels / names_of(ulid).channel
        self._servers[ulid] = await asyncio.start_unix_server(guest.talk, str(channel))

    def _came_late(self, ulid: str) -> None:
        """The domain was gone before its guest's socket, which QEMU makes with the domain, was there."""
        self.stops(ulid, "destroyed")
        (self.paths.channels / names_of(ulid).channel).unlink(missing_ok=True)

    def is_resumed(self, ulid: str) -> bool:
        return ulid in self._resumed

    def jit_of(self, ulid: str) -> str:
        seed = self.paths.seeds / names_of(ulid).seed
        found = _JIT.search(seed.read_bytes()) if seed.exists() else None
        return found[0].decode() if found else ""

    def stops(self, ulid: str, why: str) -> None:
        guest = self.guests.pop(ulid, None)
        server = self._servers.pop(ulid, None)
        if server is not None:
            server.close()
        if guest is not None:
            guest.end()
            if guest.writer is not None:
                guest.writer.close()
            self.city.guest_ended(self, guest, "crashed" if self.dying else why)  # type: ignore[arg-type]
            self.city.silent(names_of(ulid).runner)

    def agent_died(self) -> None:
        """And with it the in-memory driver, and every domain of its."""
        for ulid in list(self.guests):
            self.stops(ulid, "crashed")
        self.dying = False

    def says(self, *_: object) -> None:
        """The guest has the socket itself."""

    def powers_off(self, _ulid: str, guest: RealGuest) -> None:
        """The in-memory driver's domains end only by the agent's hand."""

    def flushes(self) -> None:
        """Another program deletes the agent's rules."""
        with contextlib.suppress(Exception):
            self.nft("delete", "table", "inet", "ironcd")

    # What is there

    def left(self) -> dict[str, list[str]]:
        """What is on it with a name of ours.  ``domains``: guests whose channel the agent never let go."""
        rules = self.nft("-j", "list", "ruleset")
        links = run(["ip", "-j", "link", "show"]) + run(["ip", "-n", self.settings.netns, "-j", "link", "show"])
        named = {ulid: names_of(ulid) for ulid in self.known}
        return {
            "domains": sorted(self.guests),
            "disks": _ours(self.paths.disks) + _ours(self.paths.boot),
            "seeds": _ours(self.paths.seeds),
            "taps": sorted(names.tap for names in named.values() if f'"{names.tap}"' in links),
            "chains": sorted(set(re.findall(r'"((?:vm|l2)_ic[0-9a-z]{13})"', rules))),
            "links": sorted(path.name for path in self.paths.links.iterdir()),
            "channels": _ours(self.paths.channels) + _ours(self.paths.consoles),
            "records": sorted(path.name for path in self.paths.records.iterdir()),
        }

    def foreign_gone(self) -> list[str]:
        found = [] if FOREIGN_TABLE in self.nft("list", "tables") else [FOREIGN_TABLE]
        for place in (self.paths.disks, self.paths.seeds):
            found += [file for file in FOREIGN_FILES if not (place / file).exists()]
        return [f"{self.name}: {what}" for what in found]


def _ours(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in FOREIGN_FILES)
