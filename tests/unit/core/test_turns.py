"""Dealing out: never more than there is room for, never over a quota, and no large job waits for ever."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.fair_share import FairQueue, Lane, cost_of
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.placement import HostView, Rooms
from orchestrator.core.sharing import Quotas, Share, Sharing
from orchestrator.core.turns import Dealt, deal

NOW = 100_000.0
EVEN = Sharing()
SMALL = MachineClass("ironcd", vcpus=2, memory_mib=1024, disk_gib=1)
LARGE = MachineClass("ironcd-large", vcpus=8, memory_mib=1024, disk_gib=1)
CLASSES = [SMALL, MachineClass("ironcd-mid", vcpus=3, memory_mib=1024, disk_gib=1), LARGE]


def hosts(*sizes: int, taken: tuple[tuple[MachineClass, ...], ...] = ()) -> list[HostView]:
    return [
        HostView(
            f"h{n}",
            Capacity(vcpus, 1 << 20, 1000),
            taken=taken[n] if n < len(taken) else (),
            images=frozenset({"default"}),
        )
        for n, vcpus in enumerate(sizes)
    ]


def played(
    lanes: list[tuple[str, MachineClass, int, float]],
    views: list[HostView],
    sharing: Sharing = EVEN,
    has: list[tuple[str, MachineClass]] | None = None,
) -> tuple[Dealt, Rooms]:
    """Lanes as repository, class, how many jobs, and for how long they have waited; each a group of its own."""
    rooms = Rooms(views)
    made, number = [], 0
    for repo, machine, count, waited in lanes:
        jobs = deque((NOW - waited, number := number + 1) for _ in range(count))
        made.append(
            Lane((repo, machine.name), repo, machine, cost_of(machine, rooms.total), jobs, group=(repo, machine))
        )
    quotas = Quotas(sharing)
    used: dict[str, float] = {}
    for repo, machine in has or []:
        quotas.take(repo, machine)
        used[repo] = used.get(repo, 0.0) + cost_of(machine, rooms.total)
    short = {lane.group: len(lane.jobs) for lane in made}
    queue = FairQueue(made, used, sharing, NOW)
    return deal(queue, short, quotas, rooms, long_since=NOW - sharing.reserve_s), rooms


LIMITS = st.builds(Share, runners=st.none() | st.integers(0, 5), vcpus=st.none() | st.integers(0, 12))
REPOS = st.sampled_from(["a/x", "a/y", "b/z"])


@given(
    st.lists(
        st.tuples(REPOS, st.sampled_from(CLASSES), st.integers(1, 8), st.floats(0, 500)),
        max_size=6,
        unique_by=lambda lane: (lane[0], lane[1].name),
    ),
    st.lists(st.integers(1, 16), max_size=4),
    st.builds(Sharing, repository=LIMITS, organisation=LIMITS, classes=st.dictionaries(st.just("ironcd-mid"), LIMITS)),
    st.lists(st.tuples(REPOS, st.sampled_from(CLASSES)), max_size=3),
)
def test_neither_room_nor_quota_is_ever_overdrawn_and_who_waits_knows_why(
    lanes: list[tuple[str, MachineClass, int, float]],
    sizes: list[int],
    sharing: Sharing,
    has: list[tuple[str, MachineClass]],
) -> None:
    dealt, _ = played(lanes, hosts(*sizes), sharing, has)
    for n, vcpus in enumerate(sizes):
        assert sum(given.machine.vcpus for given in dealt.given if given.host == f"h{n}") <= vcpus
    owners = [repo for repo, _, count, _ in lanes for _ in range(count)]
    jobs = [(owners[given.job - 1], given.machine) for given in dealt.given]
    for share, among in (
        *((sharing.of_repository(repo), lambda r, _m, repo=repo: r == repo) for repo in ("a/x", "a/y", "b/z")),
        *((sharing.of_organisation(o), lambda r, _m, o=o: r.startswith(o + "/")) for o in ("a", "b")),
        *((sharing.of_class(c.name), lambda _r, m, c=c: m is c) for c in CLASSES),
    ):
        mine = [machine for repo, machine in jobs if among(repo, machine)]
        held = [machine for repo, machine in has if among(repo, machine)]
        if mine and share.runners is not None:
            assert len(mine) + len(held) <= share.runners
        if mine and share.vcpus is not None:
            assert sum(m.vcpus for m in mine + held) <= share.vcpus
    given_by = Counter((owners[given.job - 1], given.machine.name) for given in dealt.given)
    for repo, machine, count, _ in lanes:
        if given_by[repo, machine.name] < count:
            assert dealt.waits[repo, machine.name].reason


def test_a_quota_says_whose_it_is_and_how_much_of_it_is_used() -> None:
    sharing = Sharing(
        repositories={"a/x": Share(runners=3)},
        organisations={"b": Share(vcpus=4)},
        classes={"ironcd-large": Share(runners=0)},
    )
    lanes = [("a/x", SMALL, 5, 0.0), ("b/y", SMALL, 3, 0.0), ("c/z", LARGE, 1, 0.0)]
    dealt, _ = played(lanes, hosts(64), sharing, has=[("a/x", SMALL)])
    assert len(dealt.given) == 4
    assert dealt.waits["a/x", "ironcd"].kind == "quota"
    assert dealt.waits["a/x", "ironcd"].reason == "the quota of repository a/x is used up: 3 of 3 runners"
    words = "the quota of organisation b has no room: 4 of 4 vCPUs are in use, and class ironcd needs 2"
    assert dealt.waits["b/y", "ironcd"].reason == words
    assert "quota of class ironcd-large is used up: 0 of 0" in dealt.waits["c/z", "ironcd-large"].reason


def test_small_jobs_may_pass_a_large_one_that_has_just_come() -> None:
    views = hosts(8, taken=((SMALL,),))
    dealt, _ = played([("a/x", LARGE, 1, 10.0), ("b/y", SMALL, 9, 0.0)], views)
    assert Counter(given.machine.name for given in dealt.given) == {"ironcd": 3}
    assert "host h0 is full: needs 8 vCPUs, has 6" in dealt.waits["a/x", "ironcd-large"].reason


def test_a_large_job_that_has_waited_long_has_a_host_kept_for_it() -> None:
    views = hosts(8, 8, taken=((SMALL, SMALL), (SMALL,)))
    dealt, _ = played([("a/x", LARGE, 1, 121.0), ("b/y", SMALL, 9, 0.0)], views)
    assert {given.host for given in dealt.given} == {"h0"}, "the one with the least room left over is kept by nobody"
    assert "host h1 is kept for it" in dealt.waits["a/x", "ironcd-large"].reason
    assert "host h1 is kept for job 1, which waits for 8 vCPUs" in dealt.waits["b/y", "ironcd"].reason


def test_no_more_than_a_quarter_of_the_hosts_is_kept() -> None:
    views = hosts(*[8] * 8, taken=((SMALL,),) * 8)
    large = [(f"a/r{n}", LARGE, 1, 500.0) for n in range(5)]
    dealt, _ = played([*large, ("b/y", SMALL, 50, 0.0)], views)
    assert len({given.host for given in dealt.given}) == 6


def test_a_host_isnt_kept_for_what_it_could_never_hold() -> None:
    dealt, _ = played([("a/x", MachineClass("huge", vcpus=64), 1, 500.0), ("b/y", SMALL, 9, 0.0)], hosts(8))
    assert len(dealt.given) == 4


def test_a_stream_of_small_jobs_keeps_no_large_one_out() -> None:
    """Small jobs without end, each a machine for two rounds, in a repository of its own; the large one gets its host."""
    running: list[tuple[int, str, MachineClass]] = []
    for turn in range(200):
        running = [job for job in running if job[0] > turn]
        views = hosts(8, taken=(tuple(machine for _, _, machine in running),))
        stream = [(f"s{turn}/r{n}", SMALL, 1, 0.0) for n in range(6)]
        held = [(repo, machine) for _, repo, machine in running]
        dealt, _ = played([("a/x", LARGE, 1, 10.0 * turn), *stream], views, has=held)
        for one in dealt.given:
            if one.machine is LARGE:
                assert turn <= 120 / 10 + 3, "what it waits for is its patience and the jobs that run"
                return
            running.append((turn + 2, f"s{turn}/r{one.job}", SMALL))
    raise AssertionError("the large job never had its turn")
