"""The format of ``.ironcd/policy.yml``: what it says, and every way to get it wrong with its line, column and word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import PolicyErrors
from orchestrator.core.policy import Private
from orchestrator.core.policy_document import STARTER, PolicyFile, Scope
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets

SOURCE = ".ironcd/policy.yml"
WHOLE = """\
mode: warn
profile: sandbox
allow_ech: true
allow:
  - preset: node
  - host: API.example.com
    comment: the company's API
  - {host: "*.cdn.example.com"}
  - {cidr: 203.0.113.0/24, ports: [2222, 22, 22]}
  - {host: bucket.tunnel.example, acknowledge: our own tunnel}
deny:
  - {host: "**.evil.example.com", comment: seen in an incident}
  - {cidr: 198.51.100.0/24}
expect:
  - {host: ocsp.example.com, comment: plain HTTP}
tests:
  - {host: api.example.com, expect: allow}
  - {host: other.example.com, expect: block}
  - {address: 203.0.113.9, port: 22, expect: allow}
"""


def read(presets: Presets, text: str | bytes, **more: object) -> PolicyFile:
    return read_policy(text, source=SOURCE, presets=presets, **more)  # type: ignore[arg-type]


def errors(presets: Presets, text: str | bytes, **more: object) -> list[tuple[int, int, str, str]]:
    with pytest.raises(PolicyErrors) as caught:
        read(presets, text, **more)
    found = caught.value.errors
    assert all(error.message.startswith(f"{SOURCE}:{error.line}:{error.column}: ") for error in found)
    return [(error.line, error.column, error.message, error.remedy) for error in found]


def test_everything_that_a_file_can_say(presets: Presets) -> None:
    file = read(presets, WHOLE)
    assert (file.mode, file.profile, file.allow_ech, file.scope) == ("warn", "sandbox", True, "repo")
    assert file.allow is not None
    node, api, cdn, ssh, tunnel = file.allow
    assert node.preset is presets.by_name["node"]
    assert (api.host, api.comment, api.line, api.column) == ("api.example.com", "the company's API", 6, 5)
    assert cdn.host == "*.cdn.example.com"
    assert (ssh.cidr, ssh.ports) == ("203.0.113.0/24", (22, 2222))
    assert (tunnel.comment, tunnel.multi_tenant) == ("acknowledged: our own tunnel", True)
    assert [entry.number for entry in file.allow] == [1, 2, 3, 4, 5]
    assert [(entry.number, entry.host, entry.cidr, entry.ports) for entry in file.deny] == [
        (6, "**.evil.example.com", "", (443,)),
        (7, "", "198.51.100.0/24", ()),
    ]
    assert [entry.number for entry in file.expect] == [8]
    assert [(test.host or test.address, test.port, test.expect) for test in file.tests] == [
        ("api.example.com", 443, "allow"),
        ("other.example.com", 443, "block"),
        ("203.0.113.9", 22, "allow"),
    ]
    assert file.places["mode"] == (1, 7)
    assert file.warnings == ()


def test_numbers_follow_the_lines_of_the_file(presets: Presets) -> None:
    file = read(presets, "deny:\n  - {host: a.example.com}\nallow:\n  - {host: b.example.com}\n")
    assert [entry.number for entry in file.deny] == [1]
    assert [entry.number for entry in file.allow or ()] == [2]


def test_the_organisations_file_says_four_things_more(presets: Presets) -> None:
    text = """\
private:
  - {cidr: 10.20.0.0/16, reason: the mirror in the data centre}
repositories_may: widen
repository_file: optional
allow:
  - {cidr: 10.20.1.0/24, ports: [22]}
"""
    file = read(presets, text, scope="org")
    assert file.private == (Private("10.20.0.0/16", "the mirror in the data centre"),)
    assert (file.repositories_may, file.repository_file) == ("widen", "optional")


def test_what_a_file_does_not_say_is_not_there(presets: Presets) -> None:
    file = read(presets, "mode: enforce\n")
    assert (file.allow, file.deny, file.profile, file.allow_ech) == (None, (), None, False)
    assert (file.repositories_may, file.repository_file) == ("narrow", "required")
    assert read(presets, "allow: []\n").allow == ()


def test_bytes_with_a_byte_order_mark_and_windows_lines_are_read(presets: Presets) -> None:
    file = read(presets, b"\xef\xbb\xbfmode: warn\r\nallow:\r\n  - host: a.example.com\r\n")
    assert file.mode == "warn"
    assert [entry.host for entry in file.allow or ()] == ["a.example.com"]


def test_the_starter_is_a_policy(presets: Presets) -> None:
    file = read(presets, STARTER)
    assert len(file.allow or ()) == 2


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "remedy"),
    [
        ("", 1, 1, "nothing in it", "preset: node"),
        ("# only a comment\n", 1, 1, "nothing in it", "preset: node"),
        ("- a\n", 1, 1, "must be a mapping", "write mode: ..."),
        ("mod: warn\n", 1, 1, "'mod' isn't a key of a policy", "did you mean mode?"),
        ("allowlist: []\n", 1, 1, "'allowlist' isn't a key", "write allow"),
        ("allowed-endpoints: []\n", 1, 1, "isn't a key", "write allow"),
        ("mode: audit\n", 1, 7, "mode must be enforce or warn, not 'audit'", "write warn"),
        ("mode: block\n", 1, 7, "mode must be", "write enforce"),
        ("mode: Enforce\n", 1, 7, "mode must be", "write enforce"),
        ("mode: enforced\n", 1, 7, "mode must be", "did you mean enforce?"),
        ("mode: off\n", 1, 7, "not 'off'", "write enforce or warn"),
        ("mode: [warn]\n", 1, 7, "not a list", "write enforce or warn"),
        ("mode:\n", 1, 6, "mode must be", "write enforce or warn"),
        ("profile: runer\n", 1, 10, "profile must be runner or sandbox", "did you mean runner?"),
        ("allow_ech: yes\n", 1, 12, "must be true or false", "write true or false"),
        ("mode: warn\nmode: enforce\n", 2, 1, "written twice; line 1", "keep one"),
        ("allow: node\n", 1, 8, "allow must be a list, not text", '"- "'),
        ("allow:\n", 1, 7, "allow is empty", "allow: []"),
        ("allow:\n  - node\n", 2, 5, "not a bare word", "write preset: node"),
        ("allow:\n  - npm\n", 2, 5, "not a bare word", "write preset: node"),
        ("allow:\n  - a.example.com\n", 2, 5, "not a bare word", 'write host: "a.example.com"'),
        ("allow:\n  - 203.0.113.0/24\n", 2, 5, "not a bare word", "write cidr:"),
        ("allow:\n  - {}\n", 2, 5, "one of host, preset, cidr; this one has none", "one entry for each"),
        ("allow:\n  - {comment: x}\n", 2, 5, "this one has none", "one entry for each"),
        ("allow:\n  - {preset: node, host: a.example.com}\n", 2, 5, "preset and host", "one entry for each"),
        ("allow:\n  - {hots: a.example.com}\n", 2, 6, "'hots' isn't a key of an entry of allow", "did you mean host?"),
        ("allow:\n  - {domain: a.example.com}\n", 2, 6, "'domain' isn't a key", "write host"),
        ("allow:\n  - {preset: nod}\n", 2, 14, "no preset 'nod'", "did you mean node?"),
        ("allow:\n  - {preset: npm}\n", 2, 14, "no preset 'npm'", "write node"),
        ("allow:\n  - {preset: zzz}\n", 2, 14, "no preset 'zzz'", "github, node or ssh"),
        ("allow:\n  - {preset: [node]}\n", 2, 14, "must be text, not a list", "write text"),
        ("allow:\n  - {host: 443}\n", 2, 12, "host must be text, not a number", 'quotes: "443"'),
        ("allow:\n  - {host: }\n", 2, 11, "must be text", "write text"),
        ("allow:\n  - host: *.a.example.com\n", 2, 11, "begins with a star", '"*.a.example.com"'),
        ("allow:\n  - {host: https://a.example.com/x}\n", 2, 12, "URL", "write a.example.com"),
        ("allow:\n  - {host: 203.0.113.7}\n", 2, 12, "an address, not a name", "cidr: 203.0.113.7/32"),
        ("allow:\n  - {host: bücher.example}\n", 2, 12, "ASCII", "xn--bcher-kva.example"),
        ('allow:\n  - {host: "*"}\n', 2, 12, "every host there is", "mode: warn"),
        ('allow:\n  - {host: "*.com"}\n', 2, 12, "every site under com", "name the hosts"),
        ('allow:\n  - {host: "*.com", acknowledge: I know}\n', 2, 12, "every site under com", "name the hosts"),
        ('allow:\n  - {host: "**.co.uk"}\n', 2, 12, "every site under co.uk", "name the hosts"),
        ('allow:\n  - {host: "*.pages.example"}\n', 2, 12, "public suffix", "acknowledge: REASON"),
        ("allow:\n  - {host: dns.resolver.test}\n", 2, 12, "DNS over HTTPS", "acknowledge: REASON"),
        ("allow:\n  - {host: a.b.tunnel.example}\n", 2, 12, "a tunnel", "acknowledge: REASON"),
        ("allow:\n  - {host: drop.example}\n", 2, 12, "a drop box", "acknowledge: REASON"),
        ("allow:\n  - {host: store.example}\n", 2, 12, "many tenants", "acknowledge: REASON"),
        ('allow:\n  - {host: "*.eu.store.example"}\n', 2, 12, "many tenants", "acknowledge: REASON"),
        ('allow:\n  - {host: a.tunnel.example, acknowledge: ""}\n', 2, 43, "acknowledge is empty", "write something"),
        ("allow:\n  - {host: a.example.com, ports: [443]}\n", 2, 34, "a host rule has no ports", "cidr rule"),
        ("allow:\n  - {preset: node, ports: [22]}\n", 2, 27, "a preset rule has no ports", "cidr rule"),
        ("allow:\n  - {cidr: 203.0.113.1/24}\n", 2, 12, "bits set beyond", "write 203.0.113.0/24"),
        ("allow:\n  - {cidr: 2001:db8::/32}\n", 2, 12, "IPv4 only", "IPv4 range"),
        ("allow:\n  - {cidr: a.example.com}\n", 2, 12, "isn't an IPv4 range", "ADDRESS/LENGTH"),
        ("allow:\n  - {cidr: 203.0.113.0/33}\n", 2, 12, "isn't an IPv4 range", "ADDRESS/LENGTH"),
        ("allow:\n  - {cidr: 0.0.0.0/0}\n", 2, 12, "wider than /8", "list the ranges"),
        ("allow:\n  - {cidr: 128.0.0.0/7, ports: [22]}\n", 2, 12, "wider than /8", "list the ranges"),
        ("allow:\n  - {cidr: 169.254.169.254/32}\n", 2, 12, "floor (metadata", "take it out"),
        ("allow:\n  - {cidr: 127.0.0.0/8}\n", 2, 12, "floor (loopback", "take it out"),
        ("allow:\n  - {cidr: 198.18.0.0/15}\n", 2, 12, "floor (benchmark", "take it out"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: 22}\n", 2, 35, "ports must be a list", "ports: [22]"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: []}\n", 2, 35, "empty list", "ports: [22]"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: [ssh]}\n", 2, 36, "whole number, not text", "from 1 to 65535"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: [0]}\n", 2, 36, "from 1 to 65535, not 0", "from 1 to 65535"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: [80]}\n", 2, 35, "plain HTTP", "take 80 out"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: [53]}\n", 2, 35, "DNS never leaves", "take 53 out"),
        ("allow:\n  - {cidr: 203.0.113.0/24, ports: [853]}\n", 2, 35, "DNS over TLS", "take 853 out"),
        ("deny:\n  - {preset: node}\n", 2, 6, "'preset' isn't a key of an entry of deny", "write host"),
        ("deny:\n  - {host: github.com}\n", 2, 12, "every runner needs", "narrower"),
        ('deny:\n  - {host: "**.com"}\n', 2, 12, "deny github.com", "narrower"),
        ("deny:\n  - {host: broker.actions.githubusercontent.com}\n", 2, 12, "every runner needs", "narrower"),
        ("expect:\n  - {cidr: 203.0.113.0/24}\n", 2, 6, "'cidr' isn't a key of an entry of expect", "host"),
        ("tests:\n  - {host: a.example.com}\n", 2, 5, "says what it expects", "expect: allow"),
        ("tests:\n  - {expect: block}\n", 2, 5, "one host or one address", "address: ADDRESS"),
        ("tests:\n  - {host: a.example.com, expect: deny}\n", 2, 35, "allow or block, not 'deny'", "write block"),
        ('tests:\n  - {host: "*.example.com", expect: block}\n', 2, 12, "a pattern", "one name"),
        ("tests:\n  - {address: 203.0.113.0/24, expect: block}\n", 2, 15, "isn't an IPv4 address", "one address"),
        ("tests:\n  - {host: a.example.com, expect: block, port: 0}\n", 2, 48, "from 1 to 65535", "from 1"),
        ("private: []\n", 1, 10, "for the organisation's policy", "organisation"),
        ("repositories_may: widen\n", 1, 19, "for the organisation's policy", "organisation"),
        ("repository_file: optional\n", 1, 18, "for the organisation's policy", "organisation"),
    ],
)
def test_every_mistake_has_its_place_and_its_remedy(
    presets: Presets, text: str, line: int, column: int, message: str, remedy: str
) -> None:
    (found,) = errors(presets, text)
    assert found[:2] == (line, column), found
    assert message in found[2]
    assert remedy in found[3]


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "remedy"),
    [
        ("private:\n  - {cidr: 203.0.113.0/24, reason: x}\n", 2, 12, "isn't a private range", "private and shared"),
        ("private:\n  - {cidr: 169.254.0.0/16, reason: x}\n", 2, 12, "isn't a private range", "private and shared"),
        ("private:\n  - {cidr: 10.0.0.0/8}\n", 2, 5, "has a reason", "add reason"),
        ("private:\n  - {reason: x}\n", 2, 5, "has a cidr", "add cidr"),
        ("private:\n  - {cidr: 10.0.0.0/8, comment: x}\n", 2, 24, "'comment' isn't a key", "write reason"),
        ("allow:\n  - {cidr: 10.1.0.0/16}\n", 2, 12, "floor (private", "add private: [{cidr: 10.1.0.0/16"),
        ("repositories_may: widne\n", 1, 19, "narrow or widen", "did you mean widen?"),
        ("repository_file: no\n", 1, 18, "required or optional", "write required or optional"),
    ],
)
def test_mistakes_of_an_organisations_file(
    presets: Presets, text: str, line: int, column: int, message: str, remedy: str
) -> None:
    found = errors(presets, text, scope="org")[-1]
    assert found[:2] == (line, column), found
    assert message in found[2]
    assert remedy in found[3]


def test_a_private_range_needs_all_of_itself_lifted(presets: Presets) -> None:
    text = "private:\n  - {cidr: 10.1.0.0/16, reason: mirror}\nallow:\n  - {cidr: 10.0.0.0/8, ports: [22]}\n"
    assert errors(presets, text, scope="org")[0][:2] == (4, 12)


def test_all_that_is_wrong_is_told_in_one_look(presets: Presets) -> None:
    text = 'mode: audit\nalow: []\nallow:\n  - {preset: nod}\n  - {host: "*.com"}\ntests:\n  - {expect: maybe}\n'
    found = errors(presets, text)
    assert [line for line, *_ in found] == [1, 2, 4, 5, 7, 7]


def test_a_file_with_a_thousand_mistakes_tells_the_first_fifty(presets: Presets) -> None:
    found = errors(presets, "allow:\n" + "".join(f"  - {{hots: h{i}.example.com}}\n" for i in range(1000)))
    assert [line for line, *_ in found] == list(range(2, 52))


@pytest.mark.parametrize(
    ("text", "line", "warning"),
    [
        ("allow:\n  - {preset: github}\n", 2, "always in force"),
        ("allow:\n  - {host: a.example.com, acknowledge: why not}\n", 2, "needs an acknowledgement"),
        (
            "allow:\n  - {host: a.example.com}\ndeny:\n  - {host: '**.example.com'}\n",
            2,
            "never allowed: line 4 denies it",
        ),
        ("allow:\n  - {host: '*.example.com'}\nexpect:\n  - {host: a.example.com}\n", 4, "line 2 allows it"),
        ("allow:\n  - {cidr: 169.0.0.0/8, ports: [22]}\n", 2, "the floor keeps"),
    ],
)
def test_what_is_odd_and_yet_accepted(presets: Presets, text: str, line: int, warning: str) -> None:
    (found,) = read(presets, text).warnings
    assert found.startswith(f"{SOURCE}:{line}:")
    assert warning in found


@pytest.mark.parametrize(
    "text",
    [
        "mode: warn\nallow: []\ntests:\n  - {host: a.example.com, expect: allow}\n",
        "allow:\n  - {host: a.example.com}\ntests:\n  - {host: a.example.com, expect: block}\n",
        "allow: []\ntests:\n  - {address: 203.0.113.1, port: 22, expect: allow}\n",
        "allow:\n  - {preset: node}\ntests:\n  - {host: nodejs.org, expect: block}\n",
    ],
)
def test_a_test_that_does_not_hold_refuses_the_file(presets: Presets, text: str) -> None:
    (found,) = errors(presets, text)
    assert found[0] == text.count("\n")
    assert "a test doesn't hold" in found[2]


def test_a_warned_name_counts_as_blocked_in_a_test(presets: Presets) -> None:
    read(presets, "mode: warn\nallow: []\ntests:\n  - {host: a.example.com, expect: block}\n")


def test_a_test_about_the_images_hosts_waits_for_an_image(presets: Presets) -> None:
    text = "allow:\n  - {preset: node}\ntests:\n  - {host: registry.example.com, expect: allow}\n"
    (warning,) = read(presets, text).warnings
    assert "unless the image adds it" in warning
    assert read(presets, text, image_presets={"node": ["registry.example.com"]}).warnings == ()
    assert "a test doesn't hold" in errors(presets, text, image_presets={})[0][2]


def test_a_test_about_the_organisations_hosts_waits_for_its_policy(presets: Presets) -> None:
    (warning,) = read(presets, "tests:\n  - {host: a.example.com, expect: allow}\n").warnings
    assert "unless the organisation's policy adds it" in warning


WORDS = st.sampled_from(
    ["mode", "allow", "deny", "preset", "host", "cidr", "ports", "node", "warn", "*.x.example", "10.0.0.0/8", "[", "]"]
)


@given(st.lists(st.tuples(st.integers(0, 6), WORDS, st.sampled_from([": ", "- ", " ", "\n", ": [", "{"])), max_size=12))
def test_any_file_is_read_or_refused_in_place(presets: Presets, parts: list[tuple[int, str, str]]) -> None:
    text = "\n".join(" " * indent + word + tail for indent, word, tail in parts)
    try:
        assert read(presets, text).source == SOURCE
    except PolicyErrors as refused:
        lines = text.count("\n") + 2
        assert {1 <= error.line <= lines for error in refused.errors} == {True}  # noqa: PT017 - either is right


def test_no_image_makes_a_test_hold_that_a_rule_denies(presets: Presets) -> None:
    text = "allow: [{preset: node}]\ndeny: [{host: a.example.org}]\ntests: [{host: a.example.org, expect: allow}]\n"
    with pytest.raises(PolicyErrors, match="denied by repo#2"):
        read_policy(text, source="p.yml", presets=presets)


AWKWARD = (
    "*",
    "**.",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "|",
    "> ",
    "{",
    "}",
    "[",
    ":",
    "\t",
    "\x00",
    "\u202e",
    "1e400",
)
AWKWARD += (
    "999999999999999999999",
    "null",
    "0x10",
    "2020-01-01",
    ".inf",
    "'",
    '"',
    "#",
    "---\n",
    "<<: ",
    "? ",
    "\r",
    "\u2028",
    "\ufeff",
)
AWKWARD += ("1:30", "a" * 300, "-1", "65536", "::1/128", "[]", "{}", "K\u212a", "\ud800")
_EDITS = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.sampled_from(AWKWARD)), max_size=5)


@settings(max_examples=80, deadline=None)
@given(_EDITS, st.sampled_from(["repo", "org"]))
def test_a_spoiled_file_is_read_or_refused_in_place(
    presets: Presets, edits: list[tuple[int, int, str]], scope: Scope
) -> None:
    text = WHOLE
    for at, gone, word in edits:
        text = text[:at] + word + text[at + gone :]
    try:
        read_policy(text, source="p.yml", presets=presets, scope=scope)
    except PolicyErrors as refused:
        for error in refused.errors:
            assert (error.line, error.column) >= (1, 1)
            assert error.line <= text.count("\n") + 2 + text.count("\r") + text.count("\u2028")
            assert error.remedy
