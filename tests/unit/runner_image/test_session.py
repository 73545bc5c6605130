"""The guest's protocol, as transcripts: events in, effects out."""

from __future__ import annotations

import json

from runner_image.guest.session import (
    ASKS_FOR_TIME,
    BIND_WAIT_S,
    CHANNEL_GRACE_S,
    GATED,
    MAX_LINE,
    NO_REGISTRATION,
    SIGN_IN_PAUSES_S,
    AnswerHook,
    Effect,
    LetOthersStart,
    OpenGate,
    PowerOff,
    Prepare,
    Say,
    Send,
    Session,
    SetClock,
    Settle,
    StartRunner,
    StopRunner,
)

JOB = {"repository": "octo/hello", "run_id": "42", "run_attempt": "1", "job": "build", "runner_name": "ironcd-x"}


def line(**order: object) -> bytes:
    return json.dumps(order).encode()


def sent(effects: list[Effect]) -> list[str]:
    return [str(effect.message["m"]) for effect in effects if isinstance(effect, Send)]


def answers(effects: list[Effect]) -> list[AnswerHook]:
    return [effect for effect in effects if isinstance(effect, AnswerHook)]


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects if not isinstance(effect, Say)]


def connected() -> Session:
    session = Session("d1", "25.1", now=0.0)
    session.opened()
    session.gate_opened(0.0)
    return session


def running() -> Session:
    session = connected()
    session.seeded(registered=True)
    session.heard(line(m="seed_gone"), 1.0)
    session.started(7, 1.0)
    return session


def listening() -> Session:
    session = running()
    session.printed(b"2026-01-01 00:00:00Z: Listening for Jobs")
    return session


def test_others_start_once_the_runner_listens_and_not_before() -> None:
    session = running()
    assert not any(isinstance(effect, LetOthersStart) for effect in session.printed(b"Connected to GitHub"))
    said = session.printed(b"2026-01-01 00:00:00Z: Listening for Jobs")
    assert [type(effect) for effect in said] == [Say, Send, LetOthersStart]


def test_it_says_hello_when_somebody_listens() -> None:
    (hello,) = Session("d1", "25.1", now=0.0).opened()
    assert isinstance(hello, Send)
    assert hello.encode() == b'{"m":"hello","image":"d1","cloud_init":"25.1"}\n'


def test_the_gate_opens_once_and_by_the_hosts_word_alone() -> None:
    session = Session("d1", "25.1", now=0.0)
    session.opened()
    assert session.seeded(registered=True) == []  # in front of the gate there is nothing to be taken
    for order in ({"m": "seed_gone"}, {"m": "time", "now_ns": 1}, {"m": "what"}):
        assert session.heard(line(**order), 0.0) == []
    (opening,) = session.heard(line(m="open", now_ns=5, random="QUJD"), 0.0)
    assert isinstance(opening, OpenGate)
    assert opening.order == {"m": "open", "now_ns": 5, "random": "QUJD"}
    assert sent(session.gate_opened(0.0)) == ["opened", "what_time"]
    assert session.heard(line(m="open", now_ns=6, random="QUJD"), 0.0) == []
    assert session.heard(line(m="settle"), 0.0) == []


def test_a_template_is_taken_in_front_of_the_gate() -> None:
    session = Session("d1", "25.1", now=0.0)
    session.opened()
    assert kinds(session.heard(line(m="settle"), 0.0)) == [Settle]
    assert sent(session.settled()) == ["settled"]
    assert kinds(session.heard(line(m="open", now_ns=5, random=""), 9.0)) == [OpenGate]  # the same session, in a clone


def test_a_machine_prepares_itself_and_waits_with_the_gate_closed() -> None:
    session = Session("sha256:1", "25.1", 0.0)
    session.opened()
    (effect,) = session.heard(line(m="prepare", now_ns=5, random="x"), 1.0)
    assert isinstance(effect, Prepare)
    assert effect.order["now_ns"] == 5
    assert sent(session.prepared()) == ["prepared"]
    assert session.state == GATED
    (effect,) = session.heard(line(m="open", now_ns=9, random="y"), 60.0)
    assert isinstance(effect, OpenGate)
    assert effect.prepared
    session.gate_opened(60.0)
    assert session.heard(line(m="prepare", now_ns=5, random="x"), 61.0) == []


def test_a_machine_that_was_not_prepared_opens_its_gate_whole() -> None:
    session = Session("sha256:1", "25.1", 0.0)
    (effect,) = session.heard(line(m="open", now_ns=9, random="y"), 1.0)
    assert isinstance(effect, OpenGate)
    assert not effect.prepared


def test_the_time_is_asked_for_until_an_answer_comes_quickly() -> None:
    session = Session("d1", "25.1", now=0.0)
    session.opened()
    session.gate_opened(10.0)
    assert sent(session.heard(line(m="time", now_ns=1_000_000_000), 10.5)) == [
        "what_time"
    ]  # it may be half a second old
    (clock,) = session.heard(line(m="time", now_ns=2_000_000_000), 10.54)
    assert isinstance(clock, SetClock)
    assert clock.now_ns == 2_020_000_000  # it was on its way for half of 40 ms
    assert session.heard(line(m="time", now_ns=3_000_000_000), 10.6) == []  # nobody asked


def test_a_slow_host_is_asked_so_often_and_no_more() -> None:
    session = Session("d1", "25.1", now=0.0)
    session.opened()
    session.gate_opened(0.0)
    told = [kinds(session.heard(line(m="time", now_ns=1), 0.2 * (n + 1))) for n in range(ASKS_FOR_TIME + 1)]
    assert told == [[Send]] * (ASKS_FOR_TIME - 1) + [[SetClock], []]
    assert session.heard(b'{"m":"time","now_ns":"soon"}', 9.0) == []


def test_a_runner_starts_only_after_the_seed_is_gone() -> None:
    session = connected()
    assert kinds(session.heard(line(m="seed_gone"), 0.0)) == []  # nothing was taken yet
    assert sent(session.seeded(registered=True)) == ["jit_taken"]
    (start,) = session.heard(line(m="seed_gone"), 1.0)
    assert isinstance(start, StartRunner)
    assert start.with_registration
    assert kinds(session.heard(line(m="seed_gone"), 2.0)) == []


def test_without_a_registration_the_machine_ends() -> None:
    effects = connected().seeded(registered=False)
    assert kinds(effects) == [Send, PowerOff]
    (message,) = [effect.message for effect in effects if isinstance(effect, Send)]
    assert message["code"] == NO_REGISTRATION


def test_the_hook_waits_for_the_policy() -> None:
    session = listening()
    effects = session.asked(JOB, 10.0)
    assert answers(effects) == []
    (claim,) = [effect.message for effect in effects if isinstance(effect, Send)]
    assert claim == {**JOB, "m": "job_started", "run_id": 42, "run_attempt": 1}
    (answer,) = answers(session.heard(line(m="bound", policy="sha256:ab", mode="warn", rules=4), 11.0))
    assert answer.ok
    assert answer.text == "IronCD egress policy in force: mode warn, 4 rules, sha256:ab"


def test_a_policy_that_was_bound_before_the_question_answers_it_at_once() -> None:
    session = listening()
    assert kinds(session.heard(line(m="bound", policy="p", mode="enforce", rules=1), 5.0)) == []
    effects = session.asked(JOB, 10.0)
    assert sent(effects) == ["job_started"]
    assert [answer.ok for answer in answers(effects)] == [True]


def test_a_refusal_fails_the_job_and_a_later_yes_does_not_help() -> None:
    session = listening()
    session.asked(JOB, 10.0)
    (answer,) = answers(session.heard(line(m="refused", reason="no policy"), 11.0))
    assert not answer.ok
    assert answer.text == "IronCD refused this job: no policy"
    session.heard(line(m="bound", policy="p", mode="enforce", rules=1), 12.0)
    assert [answer.ok for answer in answers(session.asked(JOB, 13.0))] == [False]


def test_a_refusal_takes_a_yes_back() -> None:
    session = listening()
    session.heard(line(m="bound", policy="p", mode="enforce", rules=1), 5.0)
    session.heard(line(m="refused", reason="withdrawn"), 6.0)
    assert [answer.ok for answer in answers(session.asked(JOB, 7.0))] == [False]


def test_no_word_in_time_fails_the_job() -> None:
    session = listening()
    session.asked(JOB, 10.0)
    assert answers(session.tick(10.0 + BIND_WAIT_S - 1)) == []
    assert [answer.ok for answer in answers(session.tick(10.0 + BIND_WAIT_S))] == [False]


def test_a_channel_that_stays_closed_fails_the_job() -> None:
    session = listening()
    session.asked(JOB, 10.0)
    session.closed(20.0)
    assert answers(session.tick(20.0 + CHANNEL_GRACE_S - 1)) == []
    assert [answer.ok for answer in answers(session.tick(20.0 + CHANNEL_GRACE_S))] == [False]


def test_an_agent_that_is_back_within_the_grace_does_not_fail_the_job() -> None:
    session = listening()
    session.asked(JOB, 10.0)
    session.closed(20.0)
    assert sent(session.opened()) == [*("hello", "opened", "jit_taken", "runner_started", "listening", "job_started")]
    assert answers(session.tick(20.0 + CHANNEL_GRACE_S)) == []


def test_a_question_with_no_runner_is_refused() -> None:
    assert [answer.ok for answer in answers(connected().asked(JOB, 1.0))] == [False]


def test_a_claim_is_bounded_and_its_numbers_are_numbers() -> None:
    effects = listening().asked({"repository": "x" * 9999, "run_id": "-1", "run_attempt": "1e3"}, 1.0)
    (claim,) = [effect for effect in effects if isinstance(effect, Send)]
    assert len(claim.encode()) < MAX_LINE
    assert (claim.message["run_id"], claim.message["run_attempt"]) == (0, 0)


def test_lines_that_mean_nothing_are_skipped() -> None:
    session = listening()
    for rubbish in (b"", b"{", b"[]", b'"bound"', b"{}", b'{"m":1}', b'{"m":"unknown"}', b"\xff"):
        assert session.heard(rubbish, 1.0) == []


def test_status_2_starts_it_again_from_its_own_files_five_times() -> None:
    session = listening()
    for _ in range(5):
        (start,) = session.exited(2, 10.0)
        assert isinstance(start, StartRunner)
        assert not start.with_registration
    assert kinds(session.exited(2, 10.0)) == [Send, PowerOff]


def test_row_13_a_failed_sign_in_is_tried_again_with_the_same_registration() -> None:
    assert SIGN_IN_PAUSES_S == (1.0, 2.0, 5.0, 10.0, 20.0), "a registration lags for up to a minute"
    session, now = running(), 1.0
    for pause in SIGN_IN_PAUSES_S:
        assert kinds(session.exited(1, now)) == [LetOthersStart]
        assert StartRunner not in kinds(session.tick(now + pause - 0.1))
        now += pause
        (start,) = [effect for effect in session.tick(now) if isinstance(effect, StartRunner)]
        assert start.with_registration
        session.started(8, now)
    assert kinds(session.exited(1, now)) == [Send, PowerOff]


def test_row_13_a_session_conflict_is_final() -> None:
    assert kinds(running().exited(5, 2.0)) == [Send, PowerOff]


def test_status_1_of_a_runner_that_listened_is_final() -> None:
    assert kinds(listening().exited(1, 2.0)) == [Send, PowerOff]


def test_status_1_long_after_the_start_is_final() -> None:
    assert kinds(running().exited(1, 100.0)) == [Send, PowerOff]


def test_a_version_too_old_is_said() -> None:
    for status in (3, 4, 7):
        effects = running().exited(status, 2.0)
        assert any(isinstance(effect, Say) and "too old" in effect.text for effect in effects)
        assert kinds(effects) == [Send, PowerOff]


def test_the_end_of_the_output_goes_with_the_status_and_fits_a_line() -> None:
    session = listening()
    for _ in range(500):
        session.printed('"\x00\\ü '.encode() * 40)
    session.printed(b"the last words")
    (report,) = [effect for effect in session.exited(0, 9.0) if isinstance(effect, Send)]
    assert len(report.encode()) <= MAX_LINE
    assert str(report.message["log_tail"]).endswith("the last words\n")


def test_job_completed_is_read_off_the_output() -> None:
    session = listening()
    assert sent(session.printed(b"2026-01-01 00:00:00Z: Running job: build")) == []
    assert sent(session.printed(b"2026-01-01 00:00:09Z: Job build completed with result: Failed")) == ["job_completed"]


def test_stop_ends_a_runner_that_runs() -> None:
    session = listening()
    assert kinds(session.heard(line(m="stop"), 5.0)) == [StopRunner]
    assert kinds(session.exited(2, 6.0)) == [Send, PowerOff]


def test_stop_before_the_runner_runs_ends_the_machine() -> None:
    seeding = connected()
    assert seeding.heard(line(m="stop"), 0.0) == []
    assert kinds(seeding.seeded(registered=True)) == [Send, PowerOff]
    sealed = connected()
    sealed.seeded(registered=True)
    assert kinds(sealed.heard(line(m="stop"), 0.0)) == [Send, PowerOff]
    assert kinds(sealed.heard(line(m="seed_gone"), 0.0)) == []


def test_stop_while_it_waits_to_sign_in_again_ends_the_machine() -> None:
    session = running()
    session.exited(1, 2.0)
    assert kinds(session.heard(line(m="stop"), 2.5)) == [Send, PowerOff]
    assert kinds(session.tick(60.0)) == [Send]  # a heartbeat, and no start


def test_it_beats_every_ten_seconds_while_somebody_listens() -> None:
    session = connected()
    assert sent(session.tick(9.9)) == []
    assert sent(session.tick(10.0)) == ["beat"]
    assert sent(session.tick(10.1)) == []
    session.closed(11.0)
    assert sent(session.tick(30.0)) == []


def test_what_is_said_with_nobody_there_is_said_later() -> None:
    session = Session("d1", "25.1", now=0.0)
    session.gate_opened(0.0)
    assert sent(session.seeded(registered=True)) == []
    assert sent(session.opened()) == ["hello", "opened", "jit_taken"]
