"""Patterns as people write them, and which of them lie within which."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.core.host_pattern import HostProblem, covers, matches, overlaps, read_host, read_name

LABELS = st.sampled_from(["a", "b", "ab", "evil", "example", "com", "test"])
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PATTERNS = st.tuples(st.sampled_from(["", "*.", "**."]), NAMES).map("".join)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM", "api.example.com"),
        ("api.example.com.", "api.example.com"),
        ("*.Example.com", "*.example.com"),
        ("**.example.com.", "**.example.com"),
        ("_sip.example.com", "_sip.example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("*.com", "*.com"),
        ("a" * 63 + ".example.com", "a" * 63 + ".example.com"),
    ],
)
def test_a_host_is_put_into_one_form(written: str, canonical: str) -> None:
    assert read_host(written) == canonical
    assert read_host(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "message", "remedy"),
    [
        ("", "empty", "api.example.com"),
        ("*", "every host", "mode: warn"),
        ("**", "every host", "mode: warn"),
        ("https://api.example.com/v1", "URL", "write api.example.com"),
        ("https://user@api.example.com:8443/v1", "URL", "write api.example.com"),
        ("https://[::1]/", "URL", "name alone"),
        ("api.example.com/v1", "path", "write api.example.com"),
        ("10.0.0.0/8", "range of addresses", "cidr: 10.0.0.0/8"),
        ("user@api.example.com", "user", "write api.example.com"),
        ("api.example.com:443", "port", "write api.example.com"),
        ("*.example.com:443", "port", 'write "*.example.com"'),
        ("api.example.com:8443", "port", "ports: [8443]"),
        ("203.0.113.7", "address", "cidr: 203.0.113.7/32"),
        ("::1", "address", "host's name"),
        ("[2001:db8::1]", "address", "host's name"),
        ("2130706433", "ends in a number", "host's name"),
        ("127.1", "ends in a number", "host's name"),
        ("0x7f.1", "ends in a number", "host's name"),
        ("api.0x1f", "ends in a number", "host's name"),
        ("api example.com", "characters", "one name for each"),
        ("a.example,b.example", "characters", "one name for each"),
        ("api.example.com\n", "characters", "one name for each"),
        ("api.example.com\x00", "characters", "one name for each"),
        ("münchen.de", "ASCII", "write xn--mnchen-3ya.de"),
        ("*.bücher.example", "ASCII", '"*.xn--bcher-kva.example"'),
        ("\u212aernel.org", "ASCII", "write kernel.org"),
        ("ex\u0430mple.com", "ASCII", "xn--exmple-4nf.com"),
        ("\u200bexample.com", "ASCII", "write example.com if"),
        ("\u202eexample.com", "ASCII", "A-labels"),
        (".example.com", "begins with a dot", '"**.example.com"'),
        ("**..example.com", "begins with a dot", '"**.example.com"'),
        ("api..example.com", "empty label", "write api.example.com"),
        ("api.*.example.com", "a star stands only alone", '"**.example.com"'),
        ("*api.example.com", "a star stands only alone", '"**.example.com"'),
        ("api*", "a star stands only alone", "*.NAME"),
        ("localhost", "single label", "localhost.example.com"),
        ("-api.example.com", "isn't one that a host name can have", "hyphen"),
        ("api-.example.com", "isn't one that a host name can have", "hyphen"),
        ("a" * 64 + ".example.com", "isn't one that a host name can have", "63"),
        (".".join(["a" * 60] * 5), "at most 253", "shorten"),
    ],
)
def test_what_is_no_host_is_refused_with_the_right_word(written: str, message: str, remedy: str) -> None:
    with pytest.raises(HostProblem) as caught:
        read_host(written)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


@given(st.text(max_size=40) | st.text("ab.*-_:/@ \n0é", max_size=20))
def test_any_text_is_read_or_refused_in_words_that_a_terminal_can_show(text: str) -> None:
    try:
        words = [read_host(text)]
        assert words == [read_host(words[0])]
    except HostProblem as problem:
        words = [problem.message, problem.remedy]
    assert all(word.isascii() and word.isprintable() for word in words)


def test_a_name_is_no_pattern() -> None:
    assert read_name("API.example.com") == "api.example.com"
    with pytest.raises(HostProblem, match="pattern"):
        read_name("*.example.com")


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("a.example", "a.example", True),
        ("a.example", "*.a.example", False),
        ("*.example", "a.example", True),
        ("*.example", "*.example", True),
        ("*.example", "**.example", False),
        ("*.example", "b.a.example", False),
        ("*.example", "*.a.example", False),
        ("**.example", "a.example", True),
        ("**.example", "*.example", True),
        ("**.example", "**.example", True),
        ("**.example", "**.a.example", True),
        ("**.example", "*.b.a.example", True),
        ("**.example", "example", False),
        ("**.a.example", "**.example", False),
        ("**.example", "evilexample", False),
        ("**.example", "a.evilexample", False),
    ],
)
def test_a_pattern_within_another(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


@given(PATTERNS, PATTERNS, NAMES)
def test_a_covered_pattern_matches_nothing_that_the_wider_one_does_not(wide: str, narrow: str, name: str) -> None:
    if covers(wide, narrow) and matches(narrow, name):
        assert matches(wide, name)


@given(PATTERNS, PATTERNS)
def test_a_pattern_that_is_not_covered_has_a_name_of_its_own(wide: str, narrow: str) -> None:
    assume(not covers(wide, narrow))
    base = narrow.removeprefix("**.").removeprefix("*.")
    mine = (
        [base] if "*" not in narrow else [f"q.{base}"] if not narrow.startswith("**") else [f"q.{base}", f"q.q.{base}"]
    )
    assert any(not matches(wide, name) for name in mine)
    assert all(matches(narrow, name) for name in mine)


@given(PATTERNS, PATTERNS, NAMES)
def test_patterns_that_share_a_name_overlap(one: str, other: str, name: str) -> None:
    if matches(one, name) and matches(other, name):
        assert overlaps(one, other)
        assert overlaps(other, one)


@given(PATTERNS)
def test_every_pattern_covers_itself(pattern: str) -> None:
    assert covers(pattern, pattern)
    assert overlaps(pattern, pattern)
