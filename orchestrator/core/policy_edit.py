"""Changing a policy file as a person would: one place is edited, and comments, order and layout stay as they are.

Text in, text out.  Where an edit goes is found with the marks of YAML's own parser, never by looking for words.  Whoever
edits reads the result with `read_policy` before it is written, and then has `changed_as_meant` compare the two: a
layout that an edit doesn't understand is refused, and no file is left half right.
"""

from __future__ import annotations

import json
import re

import msgspec
import yaml

from orchestrator.core.errors import UserError
from orchestrator.core.policy import Action, Mode
from orchestrator.core.policy_document import Entry, PolicyFile
from orchestrator.core.yaml_text import Reader

LISTS: tuple[Action, ...] = ("allow", "deny", "expect")

_PLAIN = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 ._/()'+-]*")
_BOM = "\ufeff"


class NewEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry to write: exactly one of ``preset``, ``host`` and ``cidr`` is set.  ``ports`` empty: none are written."""

    action: Action = "allow"
    preset: str = ""
    host: str = ""
    cidr: str = ""
    ports: tuple[int, ...] = ()
    comment: str = ""
    acknowledge: str = ""

    @property
    def subject(self) -> str:
        return f"preset {self.preset}" if self.preset else self.host or self.cidr


def with_mode(text: str, mode: Mode) -> str:
    """``text`` with ``mode: MODE``.  Raises UserError for a layout that can't be edited."""
    text, bom = _without_bom(text)
    root = _root(text)
    if root is None:
        return bom + text + _line_end(text) + f"mode: {mode}\n"
    value = _value(root, "mode")
    if value is not None:
        start, end = _span(value)
        return bom + text[:start] + mode + text[end:]
    if root.flow_style:
        return bom + _into_flow_mapping(text, root, f"mode: {mode}")
    at = _start(root)
    return bom + text[:at] + f"mode: {mode}" + _newline(text) + " " * _column(text, at) + text[at:]


def with_entry(text: str, entry: NewEntry) -> str:
    """``text`` with ``entry`` as the last of its list.  Raises UserError for a layout that can't be edited."""
    text, bom = _without_bom(text)
    root = _root(text)
    written = entry_text(entry)
    if root is None:
        return bom + text + _line_end(text) + f"{entry.action}:\n  - {written}\n"
    found = _value(root, entry.action)
    if found is None:
        if root.flow_style:
            return bom + _into_flow_mapping(text, root, f"{entry.action}: [{written}]")
        indent, newline = " " * _column(text, _start(root)), _newline(text)
        added = f"{indent}{entry.action}:{newline}{indent}  - {written}{newline}"
        return bom + text + _line_end(text) + added
    if not isinstance(found, yaml.SequenceNode):
        raise _layout()
    return bom + _into_list(text, root, found, entry.action, written)


def without_entry(text: str, number: int) -> str:
    """``text`` without entry ``number`` (counted as in a rule's id).  Raises UserError."""
    text, bom = _without_bom(text)
    root = _root(text)
    for key, found in _lists(root):
        if number <= len(found.value):
            return bom + _out_of_list(text, key, found, number - 1)
        number -= len(found.value)
    raise UserError(
        "the file has no such entry",
        code="rule-unknown",
        remedy="`ironcd egress list` shows the entries with their ids.",
    )


def changed_as_meant(
    before: PolicyFile,
    after: PolicyFile,
    *,
    added: NewEntry | None = None,
    removed: int = 0,
    mode: Mode | None = None,
) -> None:
    """Raises UserError where the edit did anything beside what was asked."""
    expected = [_said(entry) for entry in _entries(before) if entry.number != removed]
    found = [_said(entry) for entry in _entries(after)]
    if added is not None:
        new = [said for said in found if said not in expected]
        if len(new) != 1 or new[0][:2] != (added.action, added.preset):
            raise _layout()
        expected += new
    same = ("profile", "private", "allow_ech", "repositories_may", "repository_file")
    kept = all(getattr(before, key) == getattr(after, key) for key in same) and _tests(before) == _tests(after)
    if not kept or sorted(found) != sorted(expected) or after.mode != (mode or before.mode):
        raise _layout()


def entry_text(entry: NewEntry) -> str:
    """The entry as YAML on one line: ``{host: api.example.com, comment: why}``."""
    parts = [f"{key}: {quoted(value)}" for key in ("preset", "host", "cidr") if (value := getattr(entry, key))]
    if entry.ports:
        parts.append(f"ports: [{', '.join(map(str, entry.ports))}]")
    parts += [f"{key}: {quoted(value)}" for key in ("comment", "acknowledge") if (value := getattr(entry, key))]
    return "{" + ", ".join(parts) + "}"


def quoted(value: str) -> str:
    """``value`` as a YAML scalar that is read as this very text, in quotes only where they are needed."""
    if _PLAIN.fullmatch(value) and not value.endswith(" "):
        tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
        if tag == "tag:yaml.org,2002:str":
            return value
    return json.dumps(value, ensure_ascii=False)


def _root(text: str) -> yaml.MappingNode | None:
    reader = Reader("the policy")
    root = reader.document(text)
    reader.finish()
    if root is None or isinstance(root, yaml.MappingNode):
        return root
    raise _layout()


def _value(root: yaml.MappingNode, key: str) -> yaml.Node | None:
    value: yaml.Node | None = next((value for name, value in root.value if name.value == key), None)
    return value


def _lists(root: yaml.MappingNode | None) -> list[tuple[yaml.Node, yaml.SequenceNode]]:
    """Keys and lists of entries in the order in which `read_policy` numbers them: by line, then as in `LISTS`."""
    pairs = root.value if root is not None else []
    lists = [(key, found) for key, found in pairs if key.value in LISTS and isinstance(found, yaml.SequenceNode)]
    return sorted(lists, key=lambda pair: (pair[1].start_mark.line, LISTS.index(pair[0].value)))


def _into_list(text: str, root: yaml.MappingNode, found: yaml.SequenceNode, key: str, written: str) -> str:
    if found.flow_style and found.value:
        at = _end(found.value[-1])
        return text[:at] + f", {written}" + text[at:]
    if found.flow_style and not root.flow_style:
        # An empty list in brackets becomes one of lines: what is added next stands below it.
        key_at = next(_start(name) for name, _ in root.value if name.value == key)
        start, end = _span(found)
        if text[start:end].replace(" ", "") == "[]":
            stop = _line_stop(text, end)
            item = _newline(text) + " " * (_column(text, key_at) + 2) + f"- {written}"
            return text[:start].rstrip(" ") + text[end:stop] + item + text[stop:]
    if found.flow_style:
        at = _start(found) + 1
        return text[:at] + written + text[at:]
    stop = _line_stop(text, _end(found.value[-1]))
    return text[:stop] + _newline(text) + " " * _column(text, _start(found)) + f"- {written}" + text[stop:]


def _out_of_list(text: str, key: yaml.Node, found: yaml.SequenceNode, place: int) -> str:
    item = found.value[place]
    start, end = _start(item), _end(item)
    if found.flow_style:
        after = re.compile(r"\s*,[ \t]*").match(text, end)
        if after:
            return text[:start] + text[after.end() :]
        return text[:start].rstrip().removesuffix(",") + text[end:]
    dash = text.rindex("-", 0, start)
    begin, stop = text.rfind("\n", 0, dash) + 1, _line_stop(text, end)
    rest = text[end:stop].strip()
    if text[begin:dash].strip() or (rest and not rest.startswith("#")):
        raise _layout()
    following = stop + len(_newline(text)) if text.startswith(_newline(text), stop) else stop
    if len(found.value) == 1:
        # A key with nothing below it would be nothing at all: the empty list is said.
        colon = text.index(":", _end(key))
        return text[: colon + 1] + " []" + text[colon + 1 : begin] + text[following:]
    return text[:begin] + text[following:]


def _into_flow_mapping(text: str, root: yaml.MappingNode, written: str) -> str:
    at = _start(root) + 1
    return text[:at] + written + (", " if root.value else "") + text[at:]


def _start(node: yaml.Node) -> int:
    return int(node.start_mark.index)


def _span(node: yaml.Node) -> tuple[int, int]:
    return _start(node), _end(node)


def _end(node: yaml.Node) -> int:
    """Where the node's own text ends.  PyYAML's mark of a block's end stands after the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _line_stop(text: str, at: int) -> int:
    """The end of the line that ``at`` is in, before its line break."""
    stop = text.find("\n", at)
    stop = len(text) if stop < 0 else stop
    return stop - 1 if text[at:stop].endswith("\r") else stop


def _column(text: str, at: int) -> int:
    return at - (text.rfind("\n", 0, at) + 1)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_end(text: str) -> str:
    return "" if not text or text.endswith("\n") else _newline(text)


def _without_bom(text: str) -> tuple[str, str]:
    return (text[1:], _BOM) if text.startswith(_BOM) else (text, "")


def _entries(file: PolicyFile) -> tuple[Entry, ...]:
    return (*(file.allow or ()), *file.deny, *file.expect)


def _said(entry: Entry) -> tuple[str, ...]:
    preset = entry.preset.name if entry.preset else ""
    return (entry.action, preset, entry.host, entry.cidr, ",".join(map(str, entry.ports)), entry.comment)


def _tests(file: PolicyFile) -> list[tuple[str, str, str, int]]:
    return [(test.expect, test.host, test.address, test.port) for test in file.tests]


def _layout() -> UserError:
    return UserError(
        "the file's layout is one that can't be edited without a person",
        code="policy-layout",
        remedy="Edit the file by hand, and look at it with `ironcd egress check`.",
    )
