"""What holds for a job: baseline, organisation and repository together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.effective import baseline_policy, effective_policy, run_tests
from orchestrator.core.errors import ConfigurationError, PolicyErrors, UserError
from orchestrator.core.flow import Flow
from orchestrator.core.policy import Policy, Private, compile_policy, decide
from orchestrator.core.policy_document import PolicyFile
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import IMAGE_HOSTS_LIMIT, PolicyTest, Presets


def repo(presets: Presets, text: str) -> PolicyFile:
    return read_policy(text, source=".ironcd/policy.yml", presets=presets)


def org(presets: Presets, text: str) -> PolicyFile:
    return read_policy(text, source="org.yml", presets=presets, scope="org")


def reaches(policy: Policy, host: str) -> bool:
    return decide(compile_policy(policy), Flow("tls", 443, name=host)).verdict == "allowed"


def refusal(presets: Presets, organisation: str | None, repository: str | None) -> list[tuple[str, int, str]]:
    first = None if organisation is None else org(presets, organisation)
    second = None if repository is None else repo(presets, repository)
    with pytest.raises(PolicyErrors) as caught:
        effective_policy(first, second, presets.builtin)
    return [(error.source, error.line, error.message) for error in caught.value.errors]


def test_the_sealed_phase_has_the_baseline_and_enforces_it(presets: Presets) -> None:
    policy = baseline_policy(presets.builtin)
    assert policy.mode == "enforce"
    assert [rule.id for rule in policy.rules] == ["builtin/github@1#1", "builtin/github@1#2"]
    assert reaches(policy, "github.com")
    assert reaches(policy, "payload.pipelines.actions.githubusercontent.com")
    assert not reaches(policy, "nodejs.org")


def test_a_repository_alone_stands_over_the_baseline(presets: Presets) -> None:
    file = repo(
        presets, "mode: warn\nallow:\n  - {preset: node}\n  - {host: a.example.com}\ndeny:\n  - {host: b.example.com}\n"
    )
    policy = effective_policy(None, file, presets.builtin)
    assert policy.mode == "warn"
    assert [rule.id for rule in policy.rules] == [
        "builtin/github@1#1",
        "builtin/github@1#2",
        "preset/node@3#1",
        "preset/node@3#2",
        "repo#2",
        "repo#3",
    ]
    assert [rule.origin for rule in policy.rules] == [
        "preset github, version 1",
        "preset github, version 1",
        "preset node, version 3; .ironcd/policy.yml:3",
        "preset node, version 3; .ironcd/policy.yml:3",
        ".ironcd/policy.yml:4",
        ".ironcd/policy.yml:6",
    ]


def test_the_baseline_is_in_every_policy_and_its_rule_is_the_one_on_record(presets: Presets) -> None:
    file = repo(presets, "allow:\n  - {preset: github}\n  - {host: github.com}\n")
    policy = effective_policy(None, file, presets.builtin)
    decision = decide(compile_policy(policy), Flow("tls", 443, name="github.com"))
    assert decision.rule == "builtin/github@1#1"
    assert decision.flags == ("multi_tenant",)
    assert len(policy.rules) == 2


def test_no_policy_is_refused_with_a_file_to_start_from(presets: Presets) -> None:
    with pytest.raises(UserError) as caught:
        effective_policy(None, None, presets.builtin)
    assert caught.value.code == "policy-missing"
    assert "preset: node" in caught.value.remedy
    with pytest.raises(UserError) as caught:
        effective_policy(org(presets, "allow: []\n"), None, presets.builtin)
    assert caught.value.code == "policy-missing"
    assert "org.yml" in caught.value.message


def test_an_organisations_policy_can_stand_in(presets: Presets) -> None:
    text = "mode: warn\nprofile: sandbox\nrepository_file: optional\nallow:\n  - {host: a.example.com}\n"
    policy = effective_policy(org(presets, text), None, presets.builtin)
    assert (policy.mode, policy.profile) == ("warn", "sandbox")
    assert reaches(policy, "a.example.com")
    assert policy.rules[-1].id == "org#1"
    assert policy.rules[-1].origin == "org.yml:5"


WIDE = 'allow:\n  - {host: "**.example.com"}\n  - {preset: node}\n  - {cidr: 203.0.113.0/24, ports: [22, 443]}\n'


def test_a_repository_gets_its_own_list_out_of_the_organisations(presets: Presets) -> None:
    file = repo(presets, "allow:\n  - {host: a.example.com}\n  - {cidr: 203.0.113.8/29, ports: [22]}\n")
    policy = effective_policy(org(presets, WIDE), file, presets.builtin)
    assert reaches(policy, "a.example.com")
    assert not reaches(policy, "b.example.com")
    assert not reaches(policy, "nodejs.org")
    assert [rule.id for rule in policy.rules[2:]] == ["repo#1", "repo#2"]


def test_without_a_list_of_its_own_it_gets_the_whole_one(presets: Presets) -> None:
    file = repo(presets, "deny:\n  - {host: b.example.com}\n")
    policy = effective_policy(org(presets, WIDE), file, presets.builtin)
    assert reaches(policy, "a.example.com")
    assert reaches(policy, "nodejs.org")
    assert not reaches(policy, "b.example.com")


def test_an_empty_list_is_a_list(presets: Presets) -> None:
    policy = effective_policy(org(presets, WIDE), repo(presets, "allow: []\n"), presets.builtin)
    assert not reaches(policy, "a.example.com")
    assert reaches(policy, "github.com")


@pytest.mark.parametrize(
    "entry",
    [
        "{host: a.example.com}",
        '{host: "*.example.com"}',
        '{host: "**.b.example.com"}',
        "{preset: node}",
        "{host: nodejs.org}",
        "{host: github.com}",
        "{cidr: 203.0.113.0/24, ports: [22]}",
        "{cidr: 203.0.113.7/32, ports: [443]}",
    ],
)
def test_what_lies_within_the_organisations_list(presets: Presets, entry: str) -> None:
    effective_policy(org(presets, WIDE), repo(presets, f"allow:\n  - {entry}\n"), presets.builtin)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("{host: example.com}", "example.com"),
        ("{host: evilexample.com}", "evilexample.com"),
        ("{host: other.com}", "other.com"),
        ('{host: "**.nodejs.org"}', "**.nodejs.org"),
        ("{preset: ssh}", "preset ssh: 192.0.2.0/24 ports 22"),
        ("{cidr: 203.0.112.0/23, ports: [22]}", "203.0.112.0/23 ports 22"),
        ("{cidr: 203.0.113.0/24, ports: [22, 2222]}", "203.0.113.0/24 ports 22, 2222"),
    ],
)
def test_what_lies_outside_it_is_refused_in_its_place(presets: Presets, entry: str, named: str) -> None:
    (found,) = refusal(presets, WIDE, f"allow:\n  - {{host: a.example.com}}\n  - {entry}\n")
    assert found[:2] == (".ironcd/policy.yml", 3)
    assert f"{named} isn't within what the organisation allows" in found[2]


def test_a_preset_is_refused_where_the_organisation_allows_a_part_of_it(presets: Presets) -> None:
    (found,) = refusal(presets, "allow:\n  - {host: nodejs.org}\n", "allow:\n  - {preset: node}\n")
    assert "preset node: *.yarn.example isn't within" in found[2]


def test_an_organisation_without_a_list_allows_nothing(presets: Presets) -> None:
    (found,) = refusal(presets, "mode: enforce\n", "allow:\n  - {host: a.example.com}\n")
    assert "isn't within" in found[2]


def test_widen_adds_the_repositorys_list_to_the_organisations(presets: Presets) -> None:
    organisation = org(
        presets, "repositories_may: widen\nallow:\n  - {host: a.example.com}\ndeny:\n  - {host: evil.com}\n"
    )
    file = repo(presets, "allow:\n  - {host: other.com}\n  - {host: evil.com}\n")
    policy = effective_policy(organisation, file, presets.builtin)
    assert reaches(policy, "a.example.com")
    assert reaches(policy, "other.com")
    assert not reaches(policy, "evil.com")


@pytest.mark.parametrize("may", ["narrow", "widen"])
@pytest.mark.parametrize(
    ("organisation", "repository", "line"),
    [
        ("mode: enforce\n", "allow: []\nmode: warn\n", 2),
        ("allow: []\n", "mode: warn\n", 1),
        ("mode: warn\n", "profile: sandbox\n", 1),
        ("mode: warn\n", "allow_ech: true\n", 1),
    ],
)
def test_a_repository_never_loosens(presets: Presets, may: str, organisation: str, repository: str, line: int) -> None:
    (found,) = refusal(presets, f"repositories_may: {may}\n{organisation}", repository)
    assert found[:2] == (".ironcd/policy.yml", line)
    assert "looser than the organisation's policy (org.yml)" in found[2]


@pytest.mark.parametrize(
    ("organisation", "repository", "mode", "profile"),
    [
        ("mode: warn\n", "allow: []\n", "warn", "runner"),
        ("mode: warn\n", "mode: enforce\n", "enforce", "runner"),
        ("mode: warn\n", "mode: warn\n", "warn", "runner"),
        ("profile: sandbox\n", "allow: []\n", "enforce", "sandbox"),
        ("profile: sandbox\n", "profile: runner\n", "enforce", "runner"),
    ],
)
def test_the_stricter_of_both_holds(
    presets: Presets, organisation: str, repository: str, mode: str, profile: str
) -> None:
    policy = effective_policy(org(presets, organisation), repo(presets, repository), presets.builtin)
    assert (policy.mode, policy.profile) == (mode, profile)


def test_ech_passes_only_where_every_file_says_so(presets: Presets) -> None:
    yes, no = "allow_ech: true\n", "mode: enforce\n"
    assert effective_policy(None, repo(presets, yes), presets.builtin).allow_ech
    assert effective_policy(org(presets, yes), repo(presets, yes), presets.builtin).allow_ech
    assert not effective_policy(org(presets, yes), repo(presets, no), presets.builtin).allow_ech
    assert not effective_policy(None, repo(presets, no), presets.builtin).allow_ech


LIFTED = "private:\n  - {cidr: 10.1.0.0/16, reason: mirror}\nallow:\n  - {cidr: 10.1.0.0/16, ports: [22]}\n"


def test_only_the_organisation_lifts_the_floor(presets: Presets) -> None:
    file = repo(presets, "allow:\n  - {cidr: 10.1.2.0/24, ports: [22]}\n")
    policy = effective_policy(org(presets, LIFTED), file, presets.builtin)
    assert policy.private == (Private("10.1.0.0/16", "mirror"),)
    assert decide(compile_policy(policy), Flow("tcp", 22, address="10.1.2.3")).verdict == "allowed"
    (found,) = refusal(presets, None, "allow:\n  - {cidr: 10.1.2.0/24, ports: [22]}\n")
    assert "lies on the floor (private, 10.0.0.0/8)" in found[2]
    (found,) = refusal(presets, "repositories_may: widen\n", "allow:\n  - {cidr: 10.2.0.0/24, ports: [22]}\n")
    assert "lies on the floor" in found[2]


def test_hosts_read_off_the_image_join_their_preset(presets: Presets) -> None:
    file = repo(presets, "allow:\n  - {preset: node}\n")
    images = {"node": ["Registry.example.com", "registry.example.com"], "apt": ["deb.example.com"]}
    policy = effective_policy(None, file, presets.builtin, images)
    assert reaches(policy, "registry.example.com")
    assert not reaches(policy, "deb.example.com")
    rule = policy.rules[-1]
    assert rule.id == "preset/node@3#image-1"
    assert "read off the image" in rule.origin
    assert (
        effective_policy(org(presets, "allow:\n  - {preset: node}\n"), file, presets.builtin, images).rules[-1] == rule
    )


@pytest.mark.parametrize(
    "hosts",
    [
        ["*.example.com"],
        ["203.0.113.1"],
        ["https://a.example"],
        [f"h{i}.example.com" for i in range(IMAGE_HOSTS_LIMIT + 1)],
    ],
)
def test_an_image_that_lists_more_than_names_is_refused(presets: Presets, hosts: list[str]) -> None:
    file = repo(presets, "allow:\n  - {preset: node}\n")
    with pytest.raises(ConfigurationError) as caught:
        effective_policy(None, file, presets.builtin, {"node": hosts})
    assert caught.value.code == "image-preset-invalid"


def test_the_organisations_blocks_hold_for_every_repository(presets: Presets) -> None:
    organisation = "repositories_may: widen\ntests:\n  - {host: evil.com, expect: block}\n"
    (found,) = refusal(presets, organisation, "allow:\n  - {host: evil.com}\n")
    assert found[:2] == ("org.yml", 3)
    assert "evil.com on port 443 is allowed by repo#1" in found[2]


def test_a_repositorys_test_holds_in_the_end_or_the_policy_is_refused(presets: Presets) -> None:
    organisation = 'allow:\n  - {host: "**.example.com"}\ndeny:\n  - {host: a.example.com}\n'
    repository = "allow:\n  - {host: a.example.com}\ntests:\n  - {host: a.example.com, expect: allow}\n"
    (found,) = refusal(presets, organisation, repository)
    assert found[:2] == (".ironcd/policy.yml", 4)
    assert "is blocked (denied by org#2)" in found[2]
    effective_policy(
        org(presets, WIDE), repo(presets, "tests:\n  - {host: a.example.com, expect: allow}\n"), presets.builtin
    )


def test_everything_that_the_organisation_refuses_is_told_at_once(presets: Presets) -> None:
    found = refusal(presets, "allow: []\n", "mode: warn\nallow:\n  - {host: a.example.com}\n  - {cidr: 10.0.0.0/8}\n")
    assert [line for _, line, _ in found] == [1, 3, 4, 4]


def test_a_test_that_fails_comes_with_what_was_decided(presets: Presets) -> None:
    policy = baseline_policy(presets.builtin)
    tests = [PolicyTest(expect="allow", host="github.com"), PolicyTest(expect="allow", address="203.0.113.1", port=22)]
    ((test, decision),) = run_tests(policy, tests)
    assert test.address == "203.0.113.1"
    assert decision.reason == "not_allowed"


HOSTS = st.sampled_from(
    ["a.example.com", "b.example.com", "*.example.com", "**.example.com", "a.b.example.com", "c.com"]
)
LISTS = st.lists(HOSTS, max_size=4)
PROBES = ["a.example.com", "x.example.com", "a.b.example.com", "x.y.example.com", "example.com", "c.com", "x.c.com"]


def allowing(hosts: list[str], head: str = "") -> str:
    return head + "allow: [" + ", ".join(f'{{host: "{host}"}}' for host in hosts) + "]\n"


@given(LISTS, LISTS, LISTS)
def test_narrowing_never_reaches_what_the_organisation_alone_would_not(
    presets: Presets, ceiling: list[str], wishes: list[str], denied: list[str]
) -> None:
    deny = "deny: [" + ", ".join(f'{{host: "{host}"}}' for host in denied if not host.startswith("**")) + "]\n"
    organisation = org(presets, allowing(ceiling, deny + "repository_file: optional\n"))
    alone = effective_policy(organisation, None, presets.builtin)
    try:
        policy = effective_policy(organisation, repo(presets, allowing(wishes)), presets.builtin)
    except PolicyErrors:
        return
    for host in PROBES:
        assert reaches(alone, host) or not reaches(policy, host)
