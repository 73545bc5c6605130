"""Rules in and out of the kernel, and the watch over them: one contract for the real wall and the fake one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from orchestrator.core.errors import HostError
from orchestrator.core.link import Limits
from orchestrator.host.fakes import FakeWall, FakeWires
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.nft import LibNft
from orchestrator.host.ruleset import VmRules
from orchestrator.host.slots import slot_at
from orchestrator.host.wall import Wall
from orchestrator.host.watch import Watch
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.adapters.host.conftest import PORTS, RANGE, new_name, new_tap


class Site:
    """A wall, its wires, and what another program may do to them."""

    def __init__(self, wall, wires, name: str) -> None:
        self.wall, self.wires, self.name = wall, wires, name

    def vm(self, index: int, **rules: object) -> VmRules:
        tap, slot = new_tap(), slot_at(RANGE, index)
        self.wires.make(tap)
        self.wires.move(tap)
        vm = VmRules(tap, slot.guest_ip, slot.gateway_ip, Limits(), **rules)
        self.wall.install(vm)
        self.wires.up(tap, slot)
        return vm

    def flush(self) -> None:
        if isinstance(self.wall, FakeWall):
            self.wall.flush()
        else:
            self.nft("flush", "ruleset")

    def nft(self, *words: str) -> None:
        run(["ip", "netns", "exec", self.name, "nft", *words])

    def up(self) -> set[str]:
        if isinstance(self.wires, FakeWires):
            return set(self.wires.links_up)
        lines = run(["ip", "-n", self.name, "-o", "link", "show", "up"]).splitlines()
        return {line.split(": ")[1] for line in lines} - {"lo"}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "fake":
        made = Site(FakeWall(), FakeWires(), "")
        made.wall.ensure_base([])
        yield made
        return
    name = new_name()
    thread = make_namespace(name)
    try:
        wall = Wall(thread, thread.call(LibNft), PORTS)
        wall.ensure_base([])
        yield Site(wall, Links(thread), name)
    finally:
        thread.close()
        netns.delete(name)


def test_an_installed_vm_is_present_in_every_part(site):
    vm = site.vm(0, ranges=(("203.0.113.0/24", 22),))
    present = site.wall.present()
    assert present.chains == present.l2_chains == present.map_entries == present.ranges == {vm.tap}
    assert site.wall.drift() == []


def test_removal_leaves_nothing_and_touches_no_other(site):
    one, two = site.vm(0, ranges=(("203.0.113.0/24", 22),)), site.vm(1, ranges=(("203.0.113.0/24", 22),))
    site.wall.remove(one.tap)
    present = site.wall.present()
    assert present.taps == {two.tap}
    assert present.ranges == {two.tap}
    assert site.wall.drift() == []


def test_removal_of_what_isnt_there_is_nothing(site):
    vm = site.vm(0)
    site.wall.remove(new_tap())
    site.wall.remove(vm.tap)
    site.wall.remove(vm.tap)
    assert site.wall.present().taps == frozenset()


def test_installing_twice_is_installing_once(site):
    vm = site.vm(0)
    site.wall.install(vm)
    assert site.wall.present().taps == {vm.tap}
    assert site.wall.drift() == []


def test_ranges_are_replaced(site):
    vm = site.vm(0, ranges=(("203.0.113.0/25", 22), ("198.51.100.1/32", 22)))
    site.wall.change(replace(vm, ranges=(("203.0.113.0/24", 22), ("203.0.113.9/32", 22))))
    assert site.wall.drift() == []
    site.wall.change(replace(vm, ranges=()))
    assert site.wall.present().ranges == frozenset()


def test_echoes_are_let_in_and_out_again_and_the_wall_reads_back(site):
    vm = site.vm(0, ranges=(("203.0.113.0/24", 22),))
    for echo in (True, True, False):
        site.wall.change(replace(vm, echo=echo))
        assert site.wall.drift() == []
        assert site.wall.present().ranges == {vm.tap}


def test_the_base_is_made_for_vms_that_are_there_already(site):
    vm = site.vm(0)
    site.flush()
    site.wall.ensure_base([vm])
    assert site.wall.present().taps == {vm.tap}
    assert site.wall.drift() == []


@pytest.mark.parametrize("others", [0, 1])
def test_a_vm_whose_rules_are_written_while_all_is_flushed_leaves_nothing_and_can_be_tried_again(site, others):
    kept = {site.vm(index).tap for index in range(others)}
    watch = Watch(site.wall, site.wires)
    tap, slot = new_tap(), slot_at(RANGE, 7)
    site.wires.make(tap)
    site.wires.move(tap)
    site.flush()
    with pytest.raises(HostError) as caught:
        site.wall.install(VmRules(tap, slot.guest_ip, slot.gateway_ip, Limits()))
    assert caught.value.code == "wall-disturbed"
    assert tap not in site.wall.present().taps
    assert watch.check() is not None
    assert site.wall.present().taps == kept, "the wall is restored without it"
    site.wall.install(VmRules(tap, slot.guest_ip, slot.gateway_ip, Limits()))
    assert site.wall.drift() == []
    assert site.wall.present().taps == kept | {tap}


@pytest.mark.real
def test_a_flush_between_writing_and_reading_back_is_seen_as_that(links, wall, namespace, monkeypatch):
    site = Site(wall, links, namespace.name)
    kept = site.vm(0)
    read = Wall._found
    reads: list[str] = []

    def found(self, tap, places):
        reads.append(tap)
        if len(reads) == 2:  # once before, to see what is to go
            site.flush()
        return read(self, tap, places)

    monkeypatch.setattr(Wall, "_found", found)
    with pytest.raises(HostError) as caught:
        site.vm(1)
    assert caught.value.code == "wall-disturbed"
    monkeypatch.undo()
    assert Watch(wall, links).check() is not None
    assert wall.present().taps == {kept.tap}


@pytest.mark.real
def test_rules_that_read_back_otherwise_are_no_others_fault(links, wall, namespace, monkeypatch):
    site = Site(wall, links, namespace.name)
    site.vm(0)
    monkeypatch.setattr(Wall, "_commands", lambda _self, _vm: [])
    with pytest.raises(HostError) as caught:
        site.vm(1)
    assert caught.value.code == "wall-readback"


def test_a_flush_by_another_program_cuts_the_links_until_all_is_restored(site):
    one, two = site.vm(0), site.vm(1)
    watch = Watch(site.wall, site.wires)
    assert watch.check() is None
    site.flush()
    problem = watch.check()
    assert problem is not None
    assert problem.code == "wall-drifted"
    assert site.wall.drift() == []
    assert site.up() == {one.tap, two.tap}
    assert watch.check() is None


def test_links_stay_down_while_the_wall_cant_be_restored(site, monkeypatch):
    vm = site.vm(0)
    watch = Watch(site.wall, site.wires)
    site.flush()
    broken = HostError("no", code="nft-refused", remedy="")

    def refuse(_taps):
        raise broken

    with monkeypatch.context() as patch:
        patch.setattr(site.wall, "restore", refuse)
        with pytest.raises(HostError):
            watch.check()
        assert site.up() == set()
        with pytest.raises(HostError):
            watch.check()
    assert watch.check() is not None
    assert site.up() == {vm.tap}


def test_a_vm_whose_tap_is_gone_doesnt_keep_the_others_down(site):
    one, two = site.vm(0), site.vm(1)
    site.wires.delete(one.tap)
    site.flush()
    Watch(site.wall, site.wires).check()
    assert site.up() == {two.tap}
    assert site.wall.present().taps == {two.tap}


@pytest.mark.real
@pytest.mark.parametrize(
    "change",
    [
        ("insert", "rule", "inet", "ironcd", "input", "accept"),
        ("add", "rule", "inet", "ironcd", "VM", "accept"),
        ("add", "chain", "inet", "ironcd", "extra"),
        ("chain", "inet", "ironcd", "input", "{ policy accept; }"),
        ("delete", "element", "inet", "ironcd", "vms", "{ TAP }"),
        ("add", "element", "inet", "ironcd", "vms", "{ eth0 : accept }"),
        ("flush", "chain", "netdev", "ironcd_l2", "L2"),
        ("add", "element", "inet", "ironcd", "ranges", "{ TAP . 0.0.0.0/1 . 22 }"),
    ],
)
def test_any_change_of_the_rules_is_seen_and_undone(links, wall, namespace, change):
    site = Site(wall, links, namespace.name)
    vm = site.vm(0)
    named = [word.replace("VM", vm.chain).replace("TAP", vm.tap).replace("L2", vm.l2_chain) for word in change]
    assert wall.drift() == []
    site.nft(*named)
    assert wall.drift()
    assert Watch(wall, links).check() is not None
    assert wall.drift() == []
    assert site.up() == {vm.tap}


@pytest.mark.real
def test_other_tables_are_left_alone(links, wall, namespace):
    site = Site(wall, links, namespace.name)
    site.nft("add", "table", "inet", "theirs")
    site.nft("add", "chain", "inet", "theirs", "kept")
    vm = site.vm(0)
    wall.remove(vm.tap)
    wall.ensure_base([])
    assert "chain kept" in run(["ip", "netns", "exec", namespace.name, "nft", "list", "ruleset"])
    assert wall.drift() == []


@pytest.mark.real
def test_rules_that_the_kernel_refuses_leave_nothing(wall):
    slot = slot_at(RANGE, 0)
    with pytest.raises(HostError) as caught:
        wall.install(VmRules("ic" + 20 * "x", slot.guest_ip, slot.gateway_ip, Limits()))
    assert caught.value.code == "nft-refused"
    assert wall.present().taps == frozenset()
    assert wall.drift() == []
