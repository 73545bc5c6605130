"""``.ironcd/policy.yml`` and the organisation's policy: text in, `PolicyFile` out, or all that is wrong with it at once.

Both files have one format (``docs/reference/policy.md``); the organisation's has four keys more.  What is read here is
what one file says.  What then holds for a job is made from both files in `orchestrator.core.effective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import yaml

from orchestrator.core import policy_entries as entries
from orchestrator.core.effective import check_own_tests
from orchestrator.core.floor import floor_parts, is_liftable
from orchestrator.core.hazards import floor_problem, host_danger
from orchestrator.core.host_pattern import CoverIndex, overlaps
from orchestrator.core.policy import HTTPS, Action, Private
from orchestrator.core.policy_document import STARTER, Entry, PolicyFile, Scope
from orchestrator.core.presets import Presets
from orchestrator.core.yaml_text import Fields, Place, Reader, nearest, place_of, shown

KEYS = ("mode", "profile", "allow", "deny", "expect", "tests", "allow_ech")
ORG_KEYS = ("private", "repositories_may", "repository_file")
KEY_WORDS = {
    "allowlist": "allow",
    "allow-list": "allow",
    "allowed": "allow",
    "allowed-endpoints": "allow",
    "allowed_endpoints": "allow",
    "egress": "allow",
    "egress-policy": "mode",
    "block": "deny",
    "denylist": "deny",
    "known_blocked": "expect",
    "expected_blocks": "expect",
}
ENTRY_KEYS: dict[Action, tuple[str, ...]] = {
    "allow": ("host", "preset", "cidr", "ports", "comment", "acknowledge"),
    "deny": ("host", "cidr", "ports", "comment"),
    "expect": ("host", "comment"),
}
ENTRY_WORDS = {
    "hostname": "host",
    "domain": "host",
    "domains": "host",
    "name": "host",
    "ip": "cidr",
    "range": "cidr",
    "address": "cidr",
    "port": "ports",
    "group": "preset",
    "preset": "host",
    "reason": "comment",
}
MODE_WORDS = {"audit": "warn", "log": "warn", "report": "warn", "monitor": "warn", "block": "enforce", "on": "enforce"}


def read_policy(
    text: str | bytes,
    *,
    source: str,
    presets: Presets,
    scope: Scope = "repo",
    image_presets: Mapping[str, Sequence[str]] | None = None,
) -> PolicyFile:
    """Read the policy ``text``; ``source`` names it in errors (``.ironcd/policy.yml``).

    ``image_presets`` (preset name to host names) is what the image's package managers use; None where no image is at
    hand.  The file's tests are run against the file alone; those that only the image or the organisation's policy can
    make hold are left for `effective_policy`, and are in the warnings.  Raises `PolicyErrors` with everything that is wrong.
    """
    reader = Reader(source)
    root = reader.document(text)
    if root is None:
        if not reader.errors:
            reader.add(Place(1, 1), "there is nothing in it", f"begin with:\n{STARTER}")
        reader.finish()
        raise AssertionError("an error was added")
    file = _FileReader(reader, presets, scope).read(root)
    reader.finish()
    return check_own_tests(file, presets.builtin, image_presets)


class _FileReader:
    def __init__(self, reader: Reader, presets: Presets, scope: Scope) -> None:
        self.reader = reader
        self.presets = presets
        self.scope: Scope = scope
        self.warnings: list[str] = []
        self.private: tuple[Private, ...] = ()

    def read(self, root: yaml.Node) -> PolicyFile:
        fields = self.reader.mapping(root, (*KEYS, *ORG_KEYS), "a policy", KEY_WORDS)
        if self.scope == "repo":
            for key in ORG_KEYS:
                if key in fields:
                    message = f"{key} is for the organisation's policy, and this is a repository's"
                    self.reader.add(fields.pop(key), message, "ask who keeps the organisation's policy")
        if "private" in fields:
            self.private = self._private(fields["private"])
        lists = {
            action: self._entries(action, fields[action])
            for action in sorted(ENTRY_KEYS, key=lambda action: _line(fields, action))
            if action in fields
        }
        numbered = _numbered(lists)
        self._warn_about_pairs(numbered)
        return PolicyFile(
            source=self.reader.source,
            scope=self.scope,
            mode=self._choice(fields, "mode", ("enforce", "warn"), MODE_WORDS),
            profile=self._choice(fields, "profile", ("runner", "sandbox")),
            allow=numbered.get("allow"),
            deny=numbered.get("deny", ()),
            expect=numbered.get("expect", ()),
            private=self.private,
            tests=entries.tests_of(self.reader, fields.get("tests")),
            allow_ech="allow_ech" in fields and self.reader.boolean(fields["allow_ech"], "allow_ech"),
            repositories_may=self._choice(fields, "repositories_may", ("narrow", "widen")) or "narrow",
            repository_file=self._choice(fields, "repository_file", ("required", "optional")) or "required",
            places={key: (place_of(node).line, place_of(node).column) for key, node in fields.items()},
            warnings=tuple(self.warnings),
        )

    def _choice(self, fields: Fields, key: str, words: Sequence[str], aka: Mapping[str, str] | None = None) -> Any:
        return self.reader.choice(fields[key], key, words, aka) if key in fields else None

    def _entries(self, action: Action, node: yaml.Node) -> list[Entry]:
        items = self.reader.sequence(node, action)
        return [entry for item in items if (entry := self._entry(action, item)) is not None]

    def _entry(self, action: Action, node: yaml.Node) -> Entry | None:
        if isinstance(node, yaml.ScalarNode):
            self.reader.add(
                node, f"an entry of {action} is a mapping, not a bare word", self._as_mapping(str(node.value))
            )
            return None
        fields = self.reader.mapping(node, ENTRY_KEYS[action], f"an entry of {action}", self._entry_words(action))
        subject = [key for key in ("preset", "host", "cidr") if key in fields]
        if len(subject) != 1:
            if fields or (isinstance(node, yaml.MappingNode) and not node.value):
                said = " and ".join(subject) if subject else "none of them"
                wanted = [key for key in ENTRY_KEYS[action] if key in ("preset", "host", "cidr")]
                message = f"an entry has one of {', '.join(wanted)}; this one has {said}"
                self.reader.add(node, message, "write one entry for each")
            return None
        line, column = place_of(node)
        comment = (self.reader.line(fields["comment"], "comment") or "") if "comment" in fields else ""
        reason = (self.reader.line(fields["acknowledge"], "acknowledge") or "") if "acknowledge" in fields else ""
        if "ports" in fields and subject != ["cidr"]:
            message = f"a {subject[0]} rule has no ports: it is HTTPS on port 443"
            self.reader.add(fields["ports"], message, "take ports out; for another port write a cidr rule")
        made = Entry(number=0, action=action, line=line, column=column, comment=_with_reason(comment, reason))
        if subject == ["preset"]:
            return self._preset_entry(made, fields)
        if subject == ["host"]:
            return self._host_entry(made, fields, reason)
        return self._range_entry(made, fields)

    def _preset_entry(self, entry: Entry, fields: Fields) -> Entry | None:
        node = fields["preset"]
        name = self.reader.text(node, "preset")
        if name is None:
            return None
        preset = self.presets.by_name.get(name)
        if preset is None:
            remedy = nearest(name, self.presets.names, self.presets.aka)
            self.reader.add(
                node, f"there is no preset {shown(name)}", f"{remedy}; docs/reference/presets.md lists them"
            )
            return None
        if preset.builtin:
            self._warn(node, f"preset {name} is always in force; the entry changes nothing")
        return msgspec.structs.replace(entry, preset=preset)

    def _host_entry(self, entry: Entry, fields: Fields, reason: str) -> Entry | None:
        node = fields["host"]
        host = entries.host_of(self.reader, node)
        if host is None:
            return None
        if entry.action == "deny":
            self._keep_baseline(node, host)
        danger = host_danger(host, self.presets) if entry.action == "allow" else None
        if danger is None:
            if reason:
                self._warn(fields["acknowledge"], f"nothing about {host} needs an acknowledgement")
            return msgspec.structs.replace(entry, host=host)
        if danger.refused or "acknowledge" not in fields:
            self.reader.add(node, danger.why, danger.remedy)
            return None
        return msgspec.structs.replace(entry, host=host, multi_tenant=danger.multi_tenant)

    def _range_entry(self, entry: Entry, fields: Fields) -> Entry | None:
        node = fields["cidr"]
        cidr = entries.range_of(self.reader, node)
        # A deny without ports is about every port.
        default = () if entry.action == "deny" else HTTPS
        ports = entries.ports_of(self.reader, fields.get("ports"), default=default)
        if entry.action == "allow":
            entries.refuse_ports_that_stay_shut(self.reader, fields.get("ports"), ports)
        if cidr is None:
            return None
        if entry.action == "allow":
            self._check_floor(node, cidr)
        return msgspec.structs.replace(entry, cidr=cidr, ports=ports)

    def _check_floor(self, node: yaml.Node, cidr: str) -> None:
        net = entries.network(cidr)
        if self.scope == "repo" and is_liftable(net):
            return  # the organisation may have lifted it: `effective_policy` knows
        problem = floor_problem(cidr, tuple(private.cidr for private in self.private))
        if problem is not None:
            liftable = is_liftable(net)
            remedy = f"add private: [{{cidr: {cidr}, reason: ...}}] if it is needed" if liftable else "take it out"
            self.reader.add(node, problem, remedy)
        elif parts := [str(part) for part, _ in floor_parts(net) if not net.subnet_of(part)]:
            self._warn(node, f"of {cidr}, the floor keeps {', '.join(parts)} shut")

    def _private(self, node: yaml.Node) -> tuple[Private, ...]:
        found = []
        for item in self.reader.sequence(node, "private"):
            fields = self.reader.mapping(item, ("cidr", "reason"), "an entry of private", {"comment": "reason"})
            cidr = entries.range_of(self.reader, fields["cidr"]) if "cidr" in fields else None
            reason = self.reader.line(fields["reason"], "reason") if "reason" in fields else None
            for key in ("cidr", "reason"):
                if fields and key not in fields:
                    self.reader.add(item, f"an entry of private has a {key}", f"add {key}: ...")
            if cidr is not None and not is_liftable(entries.network(cidr)):
                message = f"{cidr} isn't a private range, so there is nothing to lift or nothing that may be lifted"
                self.reader.add(
                    fields["cidr"], message, "ranges of private and shared addresses only; allow: opens others"
                )
            elif cidr is not None and reason is not None:
                found.append(Private(cidr=cidr, reason=reason))
        return tuple(found)

    def _keep_baseline(self, node: yaml.Node, host: str) -> None:
        needed = next((e.host for e in self.presets.builtin.entries if e.host and overlaps(host, e.host)), None)
        if needed is not None:
            message = f"denying {host} would deny {needed}, which every runner needs"
            self.reader.add(node, message, "deny a narrower pattern; what isn't allowed is blocked without a deny")

    def _warn_about_pairs(self, lists: Mapping[Action, tuple[Entry, ...]]) -> None:
        denied = _index(lists.get("deny", ()))
        for entry in lists.get("allow", ()):
            if by := next(denied.covering(entry.host), None):
                self._warn_at(entry, f"{entry.host} is never allowed: line {by.line} denies it")
        allowed = _index(lists.get("allow", ()))
        for entry in lists.get("expect", ()):
            if by := next(allowed.covering(entry.host), None):
                self._warn_at(entry, f"{entry.host} is expected to be blocked, and line {by.line} allows it")

    def _as_mapping(self, word: str) -> str:
        preset = self.presets.aka.get(word, word)
        if preset in self.presets.by_name:
            return f"write preset: {preset}"
        key = "cidr" if "/" in word and "://" not in word and word[:1].isdigit() else "host"
        return f'write {key}: "{word}"' if word.isascii() and word.isprintable() else "write host: NAME"

    def _entry_words(self, action: Action) -> dict[str, str]:
        keys = ENTRY_KEYS[action]
        return {word: ours for word, ours in ENTRY_WORDS.items() if ours in keys and word not in keys}

    def _warn(self, node: yaml.Node, message: str) -> None:
        line, column = place_of(node)
        self.warnings.append(f"{self.reader.source}:{line}:{column}: {message}")

    def _warn_at(self, entry: Entry, message: str) -> None:
        self.warnings.append(f"{self.reader.source}:{entry.line}:{entry.column}: {message}")


def _index(found: Sequence[Entry]) -> CoverIndex[Entry]:
    return CoverIndex((entry.host, entry) for entry in found if entry.host)


def _numbered(lists: Mapping[Action, list[Entry]]) -> dict[Action, tuple[Entry, ...]]:
    """Each entry with its number; ``lists`` are in the order of the file."""
    number = 0
    numbered: dict[Action, tuple[Entry, ...]] = {}
    for action, found in lists.items():
        numbered[action] = tuple(
            msgspec.structs.replace(entry, number=number + place) for place, entry in enumerate(found, start=1)
        )
        number += len(found)
    return numbered


def _line(fields: Fields, key: str) -> int:
    return place_of(fields[key]).line if key in fields else 0


def _with_reason(comment: str, reason: str) -> str:
    return "; ".join(part for part in (comment, f"acknowledged: {reason}" if reason else "") if part)
