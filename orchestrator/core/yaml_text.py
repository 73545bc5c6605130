"""YAML read for people who make mistakes and for people who mean harm: nodes with their places, nothing constructed.

Only what a policy needs is accepted: one document of mappings, sequences and plain values.  No aliases or anchors (an
alias can stand for a billion nodes), no tags (a tag can name a type), no key twice (readers disagree on which one
counts), no more than `SIZE_LIMIT` bytes, `DEPTH_LIMIT` levels and
`VALUE_LIMIT` values.

`Reader` collects what is wrong and goes on, so that one look at a file tells all of it.  Lines and columns count from 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from orchestrator.core.errors import PolicyError, PolicyErrors

SIZE_LIMIT = 256 * 1024
DEPTH_LIMIT = 12
VALUE_LIMIT = 10_000
ERRORS_SHOWN = 50

_STR = "tag:yaml.org,2002:str"
_INT = "tag:yaml.org,2002:int"
_BOOL = "tag:yaml.org,2002:bool"
_NULL = "tag:yaml.org,2002:null"
_KINDS = {_INT: "a number", _BOOL: "true or false", _NULL: "nothing", "tag:yaml.org,2002:float": "a number"}
_UNQUOTED_STAR = re.compile(r"(?:^|[\s\[{,:-])(\*{1,2}\.[\w.-]+)")


class Place(NamedTuple):
    line: int
    column: int


class _Refused(Exception):
    def __init__(self, message: str, remedy: str, place: Place) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.place = place


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, with aliases, anchors and tags refused and the depth counted."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(
                f"*{event.anchor} is a YAML alias, and a policy has none",
                f'put a name that begins with a star in quotes: "*{event.anchor}"',
                _place(event.start_mark),
            )
        if getattr(event, "anchor", None) is not None:
            raise _Refused("a YAML anchor (&) has no use in a policy", "take it out", _place(event.start_mark))
        if getattr(event, "tag", None) is not None:
            raise _Refused("a YAML tag (!) has no use in a policy", "take it out", _place(event.start_mark))
        self._values += 1
        if self._values > VALUE_LIMIT:
            raise _Refused(f"more than {VALUE_LIMIT} values", "use wildcards and presets", _place(event.start_mark))
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise _Refused(f"more than {DEPTH_LIMIT} levels deep", "a policy needs three", _place(event.start_mark))
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Reader:
    """Takes a document apart and collects what is wrong with it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[PolicyError] = []

    def add(self, where: yaml.Node | Place, message: str, remedy: str) -> None:
        place = where if isinstance(where, Place) else place_of(where)
        self.errors.append(
            PolicyError(message, remedy=remedy, source=self.source, line=place.line, column=place.column)
        )

    def finish(self) -> None:
        """Raises `PolicyErrors` where anything was wrong, with the first `ERRORS_SHOWN` of it."""
        if self.errors:
            raise PolicyErrors(sorted(self.errors, key=lambda e: (e.line, e.column))[:ERRORS_SHOWN])

    def document(self, text: str | bytes) -> yaml.Node | None:
        """The root node; None for a document with nothing in it, and where it can't be read (then it's in `errors`)."""
        decoded = self._decode(text)
        if decoded is None:
            return None
        try:
            loader = _Loader(decoded)
            try:
                return loader.get_single_node()
            finally:
                loader.dispose()
        except _Refused as refused:
            self.add(refused.place, refused.message, refused.remedy)
        except yaml.reader.ReaderError as error:
            self.add(_place_in(decoded, int(error.position)), "a character that YAML doesn't allow", "take it out")
        except yaml.MarkedYAMLError as error:
            self._syntax(decoded, error)
        return None

    def mapping(self, node: yaml.Node, keys: Iterable[str], what: str, aka: Mapping[str, str] | None = None) -> Fields:
        """The values of ``node`` by key.  A key that isn't one of ``keys`` is an error that names the nearest one;
        ``aka`` maps words of other products to ours.
        """
        allowed = list(keys)
        found: Fields = {}
        if not isinstance(node, yaml.MappingNode):
            self.add(
                node,
                f"{what} must be a mapping with {_listed(allowed)}, not {kind_of(node)}",
                f"write {allowed[0]}: ...",
            )
            return found
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name not in allowed:
                self.add(key, f"{shown(name)} isn't a key of {what}", nearest(name, allowed, aka))
            elif name in found:
                self.add(key, f"{name} is written twice; line {place_of(found[name]).line} has it too", "keep one")
            else:
                found[name] = value
        return found

    def sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if kind_of(node) == "nothing":
            self.add(node, f"{what} is empty", f"write {what}: [] for none, or take the key out")
        else:
            self.add(
                node, f"{what} must be a list, not {kind_of(node)}", 'begin each entry with "- " on a line of its own'
            )
        return []

    def text(self, node: yaml.Node, what: str, *, limit: int = 500) -> str | None:
        """A value that is text and has something in it."""
        if not isinstance(node, yaml.ScalarNode) or node.tag != _STR:
            hint = (
                f'put it in quotes: "{node.value}"'
                if isinstance(node, yaml.ScalarNode) and node.value
                else "write text"
            )
            self.add(node, f"{what} must be text, not {kind_of(node)}", hint)
            return None
        value = str(node.value)
        if not value.strip():
            self.add(node, f"{what} is empty", "write something, or take the key out")
            return None
        if len(value) > limit:
            self.add(node, f"{what} is longer than {limit} characters", "shorten it")
            return None
        return value

    def line(self, node: yaml.Node, what: str) -> str | None:
        """Text of one line that can be shown in a terminal as it is."""
        value = self.text(node, what)
        if value is not None and not value.strip().isprintable():
            self.add(node, f"{what} has characters that can't be shown", "write one line of plain text")
            return None
        return value.strip() if value is not None else None

    def integer(self, node: yaml.Node, what: str, low: int, high: int) -> int | None:
        value = str(node.value) if isinstance(node, yaml.ScalarNode) and node.tag == _INT else ""
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", value):
            self.add(
                node, f"{what} must be a whole number, not {kind_of(node)}", f"write a number from {low} to {high}"
            )
            return None
        if not low <= int(value) <= high:
            self.add(node, f"{what} must be from {low} to {high}, not {value}", f"write a number from {low} to {high}")
            return None
        return int(value)

    def boolean(self, node: yaml.Node, what: str) -> bool:
        if isinstance(node, yaml.ScalarNode) and node.tag == _BOOL and node.value in ("true", "false"):
            return bool(node.value == "true")
        self.add(node, f"{what} must be true or false, not {kind_of(node)}", "write true or false")
        return False

    def choice(
        self, node: yaml.Node, what: str, words: Iterable[str], aka: Mapping[str, str] | None = None
    ) -> str | None:
        allowed = list(words)
        value = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if value in allowed and node.tag == _STR:
            return value
        given = shown(value) if isinstance(node, yaml.ScalarNode) else kind_of(node)
        self.add(node, f"{what} must be {_listed(allowed, 'or')}, not {given}", nearest(value, allowed, aka))
        return None

    def _decode(self, text: str | bytes) -> str | None:
        size = len(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        if size > SIZE_LIMIT:
            self.add(
                Place(1, 1), f"{size} bytes, and the limit is {SIZE_LIMIT}", "split it, or use wildcards and presets"
            )
            return None
        if isinstance(text, str):
            return text.removeprefix("\ufeff")
        try:
            return text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = text[: error.start].decode("utf-8", "replace")
            self.add(_place_in(before, len(before)), "not UTF-8", "save the file as UTF-8")
            return None

    def _syntax(self, text: str, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        place = _place(mark)
        lines = text.splitlines()
        line = lines[place.line - 1] if place.line <= len(lines) else ""
        problem = error.problem or error.context or "can't be read"
        if star := _UNQUOTED_STAR.search(line):
            column = star.start(1) + 1
            message = f"{star[1]} begins with a star, which means an alias in YAML"
            self.add(Place(place.line, column), message, f'put it in quotes: "{star[1]}"')
        elif "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
            self.add(place, "a tab in the indentation", "indent with spaces")
        elif "expected a single document" in (error.context or ""):
            self.add(place, "a second document begins here", "keep one policy to a file: take out the ---")
        else:
            self.add(place, f"not YAML: {problem}", "check the indentation, colons and quotes around this place")


Fields = dict[str, yaml.Node]


def place_of(node: yaml.Node) -> Place:
    return _place(node.start_mark)


def nearest(word: str, allowed: Iterable[str], aka: Mapping[str, str] | None = None) -> str:
    """What to write for ``word``: the nearest of ``allowed``, or all of them where none is near."""
    choices = list(allowed)
    lower = word.lower().strip()
    if aka and lower in aka:
        return f"write {aka[lower]}"
    close = difflib.get_close_matches(lower, choices, n=1, cutoff=0.5)
    if close:
        return f"write {close[0]}" if lower == close[0] else f"did you mean {close[0]}?"
    return f"write {_listed(choices, 'or')}"


def kind_of(node: yaml.Node) -> str:
    """What a person would call the value of ``node``."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return _KINDS.get(node.tag, "text") if node.value != "" else "nothing"


def shown(text: str) -> str:
    """``text`` so that no terminal or log is fooled by it."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _listed(words: list[str], joint: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {joint} {words[-1]}"


def _place(mark: Any) -> Place:
    return Place(1, 1) if mark is None else Place(mark.line + 1, mark.column + 1)


def _place_in(text: str, position: int) -> Place:
    before = text[:position]
    return Place(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
