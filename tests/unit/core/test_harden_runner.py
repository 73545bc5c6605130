"""Workflows of others, read with their quirks; what comes out is always a policy that is accepted."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import UserError
from orchestrator.core.harden_runner import Imported, Step, as_policy, read_workflow
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets

WORKFLOW = """\
on: push
env: &e
  A: b
jobs:
  build:
    env: *e
    steps:
      - name: guard
        uses: step-security/harden-runner@0080882f6c36860b6ba35c610c98ce87d4e2f26f # v2
        with:
          egress-policy: block
          allowed-endpoints: >
            github.com:443
            api.example.org:443
            mirror.example.org:80
            *.cdn.example.org:443
            203.0.113.7:22
            203.0.113.7:443
            plain.example.org
      - uses: actions/checkout@v4
  test:
    steps:
      - uses: Step-Security/Harden-Runner@v2
        with:
          egress-policy: ${{ inputs.policy }}
          allowed-endpoints: "api.example.org:443, b.tunnel.example:443 ${{ vars.MORE }}:443"
          policy: our-own
"""


def imported(presets: Presets, text: str = WORKFLOW) -> Imported:
    return as_policy(read_workflow(text, "ci.yml"), presets)


def one(presets: Presets, endpoint: str) -> Imported:
    return as_policy((Step("ci.yml:1", "j", "block", (endpoint,)),), presets)


def test_the_steps_are_found(presets: Presets) -> None:
    first, second = read_workflow(WORKFLOW, "ci.yml")
    assert (first.source, first.job, first.policy) == ("ci.yml:8", "build", "block")
    assert first.endpoints[-1] == "plain.example.org"
    assert second.endpoints == ("api.example.org:443", "b.tunnel.example:443")
    assert second.unread == (
        "${{ vars.MORE }}:443",
        "policy: our-own, kept in their service",
        "egress-policy: ${{ inputs.policy }}",
    )


REALISTIC = """\
on: [push]
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - name: Harden the runner
        uses: step-security/harden-runner@v2
        with:
          disable-sudo: true
          disable-sudo-and-containers: "true"
          disable-file-monitoring: false
          disable-telemetry: true
          egress-policy: block
          allowed-endpoints: >-
            *.docker.io:443
            proxy.golang.org:443 sum.golang.org:443
            ghcr.io
      - uses: actions/checkout@v4
  lint:
    steps:
      - uses: step-security/harden-runner@v2
        with:
          egress-policy: block
          allowed-endpoints: |
            pkg.go.dev:443   # the documentation, see https://example.org
            # files.example.org:443
            ghcr.io:443
"""


def test_a_workflow_as_people_write_them(presets: Presets) -> None:
    made = imported(presets, REALISTIC)
    hosts = [entry.host for entry in made.entries]
    assert hosts == ["*.docker.io", "proxy.golang.org", "sum.golang.org", "ghcr.io", "pkg.go.dev"]
    assert (made.mode, made.refused) == ("enforce", ())
    said = "\n".join(made.notes)
    assert "disable-sudo has no counterpart: the wall is outside the machine" in said
    assert "disable-sudo-and-containers" in said
    assert "disable-telemetry" in said
    assert "disable-file-monitoring" not in said, "it is off"


def test_a_mode_that_cant_be_read_warns_and_says_so(presets: Presets) -> None:
    made = imported(presets)
    assert made.mode == "warn"
    assert any("can't be read, so this one warns" in note for note in made.notes)


def test_what_they_allow_is_allowed_and_the_rest_is_told(presets: Presets) -> None:
    made = imported(presets)
    read = read_policy(made.policy(), source="p", presets=presets)
    assert [(entry.host or entry.cidr, entry.ports) for entry in read.allow or ()] == [
        ("api.example.org", (443,)),
        ("*.cdn.example.org", (443,)),
        ("203.0.113.7/32", (22, 443)),
        ("plain.example.org", (443,)),
    ]
    assert made.builtin == ("github.com",)
    assert read.mode == "warn", "not every job was blocked"
    told = dict(made.refused)
    assert "plain HTTP" in told["mirror.example.org:80"]
    assert "a tunnel" in told["b.tunnel.example:443"]
    assert "acknowledge: REASON" in told["b.tunnel.example:443"]
    assert "ci.yml:" in told["${{ vars.MORE }}:443"]
    assert "policy: our-own, kept in their service" in told
    assert any("one label" in note for note in made.notes)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("smtp.example.org:587", "cidr: ADDRESS/32, ports: [587]"),
        ("github.com:22", "preset: github-ssh"),
        ("10.1.2.3:443", "floor"),
        ("10.1.2.3:80", "floor"),
        ("203.0.113.7:53", "DNS never leaves"),
        ("*.com:443", "anyone can register"),
        ("*:443", "every host there is"),
        ("prod-*.example.org:443", "first label"),
        ("localhost:443", "single label"),
        ("api.example.org:99999", "no port"),
        ("api.example.org:0", "no port"),
        ("https://api.example.org:443", "URL"),
        ("[::1]:443", "IPv4 only"),
        ("2001:db8::1:443", "IPv4 only"),
        ("203.0.113.0/2:443", "wider"),
        ("drop.example:443", "drop box"),
    ],
)
def test_what_has_no_counterpart(presets: Presets, endpoint: str, said: str) -> None:
    made = one(presets, endpoint)
    assert made.entries == ()
    ((given_endpoint, why),) = made.refused
    assert given_endpoint == endpoint
    assert said in why
    assert f"#   {endpoint}: " in made.policy()


def test_the_mode_is_enforce_where_all_were_blocked(presets: Presets) -> None:
    assert one(presets, "a.example.org:443").mode == "enforce"
    audit = "jobs: {a: {steps: [{uses: step-security/harden-runner@v2}]}}"
    assert imported(presets, audit).mode == "warn"


def test_composite_actions_and_other_things(presets: Presets) -> None:
    assert read_workflow("runs: {steps: [{uses: step-security/harden-runner@v2}]}", "action.yml")[0].job == ""
    for text in ("", "[]", "jobs: 3", "jobs: {a: {steps: {}}}", "jobs: {a: {steps: [1, {uses: [x]}]}}", "a: &a [*a]"):
        assert read_workflow(text, "x.yml") == ()
    for text in ("a: [", "a: \x00", "\t- x", "x" * (1 << 21), "[" * 100_000):
        with pytest.raises(UserError):
            read_workflow(text, "x.yml")


@given(st.lists(st.text(min_size=1, max_size=30), max_size=8), st.sampled_from(["block", "audit", "x"]))
def test_what_comes_out_is_always_accepted(presets: Presets, endpoints: list[str], policy: str) -> None:
    text = as_policy((Step("a\nb.yml:1", "j", policy, tuple(endpoints), ("${{\n x }}",)),), presets).policy()
    read_policy(text, source="p", presets=presets)


@given(st.text(max_size=200))
def test_reading_never_ends_otherwise(text: str) -> None:
    with contextlib.suppress(UserError):
        read_workflow(text, "x.yml")
