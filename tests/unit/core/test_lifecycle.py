"""The lifecycle's rules, held over random histories of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import lifecycle
from orchestrator.core.lifecycle import MOVES, advance, may_be_registered, owed, wanted
from orchestrator.core.loss import HOLD_S
from orchestrator.core.machine import MachineClass
from orchestrator.core.runner import (
    PHASES,
    Alarm,
    Bind,
    Boot,
    ClockSet,
    Deadlines,
    Deregister,
    Destroy,
    Event,
    Fence,
    Fenced,
    HostLost,
    JobCompleted,
    JobStarted,
    LifetimeCut,
    OutagePassed,
    Place,
    Placed,
    PolicyBound,
    Register,
    Registered,
    RegistrationAsked,
    RegistrationOutOfReach,
    RegistrationProvedGone,
    RegistrationRefused,
    Runner,
    RunnerExited,
    RunnerListened,
    Ticked,
    VmFailed,
    VmProvedGone,
    Withdrawn,
)

DEADLINES = Deadlines()
MACHINE = MachineClass("ironcd", lifetime_s=3600)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Placed, st.sampled_from(["a", "b"])),
    st.just(RegistrationAsked()),
    st.builds(Registered, st.integers(1, 3)),
    st.just(RegistrationRefused("403")),
    st.just(RunnerListened()),
    st.builds(JobStarted, st.integers(1, 3)),
    st.builds(PolicyBound, st.sampled_from(["sha256:a", "sha256:b"])),
    st.builds(JobCompleted, st.integers(1, 3), st.just("success")),
    st.builds(RunnerExited, st.integers(0, 7)),
    st.just(VmFailed("vm_crashed", "panic")),
    st.just(HostLost()),
    st.just(Withdrawn("cancelled")),
    st.builds(Fenced, st.sampled_from(["free", "busy", "absent"])),
    st.just(VmProvedGone()),
    st.just(RegistrationProvedGone()),
    st.just(RegistrationOutOfReach("suspended")),
    st.just(Ticked()),
    st.builds(OutagePassed, st.floats(-5, 600)),
    st.builds(ClockSet, st.floats(0, 600)),
    st.builds(LifetimeCut, st.floats(-5, 4000) | st.just(0.0), st.just("drained")),
)
HISTORIES = st.lists(st.tuples(st.floats(0, 4000), EVENTS), max_size=40)


def new() -> Runner:
    return wanted(
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        MACHINE,
        installation=1,
        org="acme",
        repo="acme/app",
        labels=("ironcd",),
        meant_for=7,
        now=0.0,
        deadlines=DEADLINES,
    )


def play(*events: Event, runner: Runner | None = None, now: float = 1.0) -> Runner:
    runner = runner or new()
    for event in events:
        runner = advance(runner, event, now, DEADLINES).runner
    return runner


BOOTING = (Placed("a"), RegistrationAsked(), Registered(5))
READY = (*BOOTING, RunnerListened())
RUNNING = (*READY, JobStarted(7))


@given(HISTORIES)
@settings(max_examples=600, deadline=None)
def test_rules_hold_over_any_history(history: list[tuple[float, Event]]) -> None:
    runner, now = new(), 0.0
    for wait, event in history:
        now += wait
        step = advance(runner, event, now, DEADLINES)
        after = step.runner
        if after.phase != runner.phase:
            assert (runner.phase, type(event).__name__, after.phase) in MOVES or after.phase == "GONE"
            assert PHASES.index(after.phase) > PHASES.index(runner.phase)
            assert after.since == now
        if step.ignored:
            assert after == runner
        if after.phase != "GONE":
            assert after.deadline > 0
        if runner.reason:
            assert after.reason == runner.reason
        if after.phase in ("DESTROYING", "GONE"):
            assert after.reason
        if after.phase == "GONE":
            assert after.vm != "asked"
            assert not may_be_registered(after)
            assert not owed(after)
        assert [e for e in step.effects if not isinstance(e, Alarm)] == list(owed(after))
        runner = after


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
def test_an_event_told_twice_counts_once(history: list[tuple[float, Event]]) -> None:
    runner, now = new(), 0.0
    for wait, event in history:
        now += wait
        once = advance(runner, event, now, DEADLINES).runner
        if not isinstance(event, (Ticked, OutagePassed, ClockSet, Fenced, LifetimeCut)):
            again = advance(once, event, now, DEADLINES).runner
            assert again == once
        runner = once


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
def test_only_proof_leaves_destroying(history: list[tuple[float, Event]]) -> None:
    runner = play(*RUNNING, JobCompleted(7, "success"))
    vm_proved = registration_proved = False
    now = 1.0
    for wait, event in history:
        now += wait
        vm_proved |= isinstance(event, VmProvedGone)
        registration_proved |= isinstance(event, (RegistrationProvedGone, RegistrationOutOfReach)) or (
            isinstance(event, Fenced) and event.answer != "busy"
        )
        runner = advance(runner, event, now, DEADLINES).runner
        assert (runner.phase == "GONE") == (vm_proved and registration_proved)


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
def test_every_runner_can_be_brought_to_its_end(history: list[tuple[float, Event]]) -> None:
    """Whatever happened, carrying out what is owed and letting time pass ends in GONE with nothing left."""
    runner, now = new(), 0.0
    for wait, event in history:
        now += wait
        runner = advance(runner, event, now, DEADLINES).runner
    for _ in range(12):
        now = max(now, runner.deadline) + 1
        for effect in owed(runner):
            match effect:
                case Fence():
                    runner = advance(runner, Fenced("free"), now, DEADLINES).runner
                case Destroy():
                    runner = advance(runner, VmProvedGone(), now, DEADLINES).runner
                case Deregister():
                    runner = advance(runner, RegistrationProvedGone(), now, DEADLINES).runner
        runner = advance(runner, Ticked(), now, DEADLINES).runner
    assert runner.phase == "GONE"


def test_every_declared_move_can_be_made() -> None:
    seen: set[tuple[str, str, str]] = set()
    late = 10**9
    starts = [
        new(),
        play(Placed("a")),
        play(Placed("a"), RegistrationAsked()),
        play(*BOOTING),
        play(*BOOTING, Withdrawn("cancelled")),
        play(*READY),
        play(*READY, Withdrawn("cancelled")),
        play(*RUNNING),
        play(*RUNNING, JobCompleted(7, "success")),
        play(*RUNNING, JobCompleted(7, "success"), VmProvedGone()),
        play(*RUNNING, JobCompleted(7, "success"), RegistrationProvedGone()),
        play(Placed("a"), RegistrationAsked(), Withdrawn("cancelled")),
    ]
    events: list[Event] = [
        Placed("b"), RegistrationAsked(), Registered(9), RegistrationRefused("403"), RunnerListened(), JobStarted(7),
        PolicyBound("sha256:a"), JobCompleted(7, "success"), RunnerExited(0), VmFailed("vm_crashed", ""), HostLost(),
        Withdrawn("cancelled"), Fenced("free"), VmProvedGone(), RegistrationProvedGone(), Ticked(), OutagePassed(1), ClockSet(1),
        RegistrationOutOfReach("suspended"),
    ]  # fmt: skip
    for start in starts:
        for event in events:
            after = advance(start, event, late, DEADLINES).runner
            if after.phase == start.phase:
                continue
            # An end with nothing to destroy passes DESTROYING in the same step.
            target = "DESTROYING" if after.phase == "GONE" and start.phase != "DESTROYING" else after.phase
            seen.add((start.phase, type(event).__name__, target))
    assert seen == set(MOVES)


def test_the_life_of_a_runner_whose_job_ends_well() -> None:
    runner = new()
    orders = []
    for event in (*RUNNING, PolicyBound("sha256:a"), JobCompleted(7, "success"), VmProvedGone()):
        step = advance(runner, event, 5.0, DEADLINES)
        assert not step.ignored
        runner = step.runner
        orders.append(step.effects)
    assert orders == [
        (Register(),),
        (Register(),),
        (Boot("a"),),
        (Boot("a"),),
        (Boot("a"), Bind(7)),
        (Boot("a"),),
        (Destroy("a"), Deregister(5)),
        (Deregister(5),),
    ]
    runner = play(RegistrationProvedGone(), runner=runner)
    assert (runner.phase, runner.reason, runner.detail) == ("GONE", "job_completed", "success")


def test_a_new_runner_asks_for_a_place_first() -> None:
    assert owed(new()) == (Place(),)


def test_a_cancelled_job_fences_its_runner_before_anything_is_destroyed() -> None:
    step = advance(play(*READY), Withdrawn("cancelled"), 2.0, DEADLINES)
    assert step.effects == (Boot("a"), Fence(5))
    free = play(Fenced("free"), runner=step.runner)
    assert (free.phase, free.reason, free.registration) == ("DESTROYING", "cancelled", "gone")
    busy = play(Fenced("busy"), runner=step.runner)
    assert (busy.phase, busy.fencing) == ("READY", "")


def test_a_job_that_got_in_before_the_fence_is_run() -> None:
    runner = play(Withdrawn("cancelled"), JobStarted(8), runner=play(*READY))
    assert (runner.phase, runner.job_id, runner.fencing) == ("RUNNING", 8, "")


def test_a_runner_takes_the_job_that_github_gave_it_not_the_one_it_was_made_for() -> None:
    runner = play(*READY, JobStarted(99))
    assert (runner.meant_for, runner.job_id) == (7, 99)
    step = advance(runner, JobStarted(7), 3.0, DEADLINES)
    assert "one job" in step.ignored


def test_a_refused_registration_leaves_nothing() -> None:
    runner = play(Placed("a"), RegistrationAsked(), RegistrationRefused("403 Resource not accessible"))
    assert (runner.phase, runner.reason, runner.detail) == (
        "GONE",
        "registration_refused",
        "403 Resource not accessible",
    )


def test_a_registration_that_may_exist_is_looked_for_by_name() -> None:
    runner = play(Placed("a"), RegistrationAsked(), Withdrawn("cancelled"))
    assert runner.phase == "DESTROYING"
    assert owed(runner) == (Deregister(0),)


def test_a_host_lost_before_boot_costs_a_place_and_nothing_else() -> None:
    runner = play(Placed("a"), HostLost())
    assert (runner.phase, runner.host) == ("WANTED", "")


def test_the_deadline_in_destroying_alarms_and_never_lets_go() -> None:
    runner = play(*RUNNING, JobCompleted(7, "success"))
    step = advance(runner, Ticked(), runner.deadline + 1, DEADLINES)
    assert step.runner.phase == "DESTROYING"
    assert step.effects[-1] == Alarm(("proof of the VM's destruction", "the registration's removal"))
    assert step.runner.deadline > runner.deadline


def test_a_registration_that_github_holds_for_a_lost_job_alarms_once_that_must_be_over() -> None:
    runner = play(*RUNNING, VmFailed("vm-crashed", "killed"), VmProvedGone())
    assert runner.phase == "DESTROYING"
    waiting = advance(runner, Ticked(), runner.since + HOLD_S, DEADLINES)
    assert (waiting.runner, waiting.effects) == (runner, owed(runner))
    late = advance(runner, Ticked(), runner.since + HOLD_S + DEADLINES.destroying_s, DEADLINES)
    assert late.effects[-1] == Alarm(("the registration's removal",))
    completed = play(*RUNNING, JobCompleted(7, "success"), VmProvedGone())
    assert (
        advance(completed, Ticked(), completed.since + DEADLINES.destroying_s, DEADLINES).effects[-1]
        == late.effects[-1]
    )


def test_a_registration_out_of_reach_ends_what_is_being_fenced_and_nothing_else() -> None:
    assert play(RegistrationOutOfReach("suspended"), runner=play(*READY)) == play(*READY)
    ended = play(Withdrawn("idle"), RegistrationOutOfReach("suspended"), runner=play(*READY))
    assert (ended.phase, ended.reason, ended.registration) == ("DESTROYING", "idle", "unreachable")
    assert owed(ended) == (Destroy("a"),)
    assert play(VmProvedGone(), runner=ended).phase == "GONE"


def test_an_outage_lengthens_the_wait_for_github() -> None:
    runner = play(*READY)
    assert play(OutagePassed(100.0), runner=runner).deadline == runner.deadline + 100.0


def test_the_diagram_names_every_phase() -> None:
    diagram = lifecycle.mermaid()
    assert all(phase in diagram for phase in PHASES)
