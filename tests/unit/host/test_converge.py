from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.flow import Identity
from orchestrator.core.machine import MachineClass
from orchestrator.core.policy import Policy, Rule
from orchestrator.core.wire import DesiredRunner, Proof
from orchestrator.host.converge import POWER_OFF_S, REFUSAL_S, UNKNOWN_S, Situation, Step, next_step
from orchestrator.host.record import Record

ULID = "01JZZZZZZZZZZZZZZZZZZZZZZ1"
NOW = 1000.0
POLICY = Policy("enforce", (Rule("a", host="a.example"),))
JOBS = Policy("enforce", (Rule("b", host="b.example"),))
MACHINE = MachineClass("ironcd")
WANT = DesiredRunner(
    ULID, "run", MACHINE, Identity(ULID), POLICY, 1, jit="x" * 20, boot_by=NOW + 100, end_by=NOW + 1000
)
HERE = Situation()


def _record(vm="running", *marks, **fields) -> Record:
    fields = {"policy": POLICY.digest, "generation": 1, "released": True} | fields
    return Record(ULID, MACHINE, vm=vm, marks=dict.fromkeys(marks, 1.0), ups=dict.fromkeys(marks, 1.0), **fields)


def _want(**changes) -> DesiredRunner:
    return msgspec.structs.replace(WANT, **changes)


def _proof(*, whole: bool) -> Proof:
    return Proof(True, True, True, True, True, whole, True, True, True, NOW)


def _verb(want, record, situation=HERE, now=NOW) -> str:
    return next_step(want, record, situation, now).verb


def test_a_wish_is_carried_out():
    assert _verb(WANT, None) == "start"
    assert _verb(WANT, _record("making")) == "keep"
    assert _verb(WANT, _record("running")) == "keep"


def test_a_wish_without_jit_and_without_a_vm_cant_be():
    assert next_step(_want(jit=""), None, HERE, NOW) == Step(
        "fail", "its JIT configuration is gone, and nothing is known of its VM", "state-lost"
    )


@pytest.mark.parametrize("changes", [{"boot_by": NOW}, {"end_by": NOW - 1}])
def test_a_wish_that_comes_too_late_fails(changes):
    assert next_step(_want(**changes), None, HERE, NOW).code == "boot-timeout"


def test_gone_is_proved_even_for_what_never_was():
    assert _verb(_want(wish="gone"), None) == "end"


@pytest.mark.parametrize("vm", ["making", "running"])
def test_gone_ends_what_is_there(vm):
    assert next_step(_want(wish="gone", reason="cancelled"), _record(vm), HERE, NOW) == Step("end", "cancelled")


@pytest.mark.parametrize("vm", ["stopped", "crashed", "failed"])
def test_what_ended_is_cleared_away_at_once(vm):
    assert _verb(WANT, _record(vm)) == "end"
    assert _verb(None, _record(vm)) == "end"


def test_what_is_proved_gone_is_kept_until_nobody_speaks_of_it():
    for vm in ("absent", "stopped", "failed"):
        assert _verb(_want(wish="gone"), _record(vm, proof=_proof(whole=True))) == "keep"
        assert _verb(WANT, _record(vm, proof=_proof(whole=True))) == "keep"
        assert _verb(None, _record(vm, proof=_proof(whole=True))) == "forget"
    assert _verb(_want(wish="gone"), _record("running", proof=_proof(whole=False))) == "end"


def test_what_the_control_plane_doesnt_know_has_a_minute():
    assert _verb(None, _record(), Situation(missing_s=UNKNOWN_S - 1)) == "keep"
    assert _verb(None, _record(), Situation(missing_s=UNKNOWN_S)) == "end"


def test_lifetimes():
    want = _want(end_by=NOW + 20)
    assert _verb(want, _record()) == "stop"
    assert _verb(want, _record(), Situation(stop_told=True)) == "keep"
    assert _verb(want, _record(), now=NOW + 20) == "end"
    assert _verb(want, _record("making"), now=NOW) == "keep"


def test_a_runner_that_doesnt_listen_in_time_fails():
    late = _want(boot_by=NOW)
    assert next_step(late, _record("running", "guest_hello"), HERE, NOW).code == "boot-timeout"
    assert next_step(late, _record("making"), HERE, NOW).code == "boot-timeout"
    for mark in ("runner_listening", "job_hint"):
        assert _verb(late, _record("running", mark)) == "keep"


def _idle(seconds: float, **others) -> Situation:
    return Situation(listening_s=seconds, **others)


def test_a_runner_that_listens_too_long_is_stopped_and_then_ended_by_the_host_alone():
    want, idle = _want(idle_s=400.0), _record("running", "runner_listening")
    assert _verb(want, idle, _idle(399)) == "keep"
    stop = next_step(want, idle, _idle(400), NOW)
    assert (stop.verb, stop.code) == ("stop", "idle-too-long")
    assert _verb(want, idle, _idle(419, stop_told=True)) == "keep", "SIGTERM first, with time to heed it"
    end = next_step(want, idle, _idle(420, stop_told=True), NOW)
    assert (end.verb, end.code) == ("fail", "idle-too-long")


@pytest.mark.parametrize("mark", ["job_hint", "runner_exited"])
def test_a_runner_with_a_job_is_never_ended_for_idleness(mark):
    want, busy = _want(idle_s=400.0), _record("running", "runner_listening", mark)
    for told in (False, True):
        assert (
            _verb(
                want,
                msgspec.structs.replace(busy, marks={**busy.marks, mark: NOW}, ups={**busy.ups, mark: NOW}),
                _idle(1e6, stop_told=told),
            )
            == "keep"
        )


def test_without_a_limit_a_runner_may_listen_as_long_as_it_lives():
    assert _verb(_want(idle_s=0.0), _record("running", "runner_listening"), _idle(1e6)) == "keep"
    assert _verb(_want(idle_s=400.0), _record("running", "guest_hello"), _idle(0.0)) == "keep"


def test_a_machine_that_stays_on_after_its_runner_has_exited_is_ended():
    record = _record("running", "job_hint", "runner_exited")
    assert _verb(WANT, record, now=POWER_OFF_S) == "keep"
    assert _verb(WANT, record, now=POWER_OFF_S + 1) == "end"


def test_the_seed_goes_as_soon_as_it_was_read():
    assert _verb(WANT, _record("running", "guest_hello")) == "keep"
    assert _verb(WANT, _record("running", "jit_taken")) == "unseed"
    assert _verb(WANT, _record("running", "jit_taken"), Situation(seed_tried_at=NOW)) == "keep"
    assert _verb(WANT, _record("running", "jit_taken", "seed_gone")) == "keep"


def test_the_wished_policy_is_put_in_force():
    bound = _want(policy=JOBS, generation=2, bound=True)
    assert _verb(bound, _record()) == "apply"
    assert _verb(_want(generation=2), _record()) == "apply"
    assert _verb(_want(bound=True), _record()) == "apply"
    assert _verb(WANT, _record(), Situation(applied=False)) == "apply"
    in_force = {"policy": JOBS.digest, "generation": 2, "bound": True}
    assert _verb(bound, _record("running", **in_force)) == "keep"
    assert _verb(bound, _record("running", "job_hint", **in_force)) == "release"
    assert _verb(bound, _record("running", "job_hint", "steps_released", **in_force)) == "keep"


def test_steps_are_never_released_by_a_sealed_policy():
    assert _verb(WANT, _record("running", "job_hint")) == "keep"


def test_a_refused_job_is_told_once_and_has_a_moment():
    refused = _want(refused="no such preset")
    waiting = _record("running", "job_hint")
    assert next_step(refused, waiting, HERE, NOW) == Step("refuse", "no such preset")
    assert _verb(refused, waiting, Situation(refused_at=NOW - 1)) == "keep"
    gone = _want(wish="gone", reason="policy invalid")
    assert next_step(gone, waiting, HERE, NOW) == Step("refuse", "policy invalid")
    assert _verb(gone, waiting, Situation(refused_at=NOW - 1)) == "keep"
    assert _verb(gone, waiting, Situation(refused_at=NOW - REFUSAL_S)) == "end"
    assert _verb(gone, _record("running", "job_hint", "steps_released")) == "end"
    assert _verb(gone, _record("running", "job_hint", "runner_exited")) == "end"


MARKS = ["jit_taken", "seed_gone", "runner_listening", "job_hint", "steps_released", "runner_exited", "domain_gone"]
wants = st.none() | st.builds(
    _want,
    wish=st.sampled_from(["run", "gone"]),
    jit=st.sampled_from(["", "x" * 20]),
    generation=st.integers(1, 3),
    bound=st.booleans(),
    boot_by=st.sampled_from([0.0, NOW - 1, NOW + 1]),
    end_by=st.sampled_from([0.0, NOW - 1, NOW + 10, NOW + 100]),
    refused=st.sampled_from(["", "no"]),
)
records = st.none() | st.builds(
    lambda vm, marks, proof, bound: _record(vm, *marks, proof=proof, bound=bound),
    st.sampled_from(["absent", "making", "running", "stopped", "crashed", "failed"]),
    st.sets(st.sampled_from(MARKS)),
    st.sampled_from([None, _proof(whole=True), _proof(whole=False)]),
    st.booleans(),
)
situations = st.builds(
    Situation,
    missing_s=st.sampled_from([0.0, UNKNOWN_S + 1]),
    applied=st.booleans(),
    stop_told=st.booleans(),
    refused_at=st.sampled_from([0.0, NOW - 1]),
)


@given(wants, records, situations)
def test_rules_that_hold_in_every_situation(want, record, situation):
    step = next_step(want, record, situation, NOW)
    if step.verb == "start":
        assert want is not None
        assert want.wish == "run"
        assert want.jit
        assert record is None or record.vm == "absent"
    if step.verb == "release":
        assert record is not None
        assert record.bound
        assert want is not None
        assert want.bound
        assert (record.policy, record.generation) == (want.policy.digest, want.generation)
    if step.verb == "forget":
        assert want is None
        assert record is not None
        assert record.is_proved_gone
    if record is not None and record.is_proved_gone:
        assert step.verb in ("keep", "forget")
    if want is not None and want.wish == "gone" and record is not None and not record.is_proved_gone:
        assert step.verb in ("end", "refuse", "keep")
