from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.host import guest
from orchestrator.host.guest import MAX_LINE, Lines, Pace, parse


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"m":"hello","image":"sha256:1","cloud_init":"25.1"}', guest.Hello("sha256:1", "25.1")),
        (b'{"m":"jit_taken"}', guest.JitTaken()),
        (b'{"m":"runner_started","pid":17}', guest.RunnerStarted(17)),
        (b'{"m":"listening"}', guest.Listening()),
        (
            b'{"m":"job_started","repository":"a/b","run_id":5,"run_attempt":1,"job":"build","runner_name":"r"}',
            guest.JobStarted("a/b", 5, 1, "build", "r"),
        ),
        (b'{"m":"job_completed"}', guest.JobCompleted()),
        (b'{"m":"runner_exited","code":1,"log_tail":"x"}', guest.RunnerExited(1, "x")),
        (b'{"m":"beat"}', guest.Beat()),
        (b'{"m":"beat","later":"fields are passed over"}', guest.Beat()),
    ],
)
def test_what_the_guest_says(line, message):
    assert parse(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"hello"',
        b'{"m":"seed_gone"}',
        b'{"m":"toString"}',
        b'{"m":1}',
        b'{"m":"runner_started","pid":-1}',
        b'{"m":"runner_started","pid":1e99}',
        b'{"m":"runner_exited","code":99999}',
        b'{"m":"job_started","repository":{"a":1}}',
        json.dumps({"m": "job_started", "repository": "x" * 600}).encode(),
        b'{"m":"hello","image":"\xff"}',
        b"[" * 5000,
        b'{"m":' + b'{"a":' * 3000,
    ],
)
def test_what_isnt_a_message_is_none(line):
    assert parse(line) is None


@given(st.binary(max_size=300))
def test_parsing_never_raises(data):
    parse(data)


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=8), st.integers(1, 17))
def test_lines_are_the_same_however_they_are_cut(lines, size):
    stream = b"".join(line + b"\n" for line in lines)
    cutter = Lines()
    found = [line for at in range(0, len(stream), size) for line in cutter.feed(stream[at : at + size])]
    assert found == [line for line in lines if line]


def test_a_line_without_end_takes_no_room_and_spoils_only_itself():
    cutter = Lines()
    for _ in range(1000):
        assert list(cutter.feed(b"x" * 4096)) == []
        assert len(cutter._buffer) <= MAX_LINE
    assert list(cutter.feed(b'xxx\n{"m":"beat"}\n')) == [b'{"m":"beat"}']
    assert cutter.skipped == 1


def test_orders_are_lines():
    assert json.loads(guest.encode(guest.Bound("sha256:1", "enforce", 3))) == {
        "m": "bound", "policy": "sha256:1", "mode": "enforce", "rules": 3,
    }  # fmt: skip
    assert guest.encode(guest.SeedGone()) == b'{"m":"seed_gone"}\n'
    assert guest.encode(guest.Refused("a\nb")).count(b"\n") == 1
    assert json.loads(guest.encode(guest.Stop())) == {"m": "stop"}


def test_a_guest_that_talks_too_fast_is_read_more_slowly():
    pace = Pace(0.0, burst=10, per_second=5)
    assert [pace.spend(0.0, 1) for _ in range(9)] == [0.0] * 9
    assert pace.spend(0.0, 1) > 0
    assert pace.spend(0.0, 10) > 1.9
    assert pace.spend(10.0, 1) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), max_size=50))
def test_over_time_no_more_is_read_than_the_pace_allows(steps):
    now, spent, pace = 0.0, 0.0, Pace(0.0, burst=20, per_second=10)
    for gap, cost in steps:
        now += gap
        wait = pace.spend(now, cost)
        spent += cost
        now += wait
        assert spent - cost <= 20 + 10 * now + 1e-6
