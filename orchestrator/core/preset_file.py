"""Preset and hazard files: our own data, read as strictly as a stranger's policy, since every policy leans on them."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.core import policy_entries as entries
from orchestrator.core.presets import Hazard, Preset, PresetEntry
from orchestrator.core.yaml_text import Place, Reader

PRESET_KEYS = ("name", "version", "description", "builtin", "from_image", "aka", "source", "entries", "tests")
ENTRY_KEYS = ("host", "cidr", "ports", "source", "comment", "multi_tenant", "verified")
HAZARD_KEYS = ("host", "kind", "why")


def read_preset(text: str | bytes, *, source: str) -> Preset:
    """The preset in ``text``.  ``source:`` at the top stands for entries that have none of their own.

    Raises `PolicyErrors` with everything that is wrong.
    """
    reader = Reader(source)
    fields = reader.mapping(_root(reader, text), PRESET_KEYS, "a preset")
    for key in ("name", "version", "description", "entries"):
        if fields and key not in fields:
            reader.add(Place(1, 1), f"a preset has {key}", f"add {key}:")
    reader.finish()
    from_image = "from_image" in fields and reader.boolean(fields["from_image"], "from_image")
    shared = reader.line(fields["source"], "source") if "source" in fields else None
    items = reader.sequence(fields["entries"], "entries")
    found = tuple(entry for item in items if (entry := _entry(reader, item, shared)) is not None)
    preset = Preset(
        name=reader.line(fields["name"], "name") or "",
        version=reader.integer(fields["version"], "version", 1, 999) or 0,
        description=reader.line(fields["description"], "description") or "",
        entries=found,
        tests=entries.tests_of(reader, fields.get("tests")),
        builtin="builtin" in fields and reader.boolean(fields["builtin"], "builtin"),
        from_image=from_image,
        aka=_words(reader, fields.get("aka")),
    )
    if not found and not from_image:
        reader.add(fields["entries"], "a preset has entries", "add one")
    reader.finish()
    return preset


def read_hazards(text: str | bytes, *, source: str) -> tuple[Hazard, ...]:
    """The list of `Hazard` in ``text``.  Raises `PolicyErrors`."""
    reader = Reader(source)
    found = []
    for item in reader.sequence(_root(reader, text), "hazards"):
        fields = reader.mapping(item, HAZARD_KEYS, "a hazard")
        if set(fields) != set(HAZARD_KEYS):
            reader.add(item, "a hazard has host, kind and why", "add what is missing")
            continue
        host = entries.host_of(reader, fields["host"])
        kind: Any = reader.choice(fields["kind"], "kind", ("doh", "tunnel", "drop", "multi_tenant"))
        why = reader.line(fields["why"], "why")
        if host and kind and why:
            found.append(Hazard(host=host, kind=kind, why=why))
    reader.finish()
    return tuple(found)


def _root(reader: Reader, text: str | bytes) -> yaml.Node:
    root = reader.document(text)
    if root is None:
        if not reader.errors:
            reader.add(Place(1, 1), "there is nothing in it", "restore it from the release")
        reader.finish()
        raise AssertionError("an error was added")
    return root


def _entry(reader: Reader, node: yaml.Node, shared: str | None) -> PresetEntry | None:
    fields = reader.mapping(node, ENTRY_KEYS, "an entry of a preset")
    if ("host" in fields) == ("cidr" in fields):
        reader.add(node, "an entry has one of host and cidr", "write one entry for each")
        return None
    source = reader.line(fields["source"], "source") if "source" in fields else shared
    if source is None:
        reader.add(node, "an entry has a source", "add source: the page or document that names the host")
        return None
    host = entries.host_of(reader, fields["host"]) if "host" in fields else ""
    cidr = entries.range_of(reader, fields["cidr"]) if "cidr" in fields else ""
    if host is None or cidr is None:
        return None
    return PresetEntry(
        source=source,
        host=host,
        cidr=cidr,
        ports=entries.ports_of(reader, fields.get("ports")),
        comment=(reader.line(fields["comment"], "comment") or "") if "comment" in fields else "",
        multi_tenant="multi_tenant" in fields and reader.boolean(fields["multi_tenant"], "multi_tenant"),
        verified="verified" not in fields or reader.boolean(fields["verified"], "verified"),
    )


def _words(reader: Reader, node: yaml.Node | None) -> tuple[str, ...]:
    if node is None:
        return ()
    return tuple(word for item in reader.sequence(node, "aka") if (word := reader.line(item, "a word of aka")))
