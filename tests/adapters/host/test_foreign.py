"""What belongs to somebody else stays, whatever the agent sweeps: libvirt's in-memory driver, real rules, real links, real files.

The agent is the shipped one, turned by hand with a clock of its own.  Beside what it has to sweep lies what only looks like that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.names import names_of
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired
from orchestrator.host.accelerator import Choice
from orchestrator.host.agent import ORPHAN_S, SWEEP_S, Agent
from orchestrator.host.fakes import FakeGateway, FakeTalk
from orchestrator.host.hypervisor import Libvirt
from orchestrator.host.links import Links
from orchestrator.host.nft import NamespaceThread
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.host.slots import Slots
from orchestrator.host.wall import Wall
from orchestrator.system.process import run

from .conftest import new_tap
from .test_agent import ONE, TWO, Clock

pytestmark = pytest.mark.real

FOREIGN_TAP = "icdt0"
FOREIGN_RULES = f"""
table inet theirs {{
  chain vm_{names_of(ONE).tap} {{
    counter
  }}
  chain ironcd {{
    type filter hook input priority 5; policy accept;
    counter
  }}
}}
table ip ironcd {{
  chain vm_{names_of(TWO).tap} {{
    counter
  }}
}}
"""


class Site:
    def __init__(self, folder: Path, namespace: NamespaceThread, wall: Wall, links: Links) -> None:
        self.settings = HostSettings(
            name="h1",
            state_dir=str(folder / "state"),
            cache_dir=str(folder / "cache"),
            run_dir=str(folder / "run"),
            netns=namespace.name,
        )
        self.paths = host_paths(self.settings)
        make_folders(self.paths)
        self.clock, self.namespace, self.wall, self.links = Clock(), namespace, wall, links
        self.libvirt = Libvirt("test:///default", namespace.name)
        parts = Parts(
            settings=self.settings,
            paths=self.paths,
            hypervisor=self.libvirt,
            wall=wall,
            wires=links,
            gateway=FakeGateway(self.paths.links),
            slots=Slots(self.settings.links_range),
            records=Records(self.paths.records),
            clock=self.clock,
            uptime=self.clock,
            talk=FakeTalk(),
        )
        self.agent = Agent(parts, Choice("tcg", "a test"))
        self.agent.begin()

    def plant_domain(self, name: str) -> None:
        xml = f"<domain type='test'><name>{name}</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
        self.libvirt._open().createXML(xml, 0)

    def rules_of(self, *table: str) -> str:
        return run(["ip", "netns", "exec", self.namespace.name, "nft", "list", "table", *table])

    def taps(self) -> str:
        return run(["ip", "-n", self.namespace.name, "-o", "link", "show"])

    def sweep_for_minutes(self) -> None:
        self.agent.wished(Desired("h1", 1, ()))
        for _ in range(3):
            for seconds in (SWEEP_S + 1, ORPHAN_S + 1):
                self.clock.now += seconds
                self.agent.turn()
                self.agent.check_wall()

    def close(self) -> None:
        self.agent.close()
        self.libvirt.close()


@pytest.fixture
def site(tmp_path: Path, namespace: NamespaceThread, wall: Wall, links: Links) -> Iterator[Site]:
    made = Site(tmp_path, namespace, wall, links)
    try:
        yield made
    finally:
        made.close()


def test_domains_of_others_stay_even_under_a_name_like_ours(site):
    alike = [names_of(ONE).domain, "ironcd-database", "somebodys"]
    for name in alike:
        site.plant_domain(name)
    site.sweep_for_minutes()
    assert [site.libvirt.state(name) for name in alike] == ["running"] * 3
    for name in alike:
        site.libvirt._open().lookupByName(name).destroy()


def test_tables_and_chains_of_others_stay_even_under_a_name_like_ours(site, tmp_path):
    script = tmp_path / "theirs.nft"
    script.write_text(FOREIGN_RULES)
    run(["ip", "netns", "exec", site.namespace.name, "nft", "-f", str(script)])
    before = [site.rules_of("inet", "theirs"), site.rules_of("ip", "ironcd")]
    stray = ["ip", "netns", "exec", site.namespace.name, "nft", "add", "chain", "inet", "ironcd", names_of(ONE).chain]
    run(stray)
    site.sweep_for_minutes()
    assert names_of(ONE).chain not in site.rules_of("inet", "ironcd"), "ours was swept"
    assert [site.rules_of("inet", "theirs"), site.rules_of("ip", "ironcd")] == before
    assert site.wall.drift() == [], "and they are no fault of ours to complain of"


def test_links_of_others_stay(site):
    ours = new_tap()
    site.links.make(ours)
    site.links.move(ours)
    for name in (FOREIGN_TAP, "tap-of-theirs"):
        run(["ip", "-n", site.namespace.name, "tuntap", "add", "dev", name, "mode", "tap"])
    site.sweep_for_minutes()
    left = site.taps()
    assert ours not in left, "ours was swept"
    assert f" {FOREIGN_TAP}:" in left
    assert " tap-of-theirs:" in left


def test_files_of_others_stay_in_every_folder_that_is_swept(site):
    paths, names = site.paths, names_of(TWO)
    ours = [paths.disks / names.disk, paths.seeds / names.seed, paths.consoles / f"{names.domain}.log"]
    theirs = [
        paths.disks / "database.qcow2",
        paths.disks / f"{names.disk}.backup",
        paths.disks / "ironcd-notaulid.qcow2",
        paths.seeds / "ironcd-seed.iso",
        paths.channels / "qemu.sock",
        paths.consoles / "messages.log",
        paths.links / "eth0.json",
        paths.boot / "vmlinuz",
    ]
    for path in (*ours, *theirs):
        path.write_bytes(b"precious")
    site.sweep_for_minutes()
    with contextlib.suppress(AssertionError):
        _until_gone(site, ours)
    assert [path.name for path in ours if path.exists()] == [], "ours were swept"
    assert [path.name for path in theirs if not path.exists()] == []
    assert {path.read_bytes() for path in theirs} == {b"precious"}


def _until_gone(site: Site, paths: list[Path]) -> None:
    for _ in range(600):
        if not any(path.exists() for path in paths):
            return
        site.agent.wake.wait(0.1)
        site.agent.wake.clear()
        site.clock.now += 3
        site.agent.turn()
    raise AssertionError(paths)
