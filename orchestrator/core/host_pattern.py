"""Host patterns: how they are written, and which names and patterns they take in.

``x.example`` is that name alone, ``*.x.example`` exactly one label below it, ``**.x.example`` one or more, and neither
is ``x.example`` itself.  Everything is compared label by label; no rule here looks at how a string begins or ends.

A pattern is kept in one form: lower-case ASCII (A-labels), no final dot.  What a person wrote in another form is either
put into that form, where nothing can be meant but that (upper case, a final dot), or refused with the right word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Generic, TypeVar

import idna

T = TypeVar("T")

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST = 253


class HostProblem(ValueError):
    """A host can't be read: ``remedy`` says what to write."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def read_host(text: str) -> str:
    """The canonical form of the pattern ``text``.  Raises `HostProblem`."""
    _refuse_what_is_not_a_name(text)
    lower = text.lower().removesuffix(".")
    stars, name = _split_stars(lower)
    _check_name(name, text)
    if len(lower) > _LONGEST:
        raise HostProblem(f"a host name has at most {_LONGEST} characters, this one {len(lower)}", "shorten it")
    if not stars and "." not in name:
        raise HostProblem(
            f"{_shown(name)} is a single label, which no public host has for its name",
            f'write the whole name, like "{name}.example.com"',
        )
    return stars + name


def read_name(text: str) -> str:
    """Like `read_host`, for a place where one name is meant and no pattern."""
    pattern = read_host(text)
    if pattern.startswith("*"):
        raise HostProblem(f"{_shown(text)} is a pattern, and one name is wanted here", "write one name that it matches")
    return pattern


def covers(wide: str, narrow: str) -> bool:
    """True where every name that ``narrow`` matches is matched by ``wide`` too.  Both are canonical patterns."""
    depth, base = _taken_apart(wide)
    other_depth, other = _taken_apart(narrow)
    below = len(other) - len(base)
    if below < 0 or other[below:] != base:
        return False
    if depth == "exact":
        return other_depth == "exact" and below == 0
    if depth == "one":
        return (other_depth == "exact" and below == 1) or (other_depth == "one" and below == 0)
    return other_depth != "exact" or below >= 1


def matches(pattern: str, name: str) -> bool:
    """True where the canonical ``pattern`` takes in the canonical ``name`` (no stars)."""
    return covers(pattern, name)


def overlaps(one: str, other: str) -> bool:
    """True where some name is matched by both patterns."""
    # Of two patterns that share a name, one always lies inside the other: each takes in whole subtrees or whole levels.
    return covers(one, other) or covers(other, one)


def base_of(pattern: str) -> str:
    """The name that a wildcard stands below; an exact name itself."""
    return pattern.lstrip("*").removeprefix(".") if pattern.startswith("*") else pattern


class CoverIndex(Generic[T]):
    """Things by the pattern that they stand for, so that two long lists are compared in one walk."""

    def __init__(self, things: Iterable[tuple[str, T]]) -> None:
        self._by_base: dict[str, list[tuple[str, T]]] = {}
        for pattern, thing in things:
            self._by_base.setdefault(base_of(pattern), []).append((pattern, thing))

    def covering(self, pattern: str) -> Iterator[T]:
        """The things whose patterns cover ``pattern``, the most specific first."""
        rest = base_of(pattern)
        while rest:
            for wide, thing in self._by_base.get(rest, ()):
                if covers(wide, pattern):
                    yield thing
            rest = rest.partition(".")[2]


def _taken_apart(pattern: str) -> tuple[str, list[str]]:
    if pattern.startswith("**."):
        return "deep", pattern[3:].split(".")
    if pattern.startswith("*."):
        return "one", pattern[2:].split(".")
    return "exact", pattern.split(".")


def _refuse_what_is_not_a_name(text: str) -> None:
    if not text:
        raise HostProblem("the host is empty", "write a name, like api.example.com")
    if re.search(r"[\s\x00-\x1f\x7f,;]", text):
        raise HostProblem(f"{_shown(text)} has characters that no name has", "write one name for each entry")
    if not text.isascii():
        raise HostProblem(
            f"{_shown(text)} isn't in ASCII, and names are compared in their ASCII form", _a_label_remedy(text)
        )
    if scheme := _SCHEME.match(text):
        raise HostProblem(f"{_shown(text)} is a URL, and a rule is about a host", _rather(text[scheme.end() :]))
    if re.search(r"[/?#]", text):
        if _is_range(text):
            raise HostProblem(f"{_shown(text)} is a range of addresses", f"write cidr: {text}")
        raise HostProblem(f"{_shown(text)} has a path, which can't be seen without decrypting", _rather(text))
    if "@" in text:
        raise HostProblem(f"{_shown(text)} has a user in it", _rather(text))
    if _is_address(text.strip("[]")):
        raise HostProblem(f"{_shown(text)} is an address, not a name", _range_for(text.strip("[]")))
    if ":" in text:
        port = text.rpartition(":")[2]
        other = f"; another port needs a cidr: rule with ports: [{port}]" if port.isdigit() and port != "443" else ""
        raise HostProblem(f"{_shown(text)} has a port in it: host rules are HTTPS on port 443", _rather(text) + other)


def _split_stars(text: str) -> tuple[str, str]:
    if text in ("*", "**"):
        raise HostProblem(f'"{text}" is every host there is', "list the hosts, or set mode: warn to see which are used")
    for stars in ("**.", "*."):
        if text.startswith(stars):
            rest = text[len(stars) :]
            break
    else:
        stars, rest = "", text
    if rest.startswith("."):
        raise HostProblem(f"{_shown(text)} begins with a dot", f'write "**{rest}", and {_quoted(rest[1:])} beside it')
    if "*" in rest:
        deepest = rest[rest.rindex("*") + 1 :].partition(".")[2] if "." in rest[rest.rindex("*") :] else ""
        hint = f'write "**.{deepest}"' if "." in deepest else "write *.NAME (one label) or **.NAME (any depth) or NAME"
        raise HostProblem(f"{_shown(text)}: a star stands only alone, as the first label", hint)
    return stars, rest


def _check_name(name: str, text: str) -> None:
    labels = name.split(".")
    for label in labels:
        if not label:
            raise HostProblem(
                f"{_shown(text)} has an empty label", f"write {_quoted(re.sub(r'[.]+', '.', name).strip('.'))}"
            )
        if not _LABEL.fullmatch(label):
            raise HostProblem(
                f"the label {_shown(label)} isn't one that a host name can have",
                "labels are 1 to 63 letters, digits, hyphens and underscores, and no hyphen stands first or last",
            )
    if _NUMERIC.fullmatch(labels[-1]):
        raise HostProblem(f"{_shown(text)} ends in a number, so it would be read as an address", _range_for(name))


def _a_label_remedy(text: str) -> str:
    stars, name = ("", text)
    for lead in ("**.", "*."):
        if text.startswith(lead):
            stars, name = lead, text[len(lead) :]
            break
    try:
        encoded = idna.encode(name, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return "write the name's A-labels (xn--...), as DNS has it"
    return f"write {_quoted(stars + encoded)} if that is the host you mean"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_range(text: str) -> bool:
    address, _, length = text.partition("/")
    return _is_address(address) and length.isascii() and length.isdigit()


def _range_for(text: str) -> str:
    if _is_address(text) and ":" not in text:
        return f"write cidr: {text}/32 with ports: [...]; better, the host's name"
    return "write the host's name, or a cidr: with ports:"


def _rather(text: str) -> str:
    """The host in what looks like a URL or an authority, as a remedy."""
    authority = re.split(r"[/?#]", text)[0].rpartition("@")[2]
    try:
        return f"write {_quoted(read_host(authority.partition(':')[0]))}"
    except HostProblem:
        return "write the host's name alone"


def _shown(text: str) -> str:
    """``text`` so that no terminal or log is fooled by it."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _quoted(text: str) -> str:
    return f'"{text}"' if text.startswith("*") else text
