"""Which machines wait: never at a job's expense, never one that nothing asks for."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.machine import Capacity, MachineClass
from orchestrator.host.pool_plan import Memory, Plan, Scene, Waiter, fits, make_room, plan

NOW = 1_800_000_000.0
SMALL = MachineClass("small", vcpus=1, memory_mib=1024, disk_gib=4, warm=2)
LARGE = MachineClass("large", vcpus=4, memory_mib=8192, disk_gib=20, warm=1)
ROOM = Capacity(8, 32 * 1024, 500)


def waiter(number: int = 1, machine: MachineClass = SMALL, **changes: object) -> Waiter:
    made = Waiter(f"W{number}", machine, "t-" + machine.name, "waiting", NOW - 100 + number)
    return msgspec.structs.replace(made, **changes)


def scene(*waiters: Waiter, **changes: object) -> Scene:
    made = Scene((SMALL,), {"small": "t-small", "large": "t-large"}, waiters, (), ROOM)
    return msgspec.structs.replace(made, **changes)


def ended(found: Plan) -> dict[str, str]:
    return dict(found.end)


def test_too_few_one_is_made_from_its_classs_template():
    assert plan(scene(), NOW) == Plan(make=(SMALL, "t-small"))
    assert plan(scene(waiter(1)), NOW) == Plan(make=(SMALL, "t-small"))


def test_enough_nothing_is_done():
    assert plan(scene(waiter(1), waiter(2)), NOW) == Plan()


def test_one_at_a_time():
    assert plan(scene(waiter(1, state="making")), NOW) == Plan()


def test_never_while_a_job_is_being_started():
    assert plan(scene(starting=True), NOW) == Plan()


def test_without_a_template_there_is_no_pool():
    assert plan(scene(templates={}), NOW) == Plan()


def test_a_class_that_boots_cold_has_no_pool():
    cold = msgspec.structs.replace(SMALL, start="cold")
    assert plan(scene(classes=(cold,)), NOW) == Plan()
    assert ended(plan(scene(waiter(1), classes=(cold,)), NOW)).keys() == {"W1"}


def test_none_is_made_where_a_job_could_not_have_its_room_too():
    full = (msgspec.structs.replace(LARGE, vcpus=8),)
    assert plan(scene(taken=full), NOW) == Plan()


def test_a_job_has_its_room_at_once_and_the_oldest_goes():
    whole = msgspec.structs.replace(LARGE, vcpus=7)
    found = plan(scene(waiter(2), waiter(1), taken=(whole,), starting=True), NOW)
    assert ended(found) == {"W1": "a job needs its room"}
    whole = msgspec.structs.replace(LARGE, vcpus=8)
    assert ended(plan(scene(waiter(2), waiter(1), taken=(whole,)), NOW)).keys() == {"W1", "W2"}


def test_what_ends_already_isnt_counted_as_room_and_nothing_more_ends_for_it():
    whole = msgspec.structs.replace(LARGE, vcpus=7)
    found = plan(scene(waiter(1, state="ending"), waiter(2), taken=(whole,)), NOW)
    assert found == Plan()


@pytest.mark.parametrize("field", ["vcpus", "memory_mib", "disk_gib", "image"])
def test_a_class_that_changed_ends_those_of_its_old_kind(field):
    changed = msgspec.structs.replace(SMALL, **{field: "other" if field == "image" else 3})
    assert ended(plan(scene(waiter(1), classes=(changed,)), NOW)).keys() == {"W1"}


@pytest.mark.parametrize("changes", [{"lifetime_s": 60}, {"warm": 1}])
def test_what_matters_to_no_machine_ends_none(changes):
    assert plan(scene(waiter(1), classes=(msgspec.structs.replace(SMALL, **changes),)), NOW).end == ()


def test_a_class_that_is_gone_or_wants_none_ends_all():
    assert ended(plan(scene(waiter(1), waiter(2), classes=()), NOW)).keys() == {"W1", "W2"}
    none = msgspec.structs.replace(SMALL, warm=0)
    assert ended(plan(scene(waiter(1), classes=(none,)), NOW)).keys() == {"W1"}


def test_a_new_template_ends_the_clones_of_the_old_one():
    found = plan(scene(waiter(1), templates={"small": "t-newer"}), NOW)
    assert ended(found) == {"W1": "its template was replaced"}
    assert ended(plan(scene(waiter(1), templates={}), NOW)).keys() == {"W1"}


def test_age_recycles():
    old = waiter(1, since=NOW - 3600)
    assert ended(plan(scene(old, waiter(2)), NOW)) == {"W1": "it is old"}
    assert plan(scene(old, waiter(2)), NOW, age_s=3601.0) == Plan()


def test_under_pressure_one_goes_after_the_other_and_none_comes():
    tight = Memory(tight=True, roomy=False)
    assert ended(plan(scene(waiter(1), waiter(2), memory=tight), NOW)) == {"W1": "memory is short"}
    assert plan(scene(memory=tight), NOW) == Plan()
    assert plan(scene(waiter(1, state="ending"), waiter(2), memory=tight), NOW) == Plan(), "one after the other"


def test_near_pressure_none_comes_and_none_goes():
    assert plan(scene(waiter(1), memory=Memory(tight=False, roomy=False)), NOW) == Plan()


def test_surplus_goes_oldest_first():
    assert ended(plan(scene(waiter(3), waiter(1), waiter(2)), NOW)) == {"W1": "more wait than its class wants"}


def test_classes_are_filled_in_turns():
    both = (msgspec.structs.replace(SMALL, warm=3), LARGE)
    assert plan(scene(waiter(1), classes=both), NOW).make == (LARGE, "t-large")


machines = st.builds(
    MachineClass,
    name=st.sampled_from(["a", "b", "c"]),
    vcpus=st.integers(1, 5),
    memory_mib=st.integers(64, 4096),
    disk_gib=st.integers(1, 30),
    warm=st.integers(0, 3),
    start=st.sampled_from(["clone", "cold"]),
)
waiters = st.builds(
    Waiter,
    id=st.uuids().map(str),
    machine=machines,
    template=st.sampled_from(["t1", "t2"]),
    state=st.sampled_from(["making", "waiting", "ending"]),
    since=st.floats(NOW - 7200, NOW),
)
scenes = st.builds(
    Scene,
    classes=st.lists(machines, max_size=3, unique_by=lambda machine: machine.name).map(tuple),
    templates=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["t1", "t2"])),
    waiters=st.lists(waiters, max_size=6, unique_by=lambda waiter: waiter.id).map(tuple),
    taken=st.lists(machines, max_size=3).map(tuple),
    capacity=st.builds(Capacity, st.integers(0, 16), st.integers(0, 16384), st.integers(0, 100)),
    starting=st.booleans(),
    memory=st.builds(Memory, st.booleans(), st.booleans()),
)


@given(scenes)
def test_the_pool_takes_no_room_from_a_job(given_scene):
    found = plan(given_scene, NOW)
    left = [w for w in given_scene.waiters if w.id not in ended(found)]
    waiting = [w.machine for w in left if w.state == "waiting"]
    others = [w.machine for w in left if w.state != "waiting"]
    if waiting and fits([*given_scene.taken, *others], given_scene.capacity):
        assert fits([*given_scene.taken, *others, *waiting], given_scene.capacity)
    if found.make is not None:
        machine, template = found.make
        assert not given_scene.starting
        assert given_scene.memory.roomy
        assert given_scene.templates[machine.name] == template
        assert fits([*given_scene.taken, *(w.machine for w in given_scene.waiters), machine], given_scene.capacity)
        mine = [w for w in given_scene.waiters if w.machine.name == machine.name and w.state != "ending"]
        assert len(mine) < machine.warm
    assert set(ended(found)) <= {w.id for w in given_scene.waiters if w.state == "waiting"}


@given(scenes)
def test_room_is_made_by_no_more_than_is_needed(given_scene):
    gone = make_room(given_scene.taken, given_scene.waiters, given_scene.capacity)
    if gone:
        kept = [w.machine for w in given_scene.waiters if w.id not in gone[:-1]]
        assert not fits([*given_scene.taken, *kept], given_scene.capacity)
