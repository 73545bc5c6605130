"""Machines that wait, on the agent of `test_agent`: everything but libvirt, nftables, links, gateway and guests is real."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from ulid import ULID

from orchestrator.core.errors import HostError
from orchestrator.core.machine import MachineClass
from orchestrator.core.names import names_of, ulid_of
from orchestrator.core.wire import Desired
from orchestrator.host import guest, pool, template_files, waiting
from orchestrator.host.domain_xml import Memory as DomainMemory
from orchestrator.host.parts import Cancelled
from orchestrator.host.pool_plan import Memory
from orchestrator.host.template_key import Basis
from orchestrator.host.templates import Cold, Lease
from orchestrator.system.process import run

from .test_agent import BASELINE, JIT, JOBS, ONE, TWO, Host, make_image

SMALL = MachineClass("ironcd", vcpus=1, memory_mib=64, disk_gib=1, warm=1)
PLENTY, SHORT = Memory(tight=False, roomy=True), Memory(tight=True, roomy=False)


class OneTemplate:
    """In the place of the agent's `Templates`: one that serves every class that clones, as long as it is ``there``."""

    building = None
    key = "t1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.there = True
        self.trusted: list[str] = []
        self.doubted: list[tuple[str, str]] = []
        folder.mkdir(exist_ok=True)
        if not list(folder.iterdir()):
            run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / template_files.DISK), "64M"])
            for name in (template_files.KERNEL, template_files.INITRD, template_files.STATE):
                (folder / name).write_bytes(name.encode())

    def ready(self) -> dict[str, str]:
        return {SMALL.name: self.key} if self.there else {}

    def lease(self, machine: MachineClass, _image: object) -> Lease:
        if machine.start == "cold" or not self.there or machine.name not in self.ready():
            raise Cold("there is no template")
        files = dict.fromkeys(template_files.HASHED, template_files.Content(0, ""))
        basis = Basis(1, "sha256:0123", (), "", "", "", 1)
        manifest = template_files.Manifest(1, self.key, "sha256:0123", 0.0, 1, 64, 1, files, basis)
        return Lease(template_files.Template(self.folder, manifest), self)

    @contextlib.contextmanager
    def opened(self, _user: int, _group: int) -> Iterator[DomainMemory]:
        yield DomainMemory("/nonexistent/ram", "clone")

    def trust(self, key: str) -> None:
        self.trusted.append(key)

    def doubt(self, key: str, why: str) -> None:
        self.doubted.append((key, why))

    def want(self, classes: object, since: object = 0, removed: object = None) -> None: ...

    def turn(self, now: float, has_room: object) -> None: ...

    def observe(self) -> tuple[()]:
        return ()

    def problem(self) -> None:
        return None

    def sealed_bytes(self) -> int:
        return 0

    def make_room(self) -> None: ...

    def close(self) -> None: ...


class PoolHost(Host):
    """A host with a template, whose guests do as they are told at the gate."""

    memory = PLENTY
    classes: tuple[MachineClass, ...] = (SMALL,)

    def boot(self) -> None:
        super().boot()
        self.templates = OneTemplate(self.paths.cache / "one-template")
        self.parts.templates = self.templates
        self.parts.paths = self.paths
        self.talk.on_order = self.guest_does
        self.agent.pool._look_at_memory = lambda: self.memory
        self.agent._capacity = msgspec.structs.replace(self.agent._capacity, vcpus=4, memory_mib=10**6, disk_gib=10**4)
        self.agent._swept_at = self.parts.uptime()

    def guest_does(self, ulid: str, order: object) -> None:
        if isinstance(order, guest.Prepare):
            self.agent.heard(ulid, guest.Prepared())
        if isinstance(order, guest.Open):
            self.agent.heard(ulid, guest.Opened())

    def tell(self) -> None:
        self.generation += 1
        self.agent.wished(Desired("h1", self.generation, tuple(self.wishes.values()), self.classes))

    def waits(self) -> list[str]:
        return [machine.id for machine in self.agent.observe().warm]

    def one_waits(self) -> str:
        self.tell()
        self.until(lambda: len(self.waits()) == 1)
        return self.waits()[0]

    def runs(self, ulid: str) -> bool:
        seen = self.seen(ulid)
        return seen is not None and seen.vm == "running" and not self.busy(ulid)

    def nothing_is_left(self) -> None:
        assert self.files() == []
        assert self.hypervisor.ours() == []
        assert self.wires.taps == {}
        assert self.wall.vms == {}
        assert list(self.paths.waiting.iterdir()) == []


@pytest.fixture
def host(tmp_path) -> Iterator[PoolHost]:
    made = PoolHost(tmp_path)
    make_image(made)
    yield made
    made.agent.close()


def test_one_is_made_and_waits_with_nothing_that_a_job_has(host):
    ulid = host.one_waits()
    names = names_of(ulid)
    assert host.hypervisor.state(names.domain) == "running"
    assert host.wires.taps == {names.tap: "host"}, "its link is in no namespace of VMs, and down"
    assert host.wires.links_up == set()
    assert host.wall.vms == {}
    assert host.gateway.links == {}
    assert not (host.paths.links / f"{names.tap}.json").exists()
    seed = host.paths.seeds / names.seed
    assert not any(seed.read_bytes())
    assert host.agent.observe().runners == ()


def test_its_disk_loses_its_name_once_it_runs_and_not_before(host, monkeypatch):
    """From QEMU 10 on a clone's disk is opened for writing, by its name, when the clone is resumed."""
    had_a_name = {}
    resume = host.hypervisor.resume

    def look_and_resume(domain):
        had_a_name[domain] = (host.paths.disks / names_of(ulid_of(domain)).disk).exists()
        resume(domain)

    monkeypatch.setattr(host.hypervisor, "resume", look_and_resume)
    names = names_of(host.one_waits())
    assert had_a_name[names.domain]
    assert not (host.paths.disks / names.disk).exists()


def test_a_job_takes_it_over_under_the_same_names(host):
    ulid = host.one_waits()
    names = names_of(ulid)
    made = len(host.hypervisor.specs)
    host.wish(ulid, machine=SMALL)
    host.until(lambda: host.seen(ulid) and host.seen(ulid).vm == "running" and not host.busy(ulid))
    seen = host.seen(ulid)
    assert len(host.hypervisor.specs) == made, "no other VM was made for it"
    assert seen.start == "warm"
    assert (seen.policy, seen.generation) == (BASELINE.digest, 1)
    assert host.gateway.links[names.tap].policy == BASELINE
    assert host.wall.present().chains == {names.tap}
    assert host.wires.links_up == {names.tap}
    assert ulid not in host.waits()


def test_the_jit_configuration_comes_with_the_job_and_not_before(host):
    ulid = host.one_waits()
    everything = [path for path in host.paths.disks.parent.rglob("*") if path.is_file()]
    assert not [path for path in everything if JIT.encode() in path.read_bytes()]
    host.wish(ulid, machine=SMALL)
    host.until(lambda: host.runs(ulid))
    seed = host.paths.seeds / names_of(ulid).seed
    assert JIT.encode() in seed.read_bytes()


def test_the_gate_opens_only_behind_the_wall(host):
    ulid = host.one_waits()
    seen = []

    def note(ulid, order):
        host.guest_does(ulid, order)
        if isinstance(order, guest.Open):
            seen.append((host.wall.present().chains, host.gateway.links.keys(), set(host.wires.links_up)))

    host.talk.on_order = note
    host.wish(ulid, machine=SMALL)
    host.until(lambda: seen)
    tap = names_of(ulid).tap
    assert seen == [({tap}, {tap}, {tap})]


def test_a_claim_that_fails_starts_a_machine_from_the_beginning(host):
    ulid = host.one_waits()
    host.talk.deaf.add(ulid)
    host.wish(ulid, machine=SMALL)
    host.until(lambda: host.runs(ulid))
    assert host.seen(ulid).start != "warm"
    assert host.seen(ulid).cold_because.startswith("the machine that waited couldn't take it over")
    assert host.seen(ulid).failure is None
    assert host.hypervisor.made.count(names_of(ulid).domain) == 2


def test_a_machine_that_was_lost_in_between_costs_its_job_nothing(host):
    ulid = host.one_waits()
    host.hypervisor.vanish(names_of(ulid).domain)
    host.memory = SHORT
    host.wish(ulid, machine=SMALL)
    host.pass_time(1.1)
    host.until(lambda: host.runs(ulid))
    assert host.seen(ulid).start != "warm"


def test_a_job_for_which_none_waited_says_why(host):
    host.memory = SHORT
    host.classes = (SMALL,)
    host.tell()
    host.pass_time(1.1)
    host.wish(ONE, machine=SMALL)
    host.until(lambda: host.runs(ONE))
    seen = host.seen(ONE)
    assert (seen.start, seen.cold_because) == ("clone", "no machine waited for it: memory is short")
    host.wish(TWO, machine=msgspec.structs.replace(SMALL, warm=0))
    host.until(lambda: host.runs(TWO))
    assert host.seen(TWO).cold_because == "", "its class wants none"


def test_a_job_that_asks_for_another_size_gets_it(host):
    ulid = host.one_waits()
    host.wish(ulid, machine=msgspec.structs.replace(SMALL, vcpus=2))
    host.until(lambda: host.runs(ulid))
    assert host.hypervisor.specs[names_of(ulid).domain].vcpus == 2


def test_a_wish_that_was_withdrawn_before_it_began_ends_the_machine(host):
    ulid = host.one_waits()
    host.classes = ()
    host.wish(ulid, wish="gone")
    host.until(lambda: host.proved(ulid))
    host.nothing_is_left()


def test_the_next_one_comes_when_the_job_has_started(host):
    first = host.one_waits()
    host.wish(first, machine=SMALL)
    host.until(lambda: host.seen(first) and host.seen(first).vm == "running")
    host.pass_time(1)
    assert host.waits() == [], "its processors are the job's now"
    host.agent.heard(first, guest.Listening())
    host.agent.heard(first, guest.JobStarted("acme/app", 7, 1, "build"))
    host.pass_time(20)
    assert host.waits() == [], "and they are until its first step"
    host.wish(first, policy=JOBS, generation=2, bound=True)
    host.until(lambda: "steps_released" in host.seen(first).marks)
    host.until(lambda: len(host.waits()) == 1)
    assert host.waits() != [first]


def test_a_runner_that_gets_no_job_doesnt_keep_others_from_waiting(host):
    first = host.one_waits()
    host.wish(first, machine=SMALL)
    host.until(lambda: host.runs(first))
    host.agent.heard(first, guest.Listening())
    host.pass_time(1)
    assert host.waits() == []
    host.clock.now += 15
    host.until(lambda: len(host.waits()) == 1)


def test_a_job_has_the_room_of_those_that_wait(host):
    host.classes = (msgspec.structs.replace(SMALL, warm=3),)
    host.tell()
    host.until(lambda: len(host.waits()) == 3)
    before = host.waits()
    host.wish(ONE, machine=MachineClass("whole", vcpus=3, memory_mib=64, disk_gib=1))
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    assert host.waits() == before[2:]
    host.until(lambda: len(host.hypervisor.ours()) == 2)


def test_a_job_waits_until_those_that_must_go_are_dead(host):
    ulid = host.one_waits()
    hold = host.hypervisor.hold_kill = threading.Event()
    host.wish(ONE, machine=MachineClass("whole", vcpus=4, memory_mib=64, disk_gib=1))
    host.pass_time(0.1)
    assert host.seen(ONE) is None
    assert host.hypervisor.state(names_of(ulid).domain) == "running"
    hold.set()
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")


def test_one_that_is_just_being_made_gives_way_too(host):
    hold = host.hypervisor.hold_start = threading.Event()
    host.tell()
    host.until(lambda: len(host.agent.pool.ids()) == 1)
    host.wish(ONE, machine=MachineClass("whole", vcpus=4, memory_mib=64, disk_gib=1))
    host.pass_time(0)
    hold.set()
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    host.until(lambda: not host.agent.pool.ids())


def test_one_that_rehearses_leaves_its_processor_to_a_job_that_starts(host):
    """There is room for both; but what it does takes time that the job's start would have."""

    def rehearse(_parts, runner):
        while not runner.cancel.wait(0.01):
            pass
        raise Cancelled

    host.agent.pool._make = rehearse
    host.tell()
    host.until(lambda: len(host.agent.pool.ids()) == 1)
    host.wish(ONE, machine=SMALL)
    host.until(lambda: host.seen(ONE) and host.seen(ONE).vm == "running")
    host.until(lambda: not host.agent.pool.ids())


@pytest.mark.parametrize("why", ["pressure", "age", "no class", "cordoned", "template", "lost"])
def test_what_nobody_wants_ends_without_a_trace(host, why):
    ulid = host.one_waits()
    host.memory = Memory(tight=False, roomy=False)  # no other comes in its place
    match why:
        case "pressure":
            host.memory = SHORT
        case "template":
            host.templates.key = "t2"
        case "age":
            host.clock.now += host.settings.warm_age_s
        case "no class":
            host.classes = ()
        case "cordoned":
            host.classes = (msgspec.structs.replace(SMALL, warm=0),)
        case "lost":
            host.hypervisor.crash(names_of(ulid).domain)
        case _:
            pass
    host.tell()
    host.pass_time(1.1)
    host.until(lambda: not host.agent.pool.ids())
    host.nothing_is_left()


def replace_step(patch, host, step, instead):
    """Have one step of making a machine that waits do ``instead``; ``waiting`` is none of them."""
    places = {
        "tap": (host.wires, "make"),
        "disk": (waiting, "make_clone_files"),
        "seed": (waiting, "make_blank_seed"),
        "domain": (host.hypervisor, "load_state"),
        "channel": (waiting, "clone_paused"),
        "guest": (waiting, "prepare"),
    }
    if step != "waiting":
        patch.setattr(*places[step], instead)


@pytest.mark.parametrize("why", ["no template", "its room is needed"])
def test_what_is_foreseen_is_no_fault_of_ours(host, why, monkeypatch):
    """A template may be gone, and a job may come, in the moment between the plan and its deed."""
    said: list[dict[str, object]] = []
    monkeypatch.setattr(
        pool, "log", SimpleNamespace(warning=lambda _what, **more: said.append(more), info=lambda *_, **__: None)
    )
    raised = Cold("its template was changed") if why == "no template" else Cancelled()

    tried: list[object] = []

    def refuse(*_args):
        tried.append(_args)
        raise raised

    host.agent.pool._make = refuse
    host.tell()
    host.until(lambda: tried)
    host.classes = ()  # or the next one is planned as soon as this one is given up
    host.tell()
    host.until(lambda: not host.agent.pool.ids())
    assert [more["exc_info"] for more in said if "exc_info" in more] == [False] * (why == "no template")
    assert bool(host.agent.pool._not_before) == (why == "no template")


@pytest.mark.parametrize("step", ["tap", "disk", "seed", "domain", "channel", "guest"])
def test_one_that_cant_be_made_leaves_nothing_and_is_tried_again_later(host, monkeypatch, step):
    def refuse(*_args, **_kwargs):
        raise HostError("no", code="test-failure", remedy="")

    with monkeypatch.context() as patch:
        replace_step(patch, host, step, refuse)
        host.tell()
        host.until(lambda: host.agent.pool._not_before)
        host.until(lambda: not host.agent.pool.ids())
        host.nothing_is_left()
        assert bool(host.templates.doubted) == (step in ("domain", "channel", "guest"))
    host.pass_time(1)
    assert not host.agent.pool.ids()
    host.clock.now += 31
    host.until(lambda: len(host.waits()) == 1)


@pytest.mark.parametrize("step", ["tap", "disk", "seed", "domain", "channel", "guest", "waiting"])
def test_an_agent_that_was_killed_at_any_step_leaves_nothing_that_the_next_doesnt_clear(host, monkeypatch, step):
    def die(*_args, **_kwargs):
        raise SystemExit

    with monkeypatch.context() as patch:
        replace_step(patch, host, step, die)
        host.tell()
        host.until(lambda: list(host.paths.waiting.glob("*.json")) or host.waits())
        if step == "waiting":
            host.until(host.waits)
        host.agent.pool._maker.shutdown(wait=True)
    host.classes = ()
    host.agent.parts.paths.desired.unlink()
    host.boot()
    host.tell()
    host.until(lambda: not host.agent.pool.ids())
    host.nothing_is_left()


def test_an_agent_that_was_killed_in_a_claim_starts_the_job_from_the_beginning(host, monkeypatch):
    ulid = host.one_waits()

    def die(*_args, **_kwargs):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.host.steps.claim", die)
        host.wish(ulid, machine=SMALL)
        host.until(lambda: host.agent._runners.get(ulid))
        host.agent.close()
    host.boot()
    host.tell()
    host.until(lambda: host.runs(ulid))
    assert len([found for found in host.hypervisor.ours() if found.ulid == ulid]) == 1
    assert host.seen(ulid).start != "warm"


def test_the_sweep_leaves_those_that_wait_alone_and_finds_those_that_nobody_has(host, monkeypatch):
    room = host.agent._capacity
    monkeypatch.setattr("orchestrator.host.agent.capacity_of", lambda *_, **__: room)
    ulid = host.one_waits()
    lost = str(ULID.from_timestamp(host.clock.now))
    host.hypervisor.plant(names_of(lost).domain)
    host.pass_time(11)
    host.pass_time(61)
    host.pass_time(11)
    host.until(lambda: host.hypervisor.state(names_of(lost).domain) is None)
    assert host.waits() == [ulid]


def test_what_waits_is_no_runner_and_takes_nothing_of_the_hosts_capacity(host):
    host.one_waits()
    seen = host.agent.observe()
    assert seen.runners == ()
    assert seen.capacity.vcpus == 4
    assert [(machine.machine_class, machine.since) for machine in seen.warm] == [("ironcd", host.clock.now)]


def test_no_accelerator_no_pool(host):
    host.agent.choice = msgspec.structs.replace(host.agent.choice, accelerator="")
    host.tell()
    host.pass_time(1)
    assert not host.agent.pool.ids()
