"""Every shipped preset: its own tests, its sources, and what none of them may hold."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.effective import effective_policy, run_tests
from orchestrator.core.flow import Flow
from orchestrator.core.hazards import floor_problem, host_danger
from orchestrator.core.host_pattern import base_of, covers, matches
from orchestrator.core.policy import Policy, compile_policy, decide
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Hazard, Preset
from policies import baseline_policy, load_presets, suffix_kind

PRESETS = load_presets()
EACH = pytest.mark.parametrize("preset", PRESETS.by_name.values(), ids=lambda preset: preset.name)
# What the issue that asked for presets names, and the rest of the tools that runners commonly need.
WANTED = {
    *("github", "github-raw", "github-lfs", "github-packages", "github-attest", "github-dependabot", "github-upload"),
    *("github-ssh", "ubuntu", "apt", "apt-vendors", "node", "pypi", "conda", "pytorch", "go", "rust", "ruby", "java"),
    *("dotnet", "docker", "registries", "homebrew", "openai", "anthropic", "foundry", "sigstore", "playwright"),
    *("terraform", "coverage", "deno"),
}


@EACH
def test_a_presets_own_tests_hold(preset: Preset) -> None:
    policy = Policy(mode="enforce", rules=(*PRESETS.builtin.rules(), *preset.rules()))
    assert run_tests(policy, preset.tests) == []


@EACH
def test_its_tests_say_what_it_reaches_and_what_it_must_not(preset: Preset) -> None:
    expected = {test.expect for test in preset.tests}
    assert "block" in expected
    assert "allow" in expected or not preset.entries


@EACH
def test_a_policy_that_names_it_is_accepted(preset: Preset) -> None:
    file = read_policy(f"allow:\n  - {{preset: {preset.name}}}\n", source="policy.yml", presets=PRESETS)
    policy = effective_policy(None, file, PRESETS.builtin, {})
    ids = [rule.id for rule in policy.rules]
    assert len(ids) == len(set(ids))
    compile_policy(policy)


@EACH
def test_every_entry_has_a_source_and_stands_once(preset: Preset) -> None:
    places = [entry.host or entry.cidr for entry in preset.entries]
    assert len(places) == len(set(places))
    for entry in preset.entries:
        assert len(entry.source) > 10
        assert entry.source.startswith("https://") or not entry.verified or preset.builtin


@EACH
def test_no_entry_opens_a_place_where_anyone_can_register(preset: Preset) -> None:
    for entry in preset.entries:
        if not entry.host:
            assert floor_problem(entry.cidr, ()) is None
            assert entry.ports == (22,)
            continue
        danger = host_danger(entry.host, PRESETS)
        assert danger is None or (entry.multi_tenant and not danger.refused), entry.host
        if entry.host.startswith("*"):
            assert suffix_kind(base_of(entry.host)) == ""


def test_every_wildcard_is_one_whose_owner_alone_gives_out_names() -> None:
    """A new one isn't taken until somebody has looked up who can get a name below it, and has written that here."""
    wildcards = {entry.host for preset in PRESETS.by_name.values() for entry in preset.entries if "*" in entry.host}
    assert wildcards == {
        "**.actions.githubusercontent.com",  # GitHub's own services
        "*.pkg.julialang.org",  # mirrors that the Julia project runs
        "*.data.mcr.microsoft.com",  # Microsoft's own regions
    }


@pytest.mark.parametrize("hazard", PRESETS.hazards, ids=lambda hazard: hazard.host)
def test_no_preset_takes_in_a_name_that_anyone_can_get(hazard: Hazard) -> None:
    """A name that nobody has yet, below each place that is known to rent them."""
    name = hazard.host.replace("**.", "evil-0x7f.").replace("*.", "evil-0x7f.")
    if name == hazard.host:
        name = f"evil-0x7f.{name}"
    for preset in PRESETS.by_name.values():
        assert not any(entry.host and matches(entry.host, name) for entry in preset.entries), preset.name


def fingerprint(preset: Preset) -> str:
    """Of what its rules open."""
    opens = [(entry.host, entry.cidr, entry.ports) for entry in preset.entries]
    return hashlib.sha256(msgspec.json.encode(opens)).hexdigest()[:16]


@EACH
def test_a_change_of_what_it_opens_has_a_new_version(preset: Preset) -> None:
    """Rules are recorded as ``preset/NAME@VERSION#NUMBER``: a version must mean the same list for ever."""
    known = json.loads(Path(__file__).with_name("versions.json").read_text())
    told = f"raise the version of {preset.name}, and add to versions.json: {preset.version}: {fingerprint(preset)!r}"
    assert known.get(preset.name, {}).get(str(preset.version)) == fingerprint(preset), told
    assert max(map(int, known[preset.name])) == preset.version


def test_nothing_that_was_asked_for_is_missing() -> None:
    assert set(PRESETS.names) >= WANTED


def test_one_preset_is_built_in_and_three_are_read_off_the_image() -> None:
    assert [preset.name for preset in PRESETS.by_name.values() if preset.builtin] == ["github"]
    assert {preset.name for preset in PRESETS.by_name.values() if preset.from_image} == {"apt", "node", "pypi"}


def test_no_word_stands_for_two_presets() -> None:
    words = [word for preset in PRESETS.by_name.values() for word in (preset.name, *preset.aka)]
    assert sorted(words) == sorted(set(words))


def test_the_baseline_has_each_of_githubs_storage_accounts_and_no_wildcard_over_them() -> None:
    hosts = {entry.host for entry in PRESETS.builtin.entries}
    assert {f"productionresultssa{i}.blob.core.windows.net" for i in range(20)} <= hosts
    assert not any(covers(host, "evil.blob.core.windows.net") for host in hosts)


def test_the_sealed_phase_reaches_github_and_nothing_else() -> None:
    policy = baseline_policy()
    assert policy.mode == "enforce"
    assert {rule.id.partition("#")[0] for rule in policy.rules} == {"builtin/github@1"}
    compiled = compile_policy(policy)
    for name in ("example.com", "nodejs.org", "raw.githubusercontent.com", "gist.github.com", "ghcr.io"):
        assert decide(compiled, Flow("tls", 443, name=name)).verdict == "blocked"


@pytest.mark.parametrize(
    "host",
    [
        *("dns.google", "cloudflare-dns.com", "mozilla.cloudflare-dns.com", "one.one.one.one", "dns.quad9.net"),
        *("x.trycloudflare.com", "x.workers.dev", "x.ngrok.io", "x.ngrok-free.app", "gist.github.com", "webhook.site"),
        *("pastebin.com", "transfer.sh", "hooks.slack.com", "discord.com", "api.telegram.org", "cdn.jsdelivr.net"),
        *("unpkg.com", "esm.sh", "storage.googleapis.com", "s3.amazonaws.com", "*.s3.amazonaws.com", "doh.opendns.com"),
        *("*.blob.core.windows.net", "**.windows.net", "*.r2.cloudflarestorage.com", "*.github.io", "*.pages.dev"),
        *(
            "*.vercel.app",
            "*.netlify.app",
            "*.herokuapp.com",
            "*.firebaseio.com",
            "*.requestcatcher.com",
            "**.amazonaws.com",
        ),
        *(
            "*.githubusercontent.com",
            "**.githubusercontent.com",
            "*.cloudfront.net",
            "*.azurewebsites.net",
            "*.surge.sh",
        ),
    ],
)
def test_an_entry_that_needs_an_acknowledgement(host: str) -> None:
    danger = host_danger(host, PRESETS)
    assert danger is not None
    assert not danger.refused


@pytest.mark.parametrize(
    "host", ["*.com", "**.com", "*.co.uk", "*.de", "*.dev", "*.io", "**.net", "*.example", "*.internal"]
)
def test_an_entry_that_no_acknowledgement_saves(host: str) -> None:
    danger = host_danger(host, PRESETS)
    assert danger is not None
    assert danger.refused


@pytest.mark.parametrize(
    "host",
    [
        *(
            "github.com",
            "*.actions.githubusercontent.com",
            "mybucket.s3.amazonaws.com",
            "myaccount.blob.core.windows.net",
        ),
        *("example.com", "*.example.com", "me.github.io", "nodejs.org"),
    ],
)
def test_an_entry_that_needs_none(host: str) -> None:
    assert host_danger(host, PRESETS) is None


def test_the_default_policy_is_accepted_and_stands_in_for_a_repository() -> None:
    text = files("policies").joinpath("default.yml").read_bytes()
    organisation = read_policy(text, source="policies/default.yml", presets=PRESETS, scope="org")
    assert organisation.warnings == ()
    policy = effective_policy(organisation, None, PRESETS.builtin, {"apt": ["archive.example.com"]})
    compiled = compile_policy(policy)
    assert decide(compiled, Flow("tls", 443, name="archive.example.com")).verdict == "allowed"
    assert decide(compiled, Flow("dns", 443, name="ocsp.digicert.com")).flags == ("expected",)


def test_a_repository_can_pick_from_the_default_policy_and_not_add_to_it() -> None:
    text = files("policies").joinpath("default.yml").read_bytes()
    organisation = read_policy(text, source="policies/default.yml", presets=PRESETS, scope="org")
    for name in ("node", "go", "github"):
        file = read_policy(f"allow:\n  - {{preset: {name}}}\n", source="policy.yml", presets=PRESETS)
        effective_policy(organisation, file, PRESETS.builtin, {"node": ["registry.example.com"]})
    file = read_policy("allow:\n  - {preset: docker}\n", source="policy.yml", presets=PRESETS)
    with pytest.raises(Exception, match="isn't within what the organisation allows"):
        effective_policy(organisation, file, PRESETS.builtin, {})
