"""Placement: no overcommit, a readable reason, and the same answer for the same hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.placement import HostView, Placed, Waits, free_of, place

SMALL = MachineClass("ironcd", vcpus=2, memory_mib=4096, disk_gib=20)
ROOM = Capacity(vcpus=8, memory_mib=32768, disk_gib=200)


def host(
    name: str = "a", *, taken: tuple[MachineClass, ...] = (), capacity: Capacity = ROOM, **more: object
) -> HostView:
    facts = {"images": frozenset({"default"}), **more}
    return HostView(name, capacity, taken=taken, **facts)  # type: ignore[arg-type]


MACHINES = st.builds(
    MachineClass,
    st.just("c"),
    vcpus=st.integers(1, 10),
    memory_mib=st.integers(1, 40000),
    disk_gib=st.integers(1, 250),
    gpus=st.integers(0, 1),
)


@given(st.lists(MACHINES, max_size=40), st.integers(1, 4))
def test_no_host_is_ever_overcommitted(machines: list[MachineClass], count: int) -> None:
    hosts = {f"h{n}": host(f"h{n}") for n in range(count)}
    for machine in machines:
        answer = place(machine, list(hosts.values()))
        if isinstance(answer, Waits):
            assert answer.reason
            continue
        before = free_of(hosts[answer.host])
        assert before.vcpus >= machine.vcpus
        assert before.memory_mib >= machine.memory_mib
        assert before.disk_gib >= machine.disk_gib
        assert before.gpus >= machine.gpus
        hosts[answer.host] = host(answer.host, taken=(*hosts[answer.host].taken, machine))


@given(st.permutations([host("a"), host("b", taken=(SMALL,)), host("c")]))
def test_the_order_in_which_hosts_are_listed_does_not_matter(hosts: list[HostView]) -> None:
    assert place(SMALL, hosts) == Placed("b")


def test_a_full_host_makes_the_job_wait_and_says_what_is_missing() -> None:
    full = host(taken=(SMALL,) * 4)
    answer = place(SMALL, [full])
    assert isinstance(answer, Waits)
    assert "host a is full: needs 2 vCPUs, has 0" in answer.reason


def test_reasons_name_what_stands_in_the_way() -> None:
    for view, words in (
        (host(alive=False), "is away"),
        (host(cordoned=True), "is cordoned"),
        (host(refuses="has no hardware virtualisation"), "has no hardware virtualisation"),
        (host(images=frozenset()), "has no image 'default'"),
        (host(capacity=Capacity(1, 512, 5)), "is too small: needs 2 vCPUs, has 1"),
    ):
        answer = place(SMALL, [view])
        assert isinstance(answer, Waits)
        assert words in answer.reason
    assert place(SMALL, []) == Waits("no host has reported yet")


def test_a_host_on_which_it_failed_is_avoided_while_another_could_hold_it() -> None:
    assert place(SMALL, [host("a"), host("b")], avoid=["a"]) == Placed("b")
    assert isinstance(place(SMALL, [host("a"), host("b", taken=(SMALL,) * 4)], avoid=["a"]), Waits)
    assert place(SMALL, [host("a")], avoid=["a"]) == Placed("a")
    for trouble in (
        {"alive": False},
        {"cordoned": True},
        {"refuses": "reports a broken wall"},
        {"images": frozenset()},
    ):
        assert place(SMALL, [host("a"), host("b", **trouble)], avoid=["a"]) == Placed("a"), "b may be so for ever"
