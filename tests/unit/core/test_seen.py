"""Attempts put together out of events, and decided again: `seen`, `suggest`, `replay`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.effective import effective_policy
from orchestrator.core.flow import Event, Identity
from orchestrator.core.policy import Policy, compile_policy, decide
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets
from orchestrator.core.replay import replay
from orchestrator.core.seen import images_seen, seen_by_jobs
from orchestrator.core.suggest import ACKNOWLEDGE, Suggestion, suggest, whole_policy

_seq = itertools.count(1)


def event(
    host: str = "",
    *,
    job: int = 1,
    kind: Any = "open",
    verdict: Any = "blocked",
    reason: str = "not_allowed",
    **more: Any,
) -> Event:
    fields: dict[str, Any] = {"protocol": "tls", "port": 443, "ts": 100.0 + job, "seq": next(_seq), "gateway": "h1"}
    who = Identity(runner=f"R{job}", org="acme", repo="acme/app", run_id=job, job_id=job, job="build")
    return Event(**{"event": kind, "who": who, "verdict": verdict, "reason": reason, "host": host, **fields, **more})


def policy(presets: Presets, text: str) -> Policy:
    return effective_policy(None, read_policy(text, source="p", presets=presets), presets.builtin)


def suggested(presets: Presets, events: list[Event], text: str = "allow: []\n", **more: Any) -> Suggestion:
    return suggest(seen_by_jobs(events), presets, present=policy(presets, text), **more)


def entries(made: Suggestion) -> list[str]:
    return [one.entry.subject for one in made.proposed]


def test_the_events_of_one_connection_are_one_attempt() -> None:
    events = [
        event("a.example.org", kind="dns", protocol="dns", port=53, count=3),
        event("a.example.org", conn="c1", verdict="allowed", reason="rule", rule="repo#1", orig_dst="198.18.0.7"),
        event("a.example.org", conn="c1", kind="progress", verdict="allowed", reason="rule"),
        event("a.example.org", conn="c1", kind="close", verdict="blocked", reason="not_allowed"),
        event("a.example.org", job=2),
        event("", kind="lost"),
        event("", kind="mark"),
        event("b.example.org", job=0),
        event("", kind="drop", flags=("suppressed",), count=900),
    ]
    first, second = seen_by_jobs(events)
    assert (first.host, first.count, first.verdict, first.rule) == ("a.example.org", 4, "allowed", "repo#1")
    assert (second.who.job_id, second.verdict) == (2, "blocked")


def test_an_address_that_stands_for_a_name_is_none() -> None:
    (made,) = seen_by_jobs([event(protocol="tcp", port=22, orig_dst="198.18.0.9", reason="ssh", kind="drop")])
    assert made.address == ""


def test_only_what_was_refused_for_want_of_a_rule_is_proposed(presets: Presets) -> None:
    made = suggested(
        presets,
        [
            event("new.example.org"),
            event("new.example.org", job=2, verdict="warn", would_block=True),
            event("had.example.org", verdict="allowed", reason="rule"),
            event("bad.example.org", reason="denied", rule="repo#2"),
            event("ocsp.example.org", flags=("expected",)),
            event("dns.resolver.test"),
            event("x.tunnel.example"),
            event("b.example.org", reason="ech"),
            event("", protocol="tcp", port=80, orig_dst="203.0.113.4", kind="drop", reason="http"),
            event("", protocol="udp", port=443, orig_dst="203.0.113.4", kind="drop", reason="quic"),
            event("", protocol="tcp", port=22, orig_dst="203.0.113.5", kind="drop", reason="ssh"),
            event("", protocol="tcp", port=22, orig_dst="10.0.0.5", kind="drop", reason="ssh"),
            event("", protocol="tcp", port=22, orig_dst="198.18.0.1", kind="drop", reason="ssh"),
            event("single", kind="dns", protocol="dns", port=53),
        ],
        "allow:\n- {host: had.example.org}\ndeny:\n- {host: bad.example.org}\n",
    )
    assert entries(made) == ["203.0.113.5/32", "new.example.org"]
    assert made.proposed[1].note == "seen 2 times in 2 jobs"
    assert made.allowed == 1
    why = {one.target: one.why for one in made.left_out}
    assert why["bad.example.org"] == "repo#2 denies it"
    assert "expected" in why["ocsp.example.org"]
    assert "DNS over HTTPS" in why["dns.resolver.test"]
    assert "tunnel" in why["x.tunnel.example"]
    assert "allow_ech" in why["b.example.org"]
    assert "plain HTTP" in why["203.0.113.4:80"]
    assert "QUIC" in why["203.0.113.4"]
    assert "floor" in why["10.0.0.5:22"]
    assert "no address" in why["tcp:22"]
    assert "single label" in why["single"]


def test_hazards_come_with_a_reason_to_be_written(presets: Presets) -> None:
    made = suggested(presets, [event("x.tunnel.example"), event("a.example.org")], hazards=True)
    (tunnel,) = [one for one in made.proposed if one.entry.host == "x.tunnel.example"]
    assert tunnel.entry.acknowledge == ACKNOWLEDGE
    assert "careful: " in tunnel.note
    assert read_policy(whole_policy(made), source="p", presets=presets).warnings == ()


def test_a_preset_stands_for_its_hosts(presets: Presets) -> None:
    seen = [event("nodejs.org"), event("registry.example.org")]
    images = {"node": ("registry.example.org",)}
    assert entries(suggested(presets, seen, images=images)) == ["preset node"]
    assert entries(suggested(presets, seen)) == ["registry.example.org", "nodejs.org"]
    assert entries(suggested(presets, seen, images=images, preset_hosts=3)) == ["registry.example.org", "nodejs.org"]
    ssh = event("", protocol="tcp", port=22, orig_dst="192.0.2.9", kind="drop", reason="ssh")
    assert entries(suggested(presets, [ssh])) == ["preset ssh"], "all of it was seen"
    assert "registry.example.org" in suggested(presets, seen, images=images).proposed[0].note


def test_what_images_added_is_read_off_the_record(presets: Presets) -> None:
    seen = seen_by_jobs(
        [
            event("registry.example.org", verdict="allowed", reason="rule", rule="preset/node@3#image-1"),
            event("nodejs.org", verdict="allowed", reason="rule", rule="preset/node@3#1"),
        ]
    )
    assert images_seen(seen) == {"node": ("registry.example.org",)}


hosts = st.sampled_from(
    ["a.example.org", "b.a.example.org", "nodejs.org", "x.yarn.example", "github.com", "drop.example"]
)


@given(st.lists(st.tuples(hosts, st.integers(1, 3), st.sampled_from(["blocked", "warn"])), max_size=12), st.booleans())
def test_the_suggestion_lets_through_what_it_says_and_nothing_is_lost(
    presets: Presets, tried: list[tuple[str, int, str]], hazards: bool
) -> None:
    events = [event(host, job=job, verdict=verdict) for host, job, verdict in tried]
    seen = seen_by_jobs(events)
    made = suggest(seen, presets, present=policy(presets, "allow: []\n"), hazards=hazards)
    after = policy(presets, whole_policy(made))
    left = {one.target for one in made.left_out}
    for one in seen:
        passes = decide(compile_policy(after), one.flow).verdict == "allowed"
        assert passes != (one.shown in left)
    again = suggest(seen, presets, present=after, hazards=hazards)
    assert again.proposed == ()
    for place in range(len(made.proposed)):
        import msgspec

        fewer = msgspec.structs.replace(made, proposed=made.proposed[:place] + made.proposed[place + 1 :])
        smaller = compile_policy(policy(presets, whole_policy(fewer)))
        assert any(decide(smaller, one.flow).verdict != "allowed" and one.shown not in left for one in seen), (
            "one too many"
        )


def test_replay_tells_each_jobs_names(presets: Presets) -> None:
    seen = seen_by_jobs(
        [
            event("a.example.org", verdict="allowed", reason="rule", rule="repo#1"),
            event("b.example.org", verdict="allowed", reason="rule", rule="repo#2"),
            event("b.example.org", verdict="warn"),
            event("new.example.org"),
            event("never.example.org"),
            event("x.example.org", reason="ech"),
            event("a.example.org", job=2, verdict="allowed", reason="rule"),
            event("", job=3, protocol="tcp", port=22, orig_dst="203.0.113.5", kind="drop", reason="ssh"),
            event("169.254.169.254", job=3, reason="floor_metadata"),
        ]
    )
    tried = policy(
        presets,
        "allow:\n- {host: a.example.org}\n- {host: new.example.org}\n- {cidr: 203.0.113.0/24, ports: [22]}\n",
    )
    first, second, third = replay(tried, seen)
    (blocked,) = first.blocked
    assert (blocked.name, blocked.count, blocked.reason, blocked.before) == (
        "b.example.org",
        2,
        "not_allowed",
        "repo#2",
    )
    assert [target.name for target in first.opened] == ["new.example.org"]
    assert (first.still_blocked, first.same) == (2, 1)
    assert (second.blocked, second.same) == ((), 1)
    assert [target.name for target in third.opened] == ["203.0.113.5:22"]
    assert third.still_blocked == 1


@pytest.mark.parametrize("mode", ["enforce", "warn"])
def test_replaying_the_policy_that_was_in_force_blocks_nothing(presets: Presets, mode: str) -> None:
    was = policy(presets, f"mode: {mode}\nallow:\n- {{host: '*.example.org'}}\n- {{preset: node}}\n")
    compiled = compile_policy(was)
    events = []
    for host in ("a.example.org", "nodejs.org", "x.yarn.example", "github.com"):
        decision = decide(compiled, seen_by_jobs([event(host)])[0].flow)
        events.append(event(host, verdict=decision.verdict, reason=decision.reason, rule=decision.rule))
    assert all(job.blocked == () for job in replay(was, seen_by_jobs(events)))


PING = {"protocol": "icmp", "port": 0}
SANDBOX = "profile: sandbox\nallow:\n  - host: a.example.org\n  - {cidr: 203.0.113.0/24, ports: [22]}\n"


def test_a_ping_is_asked_about_as_a_ping(presets: Presets) -> None:
    events = [
        event("a.example.org", orig_dst="198.18.0.7", verdict="allowed", reason="rule", rule="repo#1", **PING),
        event(orig_dst="203.0.113.9", verdict="allowed", reason="rule", rule="repo#2", **PING),
    ]
    compiled = compile_policy(policy(presets, SANDBOX))
    assert [decide(compiled, seen.flow).verdict for seen in seen_by_jobs(events)] == ["allowed", "allowed"]
    (same,) = replay(policy(presets, SANDBOX), seen_by_jobs(events))
    assert (same.blocked, same.same) == ((), 2)
    (runner,) = replay(policy(presets, SANDBOX.replace("sandbox", "runner")), seen_by_jobs(events))
    assert [target.reason for target in runner.blocked] == ["protocol_icmp", "protocol_icmp"]


def test_no_rule_is_proposed_for_a_ping(presets: Presets) -> None:
    events = [
        event(orig_dst="198.51.100.66", **PING),
        event(orig_dst="198.51.100.67", kind="drop", reason="icmp", **PING),
        event("b.example.org", orig_dst="198.18.0.8", verdict="allowed", reason="rule", rule="repo#1", **PING),
    ]
    made = suggested(presets, events)
    assert made.proposed == ()
    assert len(made.left_out) == 3
    read_policy(whole_policy(made), source="p", presets=presets)
