"""The host reboots under its VMs: every process is gone and with it the kernel's state; what was on the disk is stale.

On the agent of `test_agent`; its folders are real, and the one of ``/run`` is emptied as a boot empties it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.names import names_of
from orchestrator.host import agent as agent_module
from orchestrator.host import template_files, templates
from orchestrator.host.fakes import FakeGateway, FakeHypervisor, FakeTalk, FakeWall, FakeWires
from orchestrator.host.paths import make_folders
from orchestrator.host.record import Record, Records

from .test_agent import ONE, TWO, Host, make_image
from .test_pool import SMALL, PoolHost

LOST = "01JZZZZZZZZZZZZZZZZZZZZZZ3"


class Rebooting(PoolHost):
    def power_cut(self) -> None:
        """No process says goodbye; libvirt, the kernel and the gateway begin with nothing."""
        self.agent.close()
        self.hypervisor, self.wall, self.wires = FakeHypervisor(), FakeWall(), FakeWires()
        shutil.rmtree(self.paths.links.parent)
        make_folders(self.paths)
        self.gateway, self.talk = FakeGateway(self.paths.links), FakeTalk()

    def is_empty(self) -> bool:
        return self.files() == [] and self.hypervisor.ours() == [] and not self.wires.taps and not self.wall.vms


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rebooting]:
    boots = iter(["boot-1", "boot-2"])
    boot = next(boots)
    monkeypatch.setattr(agent_module, "boot_id", lambda: boot)
    made = Rebooting(tmp_path)
    make_image(made)

    def reboot() -> None:
        nonlocal boot
        made.power_cut()
        boot = next(boots)
        made.boot()

    made.reboot = reboot
    yield made
    made.agent.close()


def test_a_reboot_ends_every_vm_leaves_nothing_and_says_so(host):
    """A job in its middle, a runner half made, a machine that waits, a record that nobody speaks of any more."""
    waiting = host.one_waits()
    host.in_a_job(ONE)
    disk = host.paths.disks / names_of(ONE).disk
    disk.write_bytes(b"as if the disk had kept its name")
    (host.paths.seeds / names_of(ONE).seed).write_bytes(b"a seed that had not been taken yet")
    Records(host.paths.records).save(Record(id=TWO, machine=SMALL, vm="making", slot=7, marks={"accepted": 1.0}))
    (host.paths.disks / names_of(TWO).disk).write_bytes(b"half made")
    (host.paths.disks / names_of(LOST).disk).write_bytes(b"of no record")
    host.classes = ()
    host.reboot()
    host.tell()
    host.until(lambda: host.proved(ONE) and not host.agent.pool.ids())
    seen = host.agent.observe()
    assert seen.boot == "boot-2"
    assert [runner.id for runner in seen.runners if runner.vm == "running"] == []
    told = host.seen(ONE)
    assert (told.vm, told.failure.code) == ("crashed", "vm-vanished")
    assert "policy_bound" not in told.marks
    assert told.claim.run_id == 7, "which job it was is still known"
    for _ in range(3):
        host.pass_time(61)
    host.until(host.is_empty)
    assert list(host.paths.waiting.iterdir()) == []
    assert waiting not in host.waits()
    assert host.hypervisor.made == [], "no VM is made a second time"
    host.wish(ONE, wish="gone")
    host.pass_time(1)
    host.unwish(ONE)
    host.until(lambda: not host.agent.observe().runners)
    assert list(host.paths.records.iterdir()) == []


def test_before_anybody_is_heard_no_stale_record_is_told_as_running(host):
    host.in_a_job(ONE)
    host.reboot()
    host.agent.turn()
    assert host.seen(ONE).vm == "crashed"


def test_a_runner_whose_vm_never_ran_is_made_after_the_reboot(host):
    """Its registration is unused: the same wish is fulfilled, once."""
    host.classes = ()
    Records(host.paths.records).save(Record(id=TWO, machine=SMALL, vm="making", slot=7, marks={"accepted": 1.0}))
    (host.paths.disks / names_of(TWO).disk).write_bytes(b"half made")
    host.reboot()
    host.wish(TWO)
    host.until(lambda: host.runs(TWO))
    assert host.hypervisor.made == [names_of(TWO).domain]
    assert list(host.wires.taps) == [names_of(TWO).tap]


def test_a_template_that_was_half_made_goes(tmp_path: Path):
    made = Host(tmp_path)
    try:
        make_image(made)
        place = template_files.workplace(made.paths.templates, "of-the-boot-before")
        (place / template_files.RAM).write_bytes(bytes(4096))
        for path in (place / template_files.RAM, place):
            os.utime(path, (made.clock.now, made.clock.now))
        made.agent.close()
        made.boot()
        made.tell()
        made.pass_time(templates.LOOK_S + 1)
        assert place.exists(), "an agent beside ours may be building there"
        made.pass_time(templates.UNWANTED_S + 1)
        made.until(lambda: not place.exists())
    finally:
        made.agent.close()
