"""A file of faults (YAML): what goes wrong when, how often, for how long and where.

    faults:
      - fault: outage
        in: 2m
        for: 5m
      - fault: delivery-late
        by: 3m
        count: 4
        repository: acme/app

Read as strictly as a policy: a mistake has its line, its column and the nearest word.
"""

from __future__ import annotations

import re

import yaml

from orchestrator.core.yaml_text import Place, Reader, shown
from orchestrator.simulator.github.catalogue import CATALOGUE, Order

KEYS = ("fault", "in", "for", "count", "chance", "by", "repository")
WORDS = {"name": "fault", "after": "in", "start": "in", "duration": "for", "times": "count", "often": "count"}
WORDS |= {"repo": "repository", "where": "repository", "probability": "chance", "delay": "by", "late": "by"}
LONGEST_S = 86_400.0
_DURATION = re.compile(r"(\d{1,6})(s|m|h)?")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float | None:
    """``90``, ``90s``, ``5m``, ``1h`` in seconds, a day at most; None for anything else."""
    match = _DURATION.fullmatch(text.strip())
    found = float(int(match[1]) * _UNITS[match[2] or ""]) if match else None
    return found if found is not None and found <= LONGEST_S else None


def read_faults(text: str | bytes, *, source: str) -> list[Order]:
    """The faults in ``text``; ``source`` names it in errors.  Raises `PolicyErrors` with all that is wrong."""
    reader = Reader(source)
    root = reader.document(text)
    orders: list[Order] = []
    if root is None:
        if not reader.errors:
            reader.add(Place(1, 1), "there is nothing in it", "begin with:\nfaults:\n  - fault: outage\n    for: 5m")
    else:
        fields = reader.mapping(root, ("faults",), "a file of faults")
        if "faults" in fields:
            entries = reader.sequence(fields["faults"], "faults")
            orders = [order for entry in entries if (order := _order(reader, entry)) is not None]
        elif not reader.errors:
            reader.add(root, "it has no faults", "write faults: and a list")
    reader.finish()
    return orders


def _order(reader: Reader, node: yaml.Node) -> Order | None:
    fields = reader.mapping(node, KEYS, "a fault", WORDS)
    if "fault" not in fields:
        reader.add(node, "it names no fault", "write fault: and a name out of `ironcd simulate faults list`")
        return None
    name = reader.choice(fields["fault"], "fault", CATALOGUE)
    lasts = _seconds(reader, fields.get("for"), "for")
    count = reader.integer(fields["count"], "count", 1, 100_000) if "count" in fields else None
    return Order(
        fault=name or "",
        in_s=_seconds(reader, fields.get("in"), "in") or 0.0,
        for_s=lasts,
        count=count,
        chance=_chance(reader, fields.get("chance")),
        by_s=_seconds(reader, fields.get("by"), "by") or 0.0,
        repository=_repository(reader, fields.get("repository")),
    )


def _seconds(reader: Reader, node: yaml.Node | None, what: str) -> float | None:
    if node is None:
        return None
    found = seconds_of(str(node.value)) if isinstance(node, yaml.ScalarNode) else None
    if found is None:
        reader.add(node, f"{what} must be a time, not {_shown(node)}", "write 90s, 5m or 1h, a day at most")
    return found


def _chance(reader: Reader, node: yaml.Node | None) -> float:
    if node is None:
        return 1.0
    text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
    if not re.fullmatch(r"0?\.\d{1,4}|1(\.0+)?|100 ?%|\d{1,2} ?%", text):
        reader.add(node, f"chance must be a share, not {_shown(node)}", "write 0.2 or 20%")
        return 1.0
    return float(text.rstrip(" %")) / 100 if "%" in text else float(text)


def _repository(reader: Reader, node: yaml.Node | None) -> str:
    if node is None:
        return ""
    text = reader.line(node, "repository") or ""
    if text and not re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", text):
        reader.add(node, f"repository must be owner/name, not {shown(text)}", "write acme/app")
    return text


def _shown(node: yaml.Node) -> str:
    return shown(str(node.value)) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
