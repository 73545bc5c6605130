"""Events become attempts: one line for a connection, however many events told of it."""

from __future__ import annotations

from orchestrator.surface.attempts import attempts


def event(kind: str, **more: object) -> dict[str, object]:
    base = {"event": kind, "ts": 1.0, "seq": 1, "protocol": "tls", "verdict": "allowed", "reason": "rule"}
    return (
        base
        | {"gateway": "g", "who": {"runner": "R", "repo": "o/r", "job": "build"}, "host": "a.example", "port": 443}
        | more
    )


def test_open_and_close_are_one_attempt_with_the_bytes_of_the_close():
    (one,) = attempts(
        [
            event("open", conn="c1", rule="org#1"),
            event("progress", conn="c1", bytes_up=5, bytes_down=7),
            event("close", conn="c1", bytes_up=10, bytes_down=20, duration_ms=3, close_reason="eof"),
        ]
    )
    assert (one.name, one.rule, one.bytes_up, one.bytes_down, one.duration_ms) == ("a.example", "org#1", 10, 20, 3)
    assert (one.repo, one.job, one.runner, one.close_reason, one.open) == ("o/r", "build", "R", "eof", False)


def test_an_open_without_its_close_is_still_open():
    (one,) = attempts([event("open", conn="c1")])
    assert one.open


def test_connections_are_kept_apart_and_in_order():
    found = attempts([event("open", conn="b"), event("open", conn="a"), event("close", conn="a", bytes_up=1)])
    assert [(one.open, one.bytes_up) for one in found] == [(True, 0), (False, 1)]


def test_refusals_without_a_connection_stand_each_for_themselves():
    found = attempts([event("dns", verdict="blocked", reason="not_allowed", protocol="dns")] * 2)
    assert len(found) == 2
    assert not found[0].open


def test_a_name_that_is_missing_is_the_address():
    (one,) = attempts([event("drop", host="", orig_dst="198.51.100.66:22", verdict="blocked", count=4)])
    assert (one.name, one.count) == ("198.51.100.66:22", 4)


def test_marks_and_losses_are_no_attempts():
    assert attempts([event("mark"), event("lost")]) == []
