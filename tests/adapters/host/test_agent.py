"""The whole agent on stand-ins for libvirt, nftables, links, gateway and guests; folders, disks and seeds are real."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from orchestrator.core.decided import Decided, Drain
from orchestrator.core.errors import HostError
from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Desired, DesiredRunner, ObservedRunner, Scope
from orchestrator.host import agent as agent_module
from orchestrator.host import erase as erase_module
from orchestrator.host import guest, template_files
from orchestrator.host.accelerator import Choice, choose
from orchestrator.host.agent import Agent
from orchestrator.host.domain_xml import Memory
from orchestrator.host.fakes import FakeGateway, FakeHypervisor, FakeTalk, FakeWall, FakeWires
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.host.slots import Slots
from orchestrator.host.templates import Cold, Templates
from orchestrator.system.process import run

ONE = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
TWO = "01JZZZZZZZZZZZZZZZZZZZZZZ2"
BOOTED = 1_799_999_000.0
JIT = "eyJvbmUiOiAi" + "QUJDREVGR0g" * 20
BASELINE = Policy("enforce", (Rule("builtin#1", host="api.github.com"),))
JOBS = Policy("enforce", (*BASELINE.rules, Rule("org#1", cidr="203.0.113.0/24", ports=(22,))))


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A host whose agent can be killed and started anew, while everything else goes on."""

    def __init__(self, folder: Path) -> None:
        self.settings = HostSettings(
            name="h1",
            state_dir=str(folder / "state"),
            cache_dir=str(folder / "cache"),
            run_dir=str(folder / "run"),
            reserve_memory_mib=0,
            reserve_disk_gib=0,
        )
        self.paths = host_paths(self.settings)
        make_folders(self.paths)
        self.clock = Clock()
        self.set_ahead_s = 0.0
        """By how much somebody has set the host's clock ahead."""
        self.hypervisor, self.wall, self.wires = FakeHypervisor(), FakeWall(), FakeWires()
        self.gateway, self.talk = FakeGateway(self.paths.links), FakeTalk()
        self.wishes: dict[str, DesiredRunner] = {}
        self.generation = 0
        self.decided = Decided()
        self.agent: Agent
        self.boot()

    def boot(self) -> None:
        """Start an agent with nothing in its memory."""
        parts = Parts(
            settings=self.settings,
            paths=self.paths,
            hypervisor=self.hypervisor,
            wall=self.wall,
            wires=self.wires,
            gateway=self.gateway,
            slots=Slots(self.settings.links_range),
            records=Records(self.paths.records),
            clock=self.clock,
            uptime=lambda: self.clock.now - BOOTED - self.set_ahead_s,
            talk=self.talk,
            qemu_group=self.hypervisor.group(),
        )
        self.parts = parts
        self.agent = Agent(parts, Choice("tcg", "a test"))
        self.agent.begin()

    def wish(self, ulid: str = ONE, **changes: object) -> None:
        before = self.wishes.get(ulid) or DesiredRunner(
            id=ulid,
            wish="run",
            machine=MachineClass("ironcd", vcpus=1, memory_mib=64, disk_gib=1, start="cold"),
            identity=Identity(runner=ulid, org="acme"),
            policy=BASELINE,
            generation=1,
            jit=JIT,
            boot_by=self.clock.now + 300,
            end_by=self.clock.now + 3600,
        )
        self.wishes[ulid] = msgspec.structs.replace(before, **changes)
        self.tell()

    def unwish(self, ulid: str = ONE) -> None:
        self.wishes.pop(ulid)
        self.tell()

    def tell(self) -> None:
        self.generation += 1
        self.agent.wished(
            Desired("h1", self.generation, tuple(self.wishes.values()), decided=self.decided, at=self.at())
        )

    def at(self) -> float:
        """The control plane's time: nobody sets its clock."""
        return self.clock.now - self.set_ahead_s

    def set_clock(self, ahead_s: float) -> None:
        """Somebody sets the host's clock by ``ahead_s``."""
        self.clock.now += ahead_s
        self.set_ahead_s += ahead_s

    def seen(self, ulid: str = ONE) -> ObservedRunner | None:
        return next((found for found in self.agent.observe().runners if found.id == ulid), None)

    def until(self, what: Callable[[], object], *, seconds: float = 60.0) -> None:
        """Turn the agent until ``what`` holds; the clock stands still."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (what, self.seen(), self.agent.observe().problems)
            self.agent.turn()
            self.agent.wake.wait(0.02)
            self.agent.wake.clear()

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        for _ in range(3):
            self.agent.turn()
            time.sleep(0.02)

    def running(self, ulid: str = ONE) -> None:
        self.wish(ulid)
        self.until(lambda: self.hypervisor.state(names_of(ulid).domain) == "running" and not self.busy(ulid))

    def busy(self, ulid: str) -> bool:
        return bool(self.agent._runners[ulid].busy)

    def in_a_job(self, ulid: str = ONE) -> None:
        self.running(ulid)
        for message in (guest.Hello(), guest.JitTaken()):
            self.agent.heard(ulid, message)
        self.until(lambda: "seed_gone" in self.seen(ulid).marks)
        for message in (guest.RunnerStarted(pid=5), guest.Listening(), guest.JobStarted("acme/app", 7, 1, "build")):
            self.agent.heard(ulid, message)

    def proved(self, ulid: str = ONE) -> bool:
        seen = self.seen(ulid)
        return bool(seen and seen.proof and seen.proof.whole)

    def files(self) -> list[str]:
        """Every file of VMs on this host, without the records."""
        folders = (self.paths.disks, self.paths.boot, self.paths.seeds, self.paths.links, self.paths.channels)
        return sorted(entry.name for folder in folders for entry in folder.iterdir())


def make_image(host: Host, name: str = "default") -> None:
    place = host.paths.images / "0123"
    place.mkdir(exist_ok=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / "disk.qcow2"), "64M"])
    (place / "vmlinuz").write_bytes(b"kernel")
    (place / "initrd").write_bytes(b"initrd")
    manifest = {"name": name, "digest": "sha256:0123", "runner_version": "2.336.0", "presets": {"apt": ["deb.example"]}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    (host.paths.images / name).symlink_to("0123")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    make_image(made)
    yield made
    made.agent.close()


def test_a_vm_is_made_in_the_order_that_keeps_it_closed(host):
    host.running()
    marks = host.seen().marks
    order = ["accepted", "seed_made", "disk_made", "domain_started", "chain_installed"]
    assert [mark for mark in marks if mark in order] == order
    tap = names_of(ONE).tap
    assert [step for step, _ in host.wires.history] == ["make", "move", "up"]
    assert host.wall.present().chains == {tap}
    assert host.gateway.links[tap].policy == BASELINE
    assert host.hypervisor.state(names_of(ONE).domain) == "running"
    assert (host.seen().policy, host.seen().generation) == (BASELINE.digest, 1)


def test_the_link_isnt_raised_before_the_gateway_has_the_policy(host):
    host.gateway.lie = True
    host.wish()
    host.until(host.proved)
    assert "up" not in [step for step, _ in host.wires.history]
    assert host.seen().vm == "failed"
    assert host.seen().failure.code == "policy-not-in-force"


def test_the_jit_configuration_is_on_the_seed_only_and_goes_with_it(host):
    host.running()
    seed = host.paths.seeds / names_of(ONE).seed
    assert JIT.encode() in seed.read_bytes()
    assert seed.stat().st_mode & 0o777 == 0o600
    others = [path for path in host.paths.disks.parent.rglob("*") if path.is_file() and path != seed]
    others += [path for path in host.paths.links.parent.rglob("*") if path.is_file()]
    assert others
    assert not [path for path in others if JIT.encode() in path.read_bytes()]
    assert JIT not in msgspec.json.encode(host.agent.observe()).decode()
    host.agent.heard(ONE, guest.JitTaken())
    host.until(lambda: host.talk.said)
    assert "seed_gone" in host.seen().marks
    assert not seed.exists()
    assert not host.hypervisor.has_seed(names_of(ONE).domain)
    assert host.talk.said == [(ONE, guest.SeedGone())]


def test_the_runner_isnt_let_go_while_the_seed_stays(host, monkeypatch):
    host.running()
    monkeypatch.setattr(host.hypervisor, "eject_seed", lambda _name: False)
    host.agent.heard(ONE, guest.JitTaken())
    host.pass_time(2)
    assert "seed_gone" not in host.seen().marks
    assert host.talk.said == []
    monkeypatch.undo()
    host.pass_time(3)
    host.until(lambda: "seed_gone" in host.seen().marks)


def test_a_job_is_bound_before_its_steps_are_let_go(host):
    host.in_a_job()
    seen = host.seen()
    assert seen.claim.repository == "acme/app"
    assert "job_hint" in seen.marks
    host.pass_time(1)
    assert "policy_bound" not in host.seen().marks
    assert (ONE, guest.SeedGone()) == host.talk.said[-1]
    host.wish(policy=JOBS, generation=2, bound=True, identity=Identity(ONE, repo="acme/app", job_id=9), jit="")
    host.until(lambda: "steps_released" in host.seen().marks)
    tap = names_of(ONE).tap
    assert host.gateway.links[tap].policy == JOBS
    assert host.gateway.links[tap].identity.job_id == 9
    assert host.wall.present().ranges == {tap}
    assert host.talk.said[-1] == (ONE, guest.Bound(JOBS.digest, "enforce", 2))
    assert (host.seen().policy, host.seen().generation) == (JOBS.digest, 2)


def test_where_a_runner_is_registered_is_said_again_whatever_becomes_of_the_wish(host):
    host.running()
    assert host.seen().scope is None, "a control plane of the version before doesn't say"
    host.wish(scope=Scope(repo="acme/app"))
    host.until(lambda: host.seen().scope == Scope(repo="acme/app"))
    host.agent.close()
    host.paths.desired.unlink()
    host.boot()
    assert host.seen().scope == Scope(repo="acme/app")


def test_what_was_decided_of_the_host_is_said_again_after_its_agent_was_killed(host):
    host.decided = known = Decided("fan", 5.0, Drain(1.0, 2.0, "kernel"), 6.0)
    host.tell()
    assert host.agent.observe().decided == known
    host.agent.close()
    host.boot()
    assert host.agent.observe().decided == known
    host.decided = Decided()
    host.tell()
    assert host.agent.observe().decided == known, "a control plane that has forgotten it takes nothing back"
    host.decided = Decided(None, 7.0, None, 5.0)
    host.tell()
    assert host.agent.observe().decided == Decided(None, 7.0, known.drain, 6.0)


def test_a_full_disk_keeps_no_decision_from_being_said(host):
    path, aside = host.paths.decided, host.paths.decided.with_name("aside")
    path.mkdir()  # nothing can be put in its place
    host.decided = Decided("fan", 5.0)
    host.tell()
    assert host.agent.observe().decided == Decided("fan", 5.0)
    path.rename(aside)
    host.tell()
    assert msgspec.json.decode(path.read_bytes(), type=Decided) == Decided("fan", 5.0)


def test_steps_wait_as_long_as_the_gateway_hasnt_the_jobs_policy(host):
    host.in_a_job()
    host.gateway.lie = True
    host.wish(policy=JOBS, generation=2, bound=True)
    host.pass_time(1)
    assert not {"policy_bound", "steps_released"} & host.seen().marks.keys()
    host.gateway.lie = False
    host.pass_time(3)
    host.until(lambda: "steps_released" in host.seen().marks)


def test_the_guests_word_widens_nothing(host):
    host.in_a_job()
    host.pass_time(5)
    assert host.gateway.links[names_of(ONE).tap].policy == BASELINE
    assert host.seen().policy == BASELINE.digest


def test_a_policy_that_changes_in_the_middle_of_a_job_is_put_in_force(host):
    host.in_a_job()
    host.wish(policy=JOBS, generation=2, bound=True)
    host.until(lambda: "steps_released" in host.seen().marks)
    host.wish(policy=BASELINE, generation=3, bound=True)
    host.until(lambda: host.seen().generation == 3 and not host.wall.present().ranges)


def test_a_job_that_gets_no_policy_is_told_why(host):
    host.in_a_job()
    host.wish(refused=".ironcd/policy.yml:3: no such preset")
    host.until(lambda: (ONE, guest.Refused(".ironcd/policy.yml:3: no such preset")) in host.talk.said)
    host.pass_time(1)
    assert [order for _, order in host.talk.said if isinstance(order, guest.Refused)] == [host.talk.said[-1][1]]


def test_gone_is_proved_by_looking(host):
    host.in_a_job()
    host.wish(wish="gone", reason="job_completed", policy=JOBS, generation=2, bound=True)
    host.until(lambda: isinstance(host.talk.said[-1][1], guest.Refused))
    host.pass_time(31)  # past the moment that a job which waits for its policy has to fail by itself
    host.until(host.proved)
    assert host.files() == []
    assert host.wires.taps == {}
    assert host.wall.vms == {}
    assert host.gateway.links == {}
    assert host.hypervisor.ours() == []
    assert host.seen().vm == "absent"
    marks = host.seen().marks
    assert marks["end_begun"] <= marks["domain_gone"] <= marks["all_gone"]
    host.unwish()
    host.until(lambda: host.seen() is None)
    assert list(host.paths.records.iterdir()) == []


@pytest.mark.parametrize("what", ["domain", "chain", "gateway", "disk"])
def test_what_stays_is_in_the_proof_and_is_tried_again(host, monkeypatch, what):
    host.running()
    (host.paths.disks / names_of(ONE).disk).touch()  # as if unlinking it had failed before
    match what:
        case "domain":
            host.hypervisor.destroy_does_nothing = True
            monkeypatch.setattr("orchestrator.host.end._TIDY_S", 0.0)
        case "chain":
            host.wall.remove_does_nothing = True
        case "gateway":
            host.gateway.refuse_drop = True
        case "disk":
            monkeypatch.setattr("orchestrator.host.end.erase", lambda _path, _how: None)
    host.wish(wish="gone")
    host.pass_time(0)
    host.until(lambda: "end_begun" in host.seen().marks)
    host.pass_time(3)
    host.until(lambda: not host.busy(ONE))
    assert not host.proved()
    if what != "domain":
        assert not host.seen().proof.whole
        assert getattr(host.seen().proof, what) is False
        assert host.seen().proof.domain is True
    else:
        assert host.wall.present().chains == {names_of(ONE).tap}, "the wall stays as long as the VM may run"
    host.hypervisor.destroy_does_nothing = host.wall.remove_does_nothing = host.gateway.refuse_drop = False
    monkeypatch.undo()
    host.until(lambda: not host.busy(ONE))  # it is tried again two seconds after the last try has ended
    host.pass_time(3)
    host.until(host.proved)


def test_a_vm_that_powers_off_is_cleared_away_at_once(host):
    host.in_a_job()
    host.agent.heard(ONE, guest.RunnerExited(code=0))
    host.hypervisor.power_off(names_of(ONE).domain)
    assert host.seen().vm == "stopped"
    host.until(host.proved)
    assert host.seen().vm == "stopped"
    assert host.seen().exit_code == 0
    assert host.seen().failure is None


def test_a_crash_keeps_the_consoles_last_lines_without_secrets(host):
    host.running()
    console = host.paths.consoles / f"{names_of(ONE).domain}.log"
    console.write_text(f"booting\nleak {JIT}\n\x1b[31mKernel panic - not syncing\n")
    host.hypervisor.crash(names_of(ONE).domain)
    host.until(host.proved)
    seen = host.seen()
    assert seen.vm == "crashed"
    assert seen.failure.code == "vm-crashed"
    assert "Kernel panic" in seen.failure.console
    assert JIT not in seen.failure.console
    assert "\x1b" not in seen.failure.console
    assert not console.exists()


def test_a_vm_that_vanished_without_a_word_is_found_by_looking(host):
    host.running()
    host.hypervisor.vanish(names_of(ONE).domain)
    host.pass_time(1.1)
    host.until(host.proved)
    assert host.seen().vm == "crashed"


def test_a_runner_that_never_listens_fails_in_time(host):
    host.running()
    host.agent.heard(ONE, guest.Hello())
    host.pass_time(301)
    host.until(host.proved)
    assert host.seen().vm == "failed"
    assert (host.seen().failure.code, host.seen().failure.domain) == ("boot-timeout", "running")


def test_row_15_what_the_guest_says_is_heard_and_no_reason_to_report(host):
    host.running()
    host.agent.heard(ONE, guest.Hello())
    heard = host.seen().heard_at
    host.pass_time(11)
    host.agent.dirty.clear()
    host.agent.heard(ONE, guest.Beat())
    assert host.seen().heard_at == heard + 11
    assert not host.agent.dirty.is_set()


def test_row_19_lifetimes_hold_with_the_control_plane_away(host):
    host.in_a_job()
    host.pass_time(3600 - 59)
    host.until(lambda: host.talk.said[-1] == (ONE, guest.Stop()))
    assert host.seen().vm == "running"
    host.pass_time(60)
    host.until(host.proved)
    assert host.seen().vm == "absent"


@pytest.mark.parametrize("step", ["disk", "domain", "wall", "gateway", "channel"])
def test_a_failed_start_leaves_nothing_half_made(host, monkeypatch, step):
    failure = HostError("no room", code="test-failure", remedy="make room")

    def refuse(*_args, **_kwargs):
        raise failure

    match step:
        case "disk":
            monkeypatch.setattr("orchestrator.host.vm.make_disk", refuse)
        case "domain":
            monkeypatch.setattr(host.hypervisor, "start_paused", refuse)
        case "wall":
            monkeypatch.setattr(host.wall, "install", refuse)
        case "gateway":
            monkeypatch.setattr("orchestrator.host.start._apply", refuse)
        case "channel":
            monkeypatch.setattr("orchestrator.host.start.connect", refuse)
    host.wish()
    host.until(host.proved)
    seen = host.seen()
    assert (seen.vm, seen.failure.code, seen.failure.remedy) == ("failed", "test-failure", "make room")
    assert host.files() == []
    assert host.wires.taps == {}
    assert host.wall.vms == {}
    assert host.hypervisor.ours() == []


def test_a_missing_image_is_said_with_what_to_do(host):
    host.wish(machine=MachineClass("x", vcpus=1, memory_mib=64, image="nope"))
    host.until(host.proved)
    assert host.seen().failure.code == "image-missing"
    assert "ironcd image build" in host.seen().failure.remedy


def test_a_class_larger_than_the_host_is_refused(host):
    host.wish(machine=MachineClass("big", vcpus=4096, memory_mib=64))
    host.until(host.proved)
    assert host.seen().failure.code == "host-too-small"


def test_a_runner_waits_for_room(host):
    room = host.agent._capacity.vcpus
    whole = MachineClass("whole", vcpus=room, memory_mib=64, disk_gib=1)
    host.wish(ONE, machine=whole)
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    host.wish(TWO, machine=whole)
    host.pass_time(1)
    assert host.seen(TWO) is None
    host.wish(ONE, wish="gone")
    host.until(lambda: host.seen(TWO) and host.seen(TWO).vm == "running")


def test_the_next_job_waits_for_no_teardown(host):
    """The first VM's process is dead, libvirt takes its time, and the whole host is given to the next one."""
    whole = MachineClass("whole", vcpus=host.agent._capacity.vcpus, memory_mib=64, disk_gib=1)
    host.wish(ONE, machine=whole)
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    host.hypervisor.hold_destroy = threading.Event()
    host.wish(ONE, wish="gone")
    host.wish(TWO, machine=whole)
    host.until(lambda: host.seen(TWO) and host.seen(TWO).vm == "running")
    marks = host.seen(ONE).marks
    assert "vm_dead" in marks
    assert not {"domain_gone", "all_gone"} & marks.keys()
    assert names_of(ONE).tap in host.wall.present().chains, "its wall stands until libvirt has let go of it"
    assert not host.proved(ONE)
    host.hypervisor.hold_destroy.set()
    host.until(lambda: host.proved(ONE))
    assert host.wall.present().chains == {names_of(TWO).tap}


def test_room_is_not_given_twice_where_the_vm_isnt_seen_dead(host, monkeypatch):
    monkeypatch.setattr(host.hypervisor, "kill", lambda _name: False)
    whole = MachineClass("whole", vcpus=host.agent._capacity.vcpus, memory_mib=64, disk_gib=1)
    host.wish(ONE, machine=whole)
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    host.hypervisor.hold_destroy = threading.Event()
    host.wish(ONE, wish="gone")
    host.wish(TWO, machine=whole)
    host.until(lambda: "end_begun" in host.seen(ONE).marks)
    host.pass_time(1)
    assert host.seen(TWO) is None
    host.hypervisor.hold_destroy.set()
    host.until(lambda: host.seen(TWO) and host.seen(TWO).vm == "running")


def test_many_slow_ends_hold_no_start_up(host):
    host.agent._capacity = msgspec.structs.replace(host.agent._capacity, vcpus=100, memory_mib=10**6)
    host.agent._swept_at = host.parts.uptime()
    ulids = [f"01JZZZZZZZZZZZZZZZZZZZZZ{n:02d}" for n in range(40)]
    host.hypervisor.hold_destroy = threading.Event()
    for ulid in ulids:
        host.wish(ulid, wish="gone")
    host.until(lambda: len(host.agent._runners) == 40)
    host.running(ONE)
    assert not any(host.proved(ulid) for ulid in ulids[:32])
    host.hypervisor.hold_destroy.set()


def test_a_disk_has_no_name_once_the_vm_has_it_open(host):
    host.running()
    assert not (host.paths.disks / names_of(ONE).disk).exists()


@pytest.mark.parametrize("how", ["discard", "zero"])
def test_a_disk_that_is_to_be_erased_keeps_its_name_until_it_is(host, monkeypatch, how):
    host.parts.settings = msgspec.structs.replace(host.settings, disk_erase=how)
    disk, order = host.paths.disks / names_of(ONE).disk, []

    def erase(path, wanted):
        order.append((path, wanted, path.exists(), host.hypervisor.state(names_of(ONE).domain)))
        path.unlink()

    monkeypatch.setattr("orchestrator.host.end.erase", erase)
    host.running()
    assert disk.exists()
    assert host.hypervisor.specs[names_of(ONE).domain].keeps_blocks == (how == "zero")
    host.wish(wish="gone")
    host.until(host.proved)
    assert order == [(disk, how, True, None)]


def test_a_host_that_cant_erase_as_promised_says_so(host):
    unfit = erase_module.problem(Path("/proc"), "discard")
    assert unfit is not None
    assert unfit.code == "disk-erase-unsupported"
    host.agent._erase_problem = unfit
    assert unfit in host.agent.observe().problems


def test_a_wish_that_ends_while_the_vm_is_made_ends_it(host, monkeypatch):
    hold = threading.Event()
    real = host.hypervisor.start_paused

    def slow(spec):
        hold.wait(60)
        real(spec)

    monkeypatch.setattr(host.hypervisor, "start_paused", slow)
    host.wish()
    host.until(lambda: host.seen() and host.seen().vm == "making")
    host.wish(wish="gone", reason="cancelled")
    host.pass_time(0)
    hold.set()
    host.until(host.proved)
    assert host.hypervisor.ours() == []
    assert "up" not in [step for step, _ in host.wires.history]


def test_unknown_runners_have_a_minute(host):
    host.running()
    host.unwish()
    host.pass_time(0)
    host.pass_time(30)
    assert host.seen().vm == "running"
    host.pass_time(31)
    host.until(lambda: host.seen() is None)
    assert host.hypervisor.ours() == []
    assert host.files() == []


def test_gone_for_a_runner_that_never_was_is_proved_too(host):
    host.wish(wish="gone")
    host.until(host.proved)
    assert host.seen().vm == "absent"


def test_vms_are_adopted_by_the_next_agent(host):
    host.in_a_job()
    host.wall.flush()
    host.boot()
    host.until(lambda: host.wall.present().chains == {names_of(ONE).tap})
    assert host.seen().vm == "running"
    assert host.seen().claim.repository == "acme/app"
    host.wish(policy=JOBS, generation=2, bound=True, jit="")
    host.until(lambda: "steps_released" in host.seen().marks)
    host.hypervisor.power_off(names_of(ONE).domain)
    host.until(host.proved)


def test_the_next_agent_enforces_lifetimes_before_it_hears_from_anyone(host):
    host.in_a_job()
    host.boot()
    host.pass_time(3700)
    host.until(host.proved)


def test_a_vm_that_was_never_resumed_is_made_anew(host, monkeypatch):
    def die(*_args):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.host.start.put_in_force", die)
        host.wish()
        host.until(lambda: host.seen() and "chain_installed" in host.seen().marks)
        host.agent.close()
    host.boot()
    host.tell()
    host.until(lambda: host.seen() and host.seen().vm == "running")
    assert len(host.hypervisor.ours()) == 1
    assert list(host.wires.taps) == [names_of(ONE).tap]


def test_a_vm_that_ran_is_never_made_twice(host):
    host.running()
    host.agent.close()
    host.hypervisor.vanish(names_of(ONE).domain)
    host.boot()
    host.tell()
    host.until(host.proved)
    host.pass_time(5)
    assert host.hypervisor.ours() == []
    assert host.seen().vm == "crashed"


def test_a_resume_that_was_cut_short_is_made_up_for(host, monkeypatch):
    def die(_name):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(host.hypervisor, "resume", die)
        host.wish()
        host.until(lambda: host.hypervisor.ours() and host.seen().vm == "running")
        host.agent.close()
    assert host.hypervisor.state(names_of(ONE).domain) == "paused"
    host.boot()
    host.until(lambda: host.hypervisor.state(names_of(ONE).domain) == "running")


def test_what_a_crash_left_behind_is_found_by_name_and_nothing_else_is_touched(host):
    ours, theirs = names_of(TWO), "somebody-elses-vm"
    host.hypervisor.plant(ours.domain)
    host.hypervisor.plant(theirs)
    host.hypervisor.plant("ironcd-notaulid")
    for path in (
        host.paths.disks / ours.disk,
        host.paths.seeds / ours.seed,
        host.paths.consoles / f"{ours.domain}.log.0",
    ):
        path.write_bytes(b"x")
    (host.paths.boot / ours.domain).mkdir()
    kept = [host.paths.disks / "database.qcow2", host.paths.seeds / "ironcd-notes.txt", host.paths.links / "eth0.json"]
    for path in kept:
        path.write_bytes(b"precious")
    host.wires.taps |= {"ic0000000000001": "vms", "tap0": "host"}
    host.tell()
    host.pass_time(1)
    host.pass_time(30)
    assert host.hypervisor.state(ours.domain) == "running"
    host.pass_time(40)
    host.until(lambda: host.hypervisor.state(ours.domain) is None)
    host.until(lambda: not (host.paths.disks / ours.disk).exists())
    host.pass_time(61)
    host.pass_time(11)
    assert "ic0000000000001" not in host.wires.taps
    assert host.hypervisor.state(theirs) == "running"
    assert host.hypervisor.state("ironcd-notaulid") == "running"
    assert all(path.read_bytes() == b"precious" for path in kept)
    assert "tap0" in host.wires.taps
    assert host.agent.observe().swept == {"runner": 1, "link": 1}


def test_libvirt_away_is_a_problem_and_no_reason_to_end_anything(host):
    host.running()
    host.hypervisor.fail_with = HostError("libvirt doesn't answer", code="libvirt-away", remedy="start it")
    host.pass_time(1.1)
    assert [problem.code for problem in host.agent.observe().problems if problem.code == "libvirt-away"]
    assert host.seen().vm == "running"
    host.hypervisor.fail_with = None
    host.pass_time(1.1)
    assert not [problem for problem in host.agent.observe().problems if problem.code == "libvirt-away"]


def test_a_job_that_waits_for_its_policy_gets_it_from_the_next_agent_too(host):
    """Its channel is opened whatever is to be done: the step that tells it fails for as long as that is closed."""
    host.in_a_job()
    host.talk.open.clear()
    host.boot()
    host.wish(policy=JOBS, generation=2, bound=True)
    host.until(lambda: "steps_released" in host.seen().marks)
    assert isinstance(host.talk.said[-1][1], guest.Bound)


def test_guests_are_heard_though_libvirt_is_away_when_the_agent_starts(host):
    """A guest whose channel is closed for a minute fails the job that waits for its policy."""
    host.in_a_job()
    host.talk.open.clear()
    host.hypervisor.fail_with = HostError("libvirt doesn't answer", code="libvirt-away", remedy="start it")
    host.boot()
    host.pass_time(1.1)
    assert host.talk.open == {ONE}
    host.hypervisor.fail_with = None
    host.pass_time(1.1)
    host.wish(policy=JOBS, generation=2, bound=True)
    host.until(lambda: "steps_released" in host.seen().marks)


def test_a_full_disk_ends_no_agent_and_is_said(host, monkeypatch):
    host.in_a_job()

    def full(_path, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host.parts.records, "_write", full)
    host.wish(policy=JOBS, generation=2, bound=True)
    host.wish(TWO)
    host.until(lambda: (seen := host.seen(TWO)) is not None and seen.proof is not None)
    assert host.seen(TWO).failure.code == "state-unwritable"
    assert "state-unwritable" in [problem.code for problem in host.agent.observe().problems]
    assert host.hypervisor.state(names_of(ONE).domain) == "running"
    assert host.hypervisor.state(names_of(TWO).domain) is None
    monkeypatch.undo()
    host.pass_time(11)
    assert "state-unwritable" not in [problem.code for problem in host.agent.observe().problems]
    host.until(lambda: "steps_released" in host.seen().marks)
    assert msgspec.json.decode(host.paths.desired.read_bytes(), type=Desired).generation == host.generation


def drifts(host: Host) -> list[bool]:
    """Whether each drift that is shown is over."""
    return [problem.over for problem in host.agent.observe().problems if problem.code == "wall-drifted"]


def checks(host: Host, seconds: int) -> None:
    for _ in range(seconds):
        host.clock.now += 1
        host.agent.check_wall()


def test_a_wall_that_stays_whole_keeps_no_vm_waiting_and_is_no_problem_for_ever(host):
    host.running()
    host.wall.flush()
    host.agent.check_wall()
    checks(host, 9)
    assert drifts(host) == [False]
    checks(host, 1)
    assert drifts(host) == [True], "shown, and in nobody's way"
    checks(host, 289)
    assert drifts(host) == [True]
    checks(host, 1)
    assert drifts(host) == []


def test_a_wall_that_is_changed_again_and_again_keeps_vms_waiting_for_longer_each_time(host):
    host.running()
    for waits in (10, 20, 40):
        host.wall.flush()
        host.agent.check_wall()
        checks(host, waits - 1)
        assert drifts(host) == [False]
        checks(host, 1)
        assert drifts(host) == [True]


def test_time_alone_makes_no_wall_trusted(host):
    host.running()
    host.wall.flush()
    host.agent.check_wall()
    host.clock.now += 60
    for over in (False, False, False, False, True):
        host.agent.check_wall()
        assert drifts(host) == [over]


def test_a_start_that_a_flush_falls_into_waits_for_the_wall_and_goes_on(host):
    flushes = iter([host.wall.flush])

    def once() -> None:
        for flush in flushes:
            flush()

    host.wall.before_install = once
    host.wish()

    def running() -> bool:
        host.agent.check_wall()
        return host.hypervisor.state(names_of(ONE).domain) == "running"

    host.until(running)
    assert host.seen().failure is None
    assert host.seen().marks["accepted"]
    assert host.wall.present().chains == {names_of(ONE).tap}
    assert drifts(host) == [False]


def test_a_start_whose_wall_is_flushed_on_and_on_leaves_nothing_and_blames_nobody(host, monkeypatch):
    monkeypatch.setattr("orchestrator.host.start._WALL_PATIENCE_S", 0.0)
    host.wall.before_install = host.wall.flush
    host.wish()
    host.until(host.proved)
    assert host.seen().failure.code == "wall-disturbed"
    assert "up" not in [step for step, _ in host.wires.history]
    assert host.files() == []
    assert host.wall.vms == {}


def test_a_flushed_wall_is_reported_and_restored(host):
    host.running()
    host.wall.flush()
    host.agent.check_wall()
    assert [problem.code for problem in host.agent.observe().problems if problem.code == "wall-drifted"]
    assert host.wall.present().chains == {names_of(ONE).tap}
    assert host.wires.links_up == {names_of(ONE).tap}


def test_without_an_accelerator_jobs_are_refused(host):
    settings = msgspec.structs.replace(host.settings, accelerator="kvm")
    host.agent.choice = choose(
        settings, host.paths.images / "0123" / "vmlinuz", cache=host.paths.cache, probe=lambda _kernel: False
    )
    assert host.agent.observe().capacity.vcpus == 0
    host.wish()
    host.until(host.proved)
    assert host.seen().failure.code == "kvm-unusable"


def test_many_at_once(host):
    host.agent._capacity = msgspec.structs.replace(host.agent._capacity, vcpus=100, memory_mib=10**6)
    host.agent._swept_at = host.parts.uptime()
    ulids = [f"01JZZZZZZZZZZZZZZZZZZZZZ{n:02d}" for n in range(12)]
    for ulid in ulids:
        host.wish(ulid)
    host.until(lambda: len([u for u in ulids if host.seen(u) and host.seen(u).vm == "running"]) == 12)
    assert len({spec.owner for spec in host.hypervisor.specs.values()}) == 12
    for ulid in ulids:
        host.wish(ulid, wish="gone")
    host.until(lambda: all(host.proved(ulid) for ulid in ulids))
    assert host.files() == []


def test_images_are_told(host):
    (image,) = host.agent.observe().images
    assert (image.name, image.digest, image.presets) == ("default", "sha256:0123", {"apt": ("deb.example",)})


def test_the_module_says_how_often_it_looks():
    assert agent_module.LOOK_S <= 1.0


# Clones


class Leases:
    """Templates of which there is one."""

    building = None

    def __init__(self, host: Host) -> None:
        place = host.paths.templates / ("a" * 64)
        place.mkdir()
        for name in (template_files.BASE, template_files.DISK):
            run(["qemu-img", "create", "-q", "-f", "qcow2", str(place / name), "64M"])
        for name in (template_files.KERNEL, template_files.INITRD, template_files.STATE):
            (place / name).write_bytes(b"of the template")
        manifest = SimpleNamespace(key="a" * 64, disk_gib=1)
        self._lease = SimpleNamespace(template=template_files.Template(place, manifest), memory=self)
        self.doubted: list[str] = []
        self.trusted: list[str] = []

    @contextlib.contextmanager
    def opened(self, user: int, group: int) -> Iterator[Memory]:
        yield Memory(f"/of/{user}/{group}", "clone")

    def lease(self, machine: MachineClass, _image: object) -> object:
        if machine.start == "cold":
            raise Cold("")
        return self._lease

    def ready(self) -> dict[str, str]:
        return {}

    def doubt(self, key: str, _why: str) -> None:
        self.doubted.append(key)

    def trust(self, key: str) -> None:
        self.trusted.append(key)

    def turn(self, *_: object) -> None:
        pass

    def want(self, *_: object) -> None:
        pass

    def observe(self) -> tuple[()]:
        return ()

    def problem(self) -> None:
        return None

    def sealed_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.fixture
def leases(host) -> Leases:
    host.parts.templates = Leases(host)
    return host.parts.templates


def cloning(host) -> None:
    host.wish(machine=MachineClass("ironcd", vcpus=1, memory_mib=64, disk_gib=1))
    host.until(lambda: host.hypervisor.state(names_of(ONE).domain) == "running" and not host.busy(ONE))


def test_what_is_wanted_of_templates_is_known_to_the_next_agent_too(host, monkeypatch):
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(Templates, "want", lambda _templates, *wanted: told.append(wanted))
    classes, removed = (MachineClass("ironcd"),), {"a" * 64: 6.0}
    host.agent.wished(Desired("h1", 1, (), classes, 5.0, removed))
    host.agent.close()
    host.boot()
    assert told == [(classes, 5.0, removed)] * 2


def test_a_clone_is_loaded_behind_its_wall_and_let_through_the_gate_when_it_runs(host, leases):
    cloning(host)
    name = names_of(ONE).domain
    spec = host.hypervisor.specs[name]
    assert (spec.memory.use, Path(spec.backing).name, Path(spec.below).name) == ("clone", "disk.qcow2", "base.qcow2")
    assert host.hypervisor.loaded == {name: b"of the template"}
    seen = host.seen()
    assert (seen.start, seen.cold_because) == ("clone", "")
    order = ["accepted", "seed_made", "disk_made", "domain_started", "cloned", "chain_installed"]
    assert [mark for mark in seen.marks if mark in order] == order
    (ulid, opening), *rest = host.talk.said
    assert (ulid, type(opening), rest) == (ONE, guest.Open, [])
    host.agent.heard(ONE, guest.Opened())
    assert {"guest_hello", "gate_opened"} <= host.seen().marks.keys()
    assert leases.trusted == ["a" * 64]


def test_a_clone_that_fails_boots_cold_in_the_same_start(host, leases):
    host.hypervisor.fail_load = HostError("QEMU says no", code="clone-failed", remedy="")
    cloning(host)
    seen = host.seen()
    assert seen.start == "cold"
    assert "QEMU says no" in seen.cold_because
    assert "cloned" not in seen.marks
    assert "chain_installed" in seen.marks
    spec = host.hypervisor.specs[names_of(ONE).domain]
    assert (spec.memory, spec.below) == (None, "")
    assert leases.doubted == ["a" * 64]
    assert host.talk.said == [], "a machine that boots says hello first"
    host.agent.heard(ONE, guest.Hello())
    assert [type(order) for _, order in host.talk.said] == [guest.Open]


def test_a_clone_that_ends_in_front_of_the_gate_makes_its_template_doubtful(host, leases):
    cloning(host)
    host.hypervisor.crash(names_of(ONE).domain)
    host.until(host.proved)
    assert leases.doubted == ["a" * 64]


def test_each_question_for_the_time_is_answered(host):
    host.running()
    host.agent.heard(ONE, guest.WhatTime())
    ((_, answer),) = host.talk.said
    assert isinstance(answer, guest.Time)
    assert abs(answer.now_ns - time.time_ns()) < 10_000_000_000


def test_what_was_ordered_of_templates_outlives_a_control_plane_that_forgets(host):
    host.agent.wished(Desired("h1", 1, (), templates_since=5.0, templates_removed={"k": host.clock.now}))
    host.agent.wished(Desired("h1", 2, ()))
    host.agent.close()
    host.boot()
    host.agent.wished(Desired("h1", 3, ()))
    assert (host.parts.templates._since, host.parts.templates._removed) == (5.0, {"k": host.clock.now})
