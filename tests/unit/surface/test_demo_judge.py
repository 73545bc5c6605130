"""The demo's score: it must fail for each thing that could be wrong, and for nothing else."""

from __future__ import annotations

import json

import msgspec
import pytest

from orchestrator.egress.hello import Hello, HelloReader, Invalid
from orchestrator.surface.attempts import Attempt
from orchestrator.surface.demo.judge import Outside, judge_outside, judge_wall, probe_results
from orchestrator.surface.demo.probe import SHAPES
from orchestrator.surface.demo.workflow import ALLOWED, HELLOS, REFUSED, Places, Probe, probes_of, steps_of, workflow_of

PLACES = Places(allowed="203.0.113.10", attacker="198.51.100.66", resolver="203.0.113.53")
CERT = "ab" * 32
OUTSIDE = Outside(allowed=("GET /",), certificate=CERT)
PROBES = {probe.name: probe for probe in probes_of(PLACES)}


def attempt(**more: object) -> Attempt:
    base = {
        "ts": 1.0,
        "name": ALLOWED,
        "protocol": "tls",
        "port": 443,
        "verdict": "allowed",
        "reason": "rule",
        "rule": "repo#1",
    }
    return Attempt(**(base | more))


def one(
    probe: Probe, *, reached: bool, detail: str = "", outside: Outside = OUTSIDE, record: list[Attempt] | None = None
):
    (check,) = judge_wall([probe], {probe.name: {"reached": reached, "detail": detail}}, outside, record or [])
    return check


def test_the_allowed_one_needs_all_three_witnesses():
    probe, good = PROBES["allowed"], f"cert_sha256={CERT} answer=HTTP/1.1 200"
    assert one(probe, reached=True, detail=good, record=[attempt()]).ok
    assert not one(probe, reached=True, detail=good, record=[]).ok
    assert not one(probe, reached=True, detail=good, record=[attempt(rule="")]).ok
    assert not one(probe, reached=True, detail="cert_sha256=00", record=[attempt()]).ok
    assert not one(probe, reached=False, detail=good, record=[attempt()]).ok
    assert not one(
        probe, reached=True, detail=good, record=[attempt()], outside=msgspec.structs.replace(OUTSIDE, allowed=())
    ).ok


@pytest.mark.parametrize("name", [probe.name for probe in PROBES.values() if probe.want == "blocked"])
def test_what_must_be_blocked_must_fail_inside_and_stand_in_the_record(name):
    probe = PROBES[name]
    target = "10.201.0.0" if probe.target == "gateway" else probe.target
    host = probe.server_name if probe.kind in ("tls", "dns") else target
    line = attempt(
        name=host,
        orig_dst=target,
        port=probe.port,
        protocol="tls" if probe.kind == "hello" else probe.kind,
        verdict="blocked",
        reason=probe.reason or "x",
        rule="",
    )
    assert one(probe, reached=False, record=[line]).ok
    assert not one(probe, reached=True, record=[line]).ok
    assert not one(probe, reached=False, record=[]).ok
    assert not one(probe, reached=False, record=[msgspec.structs.replace(line, verdict="allowed")]).ok
    if probe.kind in ("tcp", "udp"):
        assert not one(probe, reached=False, record=[msgspec.structs.replace(line, port=probe.port + 1)]).ok
    if probe.kind == "hello":
        assert not one(probe, reached=False, record=[msgspec.structs.replace(line, reason="no_hello")]).ok


@pytest.mark.parametrize("shape", HELLOS)
def test_each_hello_is_what_it_says_and_is_read_as_such(shape):
    found = HelloReader().feed(SHAPES[shape]())
    reason = HELLOS[shape][1]
    if reason == "not_allowed":
        assert isinstance(found, Hello)
        assert (found.name, found.records) == (REFUSED, 2)
    elif reason == "missing_sni":
        assert isinstance(found, Hello)
        assert found.name is None
    else:
        assert found == Invalid(reason)


def test_a_borrowed_name_may_only_lead_to_its_owner():
    probe = PROBES["borrowed-sni"]
    assert one(probe, reached=True, detail=f"cert_sha256={CERT}").ok
    assert one(probe, reached=False).ok
    assert not one(probe, reached=True, detail="cert_sha256=00").ok


def test_a_probe_that_was_never_made_is_no_success():
    (check,) = judge_wall([PROBES["ssh"]], {}, OUTSIDE, [])
    assert not check.ok


def test_the_outside_must_have_received_nothing():
    assert all(check.ok for check in judge_outside(OUTSIDE, ["10.201.0.1"]))
    for bad in (
        Outside(attacker=("1 byte",)),
        Outside(queries=(f"x.{REFUSED}",)),
        Outside(queries=(REFUSED,)),
        Outside(traps=("22",)),
        Outside(sources=("10.201.0.1",)),
    ):
        assert not all(check.ok for check in judge_outside(bad, ["10.201.0.1"]))
    assert all(
        check.ok for check in judge_outside(Outside(queries=(ALLOWED,), sources=("203.0.113.1",)), ["10.201.0.1"])
    )


def test_results_are_read_out_of_a_log_and_odd_lines_passed_over():
    good = json.dumps({"probe": "ssh", "reached": False, "detail": "refused"})
    log = f"2026-05-01T00:00:00.0Z ironcd-probe {good}\nironcd-probe {{\nironcd-probe []\nironcd-probe 3\nother\n"
    assert probe_results(log) == {"ssh": {"reached": False, "detail": "refused"}}


def test_every_probe_is_a_step_of_the_workflow():
    commands = "\n".join(step["run"] for step in steps_of(PLACES))
    for probe in PROBES.values():
        assert f"probe.py {probe.name} {probe.kind} " in commands


def test_one_job_for_each_asked_for():
    assert list(workflow_of(PLACES, jobs=1)["jobs"]) == ["build"]
    assert list(workflow_of(PLACES, jobs=3)["jobs"]) == ["build-1", "build-2", "build-3"]
