"""Whose turn it is: beside a plain model that looks at everybody each time, and the properties that people rely on."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.fair_share import FairQueue, Lane, cost_of
from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.core.sharing import PRIORITIES, Share, Sharing, owner_of

NOW = 100_000.0
SMALL = MachineClass("ironcd", vcpus=2)
LARGE = MachineClass("ironcd-large", vcpus=8)
TOTAL = Capacity(vcpus=64, memory_mib=1 << 20, disk_gib=1000)


def lane(repo: str, jobs: list[tuple[float, int]], machine: MachineClass = SMALL) -> Lane:
    return Lane((repo, machine.name), repo, machine, cost_of(machine, TOTAL), deque(sorted(jobs)))


def flood(repo: str, count: int, *, first: int = 1, since: float = NOW - 60) -> Lane:
    return lane(repo, [(since + n / 1000, first + n) for n in range(count)])


REPOS = st.sampled_from(["a/x", "a/y", "b/x", "b/y", "c/x"])
SHARES = st.builds(
    Share, weight=st.sampled_from([0.5, 1.0, 3.0]), priority=st.integers(-PRIORITIES, PRIORITIES) | st.just(0)
)
SHARINGS = st.builds(
    Sharing,
    repositories=st.dictionaries(REPOS, SHARES, max_size=3),
    organisations=st.dictionaries(st.sampled_from(["a", "b"]), SHARES, max_size=2),
    classes=st.dictionaries(st.just("ironcd-large"), SHARES, max_size=1),
    ageing_s=st.sampled_from([0.0, 100.0, 600.0]),
)
JOBS = st.lists(st.tuples(REPOS, st.sampled_from([SMALL, LARGE]), st.floats(0, 2000)), max_size=25)
USED = st.dictionaries(REPOS, st.floats(0.01, 1.0), max_size=3)


def modelled(
    jobs: list[tuple[str, MachineClass, float, int]],
    used: dict[str, float],
    served: dict[str, float],
    sharing: Sharing,
) -> list[int]:
    """The rules as they are written, by looking at every job for every turn."""
    left, has, order = list(jobs), dict(used), []
    while left:

        def key(job: tuple[str, MachineClass, float, int]) -> tuple[float, ...]:
            repo, machine, since, number = job
            level = sharing.priority_of(repo, machine.name)
            if not has.get(repo) and sharing.ageing_s:
                first = min(s for r, m, s, _ in left if (r, m) == (repo, machine))
                age = NOW - max(first, served.get(repo, 0.0))
                level = min(PRIORITIES, level + int(age // sharing.ageing_s))
            owners = sum(cost for r, cost in has.items() if owner_of(r) == owner_of(repo))
            by_owner = owners / sharing.of_organisation(owner_of(repo)).weight
            by_repo = has.get(repo, 0.0) / sharing.of_repository(repo).weight
            return (-level, by_owner, by_repo, since, number)

        best = min(left, key=key)
        left.remove(best)
        order.append(best[3])
        has[best[0]] = has.get(best[0], 0.0) + cost_of(best[1], TOTAL)
    return order


@given(JOBS, USED, st.dictionaries(REPOS, st.floats(NOW - 2000, NOW)), SHARINGS)
def test_the_order_is_that_of_the_rules(
    jobs: list[tuple[str, MachineClass, float]], used: dict[str, float], served: dict[str, float], sharing: Sharing
) -> None:
    numbered = [(repo, machine, NOW - waited, n) for n, (repo, machine, waited) in enumerate(jobs)]
    lanes: dict[tuple[str, str], list[tuple[float, int]]] = {}
    machines = {SMALL.name: SMALL, LARGE.name: LARGE}
    for repo, machine, since, n in numbered:
        lanes.setdefault((repo, machine.name), []).append((since, n))
    made = [lane(repo, of, machines[name]) for (repo, name), of in lanes.items()]
    got = list(FairQueue(made, used, sharing, NOW, served=served).order())
    want = modelled(numbered, used, served, sharing)
    assert sorted(got) == list(range(len(jobs)))
    assert got == want


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_repositories_that_wait_get_machines_in_turns(floods: list[int]) -> None:
    """Of two that still wait, none is ever more than one machine ahead of the other."""
    lanes = [flood(f"a/r{n}", count, first=1000 * n) for n, count in enumerate(floods)]
    had: Counter[int] = Counter()
    for job in FairQueue(lanes, {}, Sharing(), NOW).order():
        had[job // 1000] += 1
        still = [had[n] for n, count in enumerate(floods) if had[n] < count]
        assert not still or max(had.values()) - min(still) <= 1


@given(st.integers(1, 500), st.integers(0, 30))
def test_a_quiet_repository_is_next_however_long_the_flood(count: int, has: int) -> None:
    used = {"a/flood": has * cost_of(SMALL, TOTAL)} if has else {}
    quiet = lane("a/quiet", [(NOW, 9999)])
    order = list(FairQueue([flood("a/flood", count), quiet], used, Sharing(), NOW).order())
    assert order.index(9999) <= (0 if has else 1)


def test_a_flooding_organisation_takes_nothing_from_another() -> None:
    many = [flood(f"a/r{n}", 20, first=100 * n) for n in range(10)]
    order = list(FairQueue([*many, flood("b/one", 5, first=5000, since=NOW)], {}, Sharing(), NOW).order())
    assert [job >= 5000 for job in order[:10]] == [False, True] * 5


def test_weights() -> None:
    sharing = Sharing(repositories={"a/big": Share(weight=3.0)})
    order = list(FairQueue([flood("a/big", 300, first=1000), flood("a/small", 300)], {}, sharing, NOW).order())
    assert sum(1 for job in order[:100] if job >= 1000) == 75


def test_a_higher_priority_goes_first_and_a_low_one_ages_in() -> None:
    sharing = Sharing(repositories={"a/high": Share(priority=2), "a/low": Share(priority=-2)}, ageing_s=600)

    def first(waited: float, used: dict[str, float]) -> int:
        lanes = [flood("a/high", 50, first=1000, since=NOW - 1), lane("a/low", [(NOW - waited, 1)])]
        return FairQueue(lanes, used, sharing, NOW).order().__next__()

    has = {"a/high": 0.5}
    assert first(0, has) >= 1000
    assert first(4 * 600 - 1, has) >= 1000
    assert first(4 * 600, has) == 1
    assert first(9e9, {**has, "a/low": 0.1}) >= 1000, "what has a machine doesn't age"


def test_a_lane_that_is_left_out_takes_nobody_with_it() -> None:
    queue = FairQueue(
        [flood("a/x", 3), lane("a/x", [(NOW - 99, 50)], LARGE), flood("a/y", 1, first=70)], {}, Sharing(), NOW
    )
    seen = []
    while (now := queue.next()) is not None:
        if now.machine is LARGE:
            queue.leave_out(now)
        else:
            seen.append(queue.give(now))
    assert sorted(seen) == [1, 2, 3, 70]


def test_what_a_machine_costs_is_the_largest_part_that_it_takes() -> None:
    total = Capacity(vcpus=10, memory_mib=1000, disk_gib=1, gpus=2)
    assert cost_of(MachineClass("c", vcpus=1, memory_mib=500), total) == 0.5
    assert cost_of(MachineClass("c", vcpus=1, memory_mib=1, gpus=1), total) == 0.5
    assert cost_of(MachineClass("c", vcpus=1, memory_mib=1), Capacity(0, 0, 0)) > 0
