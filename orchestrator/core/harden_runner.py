"""Workflows that use harden-runner, read for the endpoints that they allow, and those written as a policy of ours.

Theirs is a list of ``host:port`` for each job, enforced inside the runner; ours is one for the repository, of hosts on port
443 and of address ranges with ports.  What has no counterpart is told line by line, and stands in the policy as a comment:

- a port other than 443 on a name can't be told from any other service on that address, so it takes a ``cidr`` entry;
- ``*.x`` is one label below x here;
- a dangerous host is commented out until somebody gives a reason;
- what every runner needs is always allowed and isn't written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import NamedTuple

import msgspec
import yaml

from orchestrator.core.errors import UserError
from orchestrator.core.hazards import RangeProblem, floor_problem, host_danger, read_range
from orchestrator.core.host_pattern import CoverIndex, HostProblem, read_host
from orchestrator.core.policy import Mode
from orchestrator.core.policy_edit import NewEntry, entry_text
from orchestrator.core.policy_entries import NEVER_OPEN
from orchestrator.core.presets import Presets

ACTION = "step-security/harden-runner"
SIZE_LIMIT = 1 << 20
_SAID = {
    "disable-sudo": "the wall is outside the machine, so root in it can't lift it; sudo stays as the image has it",
    "disable-sudo-and-containers": "the wall is outside the machine, so neither root nor containers in it can lift it",
    "disable-file-monitoring": "files aren't watched here",
    "disable-telemetry": "nothing is told to anybody else here",
    "api-key": "it is for their service",
    "deploy-on-self-hosted-vm": "the wall is there without a step of the workflow",
}
"""Options that say nothing about endpoints, each with what is so here."""
_IPV6 = re.compile(r"\[?[0-9a-fA-F.]*:[0-9a-fA-F.:]*\]?")
_PORT = re.compile(r"(?P<host>.*?)(?::(?P<port>[0-9]{1,5}))?")


class Step(msgspec.Struct, frozen=True):
    """One use of their action.  ``source`` is ``file:line``."""

    source: str
    job: str
    policy: str
    """``block``, ``audit``, or what else was written."""
    endpoints: tuple[str, ...]
    unread: tuple[str, ...] = ()
    """What can't be read from the file: expressions, and policies kept in their service."""
    options: tuple[str, ...] = ()
    """Those that are set and say nothing about endpoints."""


class Imported(msgspec.Struct, frozen=True):
    mode: Mode
    steps: tuple[Step, ...]
    entries: tuple[NewEntry, ...]
    builtin: tuple[str, ...]
    """Endpoints that are always in force."""
    refused: tuple[tuple[str, str], ...]
    """Endpoint and why it isn't in the policy, or only as a comment."""
    notes: tuple[str, ...]

    def policy(self) -> str:
        """The policy file."""
        lines = [f"# From {', '.join(dict.fromkeys(_shown(step.source) for step in self.steps))}."]
        lines += [f"# {note}" for note in self.notes]
        if self.builtin:
            lines.append(f"# Always in force, and not written here: {', '.join(self.builtin)}.")
        lines += [f"mode: {self.mode}", "allow:" if self.entries else "allow: []"]
        lines += [f"  - {entry_text(entry)}" for entry in self.entries]
        if self.refused:
            lines.append("# Not taken over:")
            lines += [f"#   {_shown(endpoint)}: {_shown(why)}" for endpoint, why in self.refused]
        return "\n".join(lines) + "\n"


class _Read(NamedTuple):
    entry: NewEntry | None
    why: str = ""
    note: str = ""


def read_workflow(text: str, source: str) -> tuple[Step, ...]:
    """Each use of harden-runner in a workflow, or in a composite action.  Raises UserError for what isn't YAML."""
    if len(text) > SIZE_LIMIT:
        raise _not_a_workflow(f"{source} is larger than {SIZE_LIMIT >> 20} MiB")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
        raise _not_a_workflow(f"{source}{place} isn't YAML") from error
    found = []
    for job, body in [*_items(_at(root, "jobs")), ("", _at(root, "runs"))]:
        steps = _at(body, "steps")
        nodes = steps.value if isinstance(steps, yaml.SequenceNode) else ()
        found += [_step(node, job, source) for node in nodes if _uses(node) == ACTION]
    return tuple(found)


def as_policy(steps: tuple[Step, ...], presets: Presets) -> Imported:
    """One policy for all ``steps``: every endpoint that any of them allows."""
    baseline = CoverIndex((entry.host, entry) for entry in presets.builtin.entries if entry.host)
    entries: dict[tuple[str, str], NewEntry] = {}
    builtin: dict[str, None] = {}
    refused: dict[str, str] = {}
    notes: dict[str, None] = {}
    for endpoint in dict.fromkeys(endpoint for step in steps for endpoint in step.endpoints):
        read = _read(endpoint, presets)
        if read.note:
            notes[read.note] = None
        if read.entry is None:
            refused[endpoint] = read.why
        elif read.entry.host and next(baseline.covering(read.entry.host), None) is not None:
            builtin[read.entry.host] = None
        else:
            _merge(entries, read.entry)
    for option in dict.fromkeys(option for step in steps for option in step.options):
        notes[f"{option} has no counterpart: {_SAID[option]}."] = None
    for step in steps:
        refused |= dict.fromkeys(step.unread, f"can't be read from {step.source}")
    return Imported(
        mode=_mode(steps, notes),
        steps=steps,
        entries=tuple(entries.values()),
        builtin=tuple(builtin),
        refused=tuple(refused.items()),
        notes=tuple(notes),
    )


def _uses(node: yaml.Node) -> str:
    return _text(_at(node, "uses")).partition("@")[0].strip().lower()


def _step(node: yaml.Node, job: str, source: str) -> Step:
    given = _at(node, "with")
    words = _text(_at(given, "allowed-endpoints"))
    unread = [word.strip() for word in re.findall(r"\$\{\{.*?\}\}\S*", words, re.DOTALL)]
    for key in ("policy", "use-policy-store"):
        value = _text(_at(given, key))
        if value and value.lower() != "false":
            unread.append(f"{key}: {value}, kept in their service")
    words = re.sub(r"\S*\$\{\{.*?\}\}\S*", " ", words, flags=re.DOTALL)
    endpoints = re.split(r"[\s,]+", re.sub(r"(^|\s)#.*", " ", words))
    mode = _text(_at(given, "egress-policy")).strip().lower()
    if "${{" in mode:
        unread.append(f"egress-policy: {mode}")
    return Step(
        source=f"{source}:{node.start_mark.line + 1}",
        job=job,
        policy=mode or "audit",
        endpoints=tuple(endpoint for endpoint in endpoints if endpoint),
        unread=tuple(unread),
        options=tuple(
            key for key, value in _items(given) if key in _SAID and _text(value).lower() not in ("", "false")
        ),
    )


def _read(endpoint: str, presets: Presets) -> _Read:
    parts = _PORT.fullmatch(endpoint)
    host, port = (parts["host"], int(parts["port"] or 443)) if parts else (endpoint, 443)
    if not 0 < port < 65536:
        return _Read(None, f"{port} is no port")
    if _IPV6.fullmatch(host):
        return _Read(None, "IPv6 has no use here: VMs speak IPv4 only")
    try:
        return _range(str(IPv4Network(host, strict=False)), port)
    except ValueError:
        return _Read(None, NEVER_OPEN[port]) if port in NEVER_OPEN else _name(host, port, presets)


def _name(host: str, port: int, presets: Presets) -> _Read:
    try:
        pattern = read_host(host)
    except HostProblem as problem:
        return _Read(None, f"{problem.message}; {problem.remedy}")
    if port != 443:
        return _Read(None, _other_port(pattern, port))
    danger = host_danger(pattern, presets)
    if danger is not None:
        entry = NewEntry(host=pattern, acknowledge="REASON")
        again = "" if danger.refused else f"; to allow it all the same: - {entry_text(entry)}"
        return _Read(None, danger.why + again)
    note = "A star is one label here (*.x); write **.x where deeper names are needed." if pattern[0] == "*" else ""
    return _Read(NewEntry(host=pattern), note=note)


def _range(cidr: str, port: int) -> _Read:
    try:
        cidr = read_range(cidr)
    except RangeProblem as problem:
        return _Read(None, f"{problem.message}; {problem.remedy}")
    why = floor_problem(cidr, ()) or NEVER_OPEN.get(port, "")
    return _Read(None, why) if why else _Read(NewEntry(cidr=cidr, ports=() if port == 443 else (port,)))


def _other_port(host: str, port: int) -> str:
    if host == "github.com" and port == 22:
        return "git over SSH goes to GitHub's addresses: - {preset: github-ssh}"
    return f"a name is HTTPS on port 443 here; port {port} takes its addresses: - {{cidr: ADDRESS/32, ports: [{port}]}}"


def _merge(entries: dict[tuple[str, str], NewEntry], entry: NewEntry) -> None:
    """The ports of one range stand in one entry."""
    known = entries.get((entry.host, entry.cidr))
    if known is None or not entry.cidr:
        entries[entry.host, entry.cidr] = known or entry
        return
    ports = {*(known.ports or (443,)), *(entry.ports or (443,))}
    entries[entry.host, entry.cidr] = msgspec.structs.replace(
        known, ports=() if ports == {443} else tuple(sorted(ports))
    )


def _mode(steps: tuple[Step, ...], notes: dict[str, None]) -> Mode:
    said = {step.policy for step in steps if "${{" not in step.policy}
    if len(said) < len({step.policy for step in steps}):
        notes["Which mode some jobs have can't be read, so this one warns."] = None
        return "warn"
    if said == {"block"}:
        return "enforce"
    if "block" in said:
        notes["Some jobs were blocked and some only audited; here one mode holds for all."] = None
    return "warn"


def _items(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node | None]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield _text(key), value


def _at(node: yaml.Node | None, key: str) -> yaml.Node | None:
    return next((value for name, value in _items(node) if name == key), None)


def _text(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _shown(text: str) -> str:
    """On one line, whatever is in it."""
    line = " ".join(text.split())
    return line if line.isprintable() and len(line) <= 400 else ascii(line[:400])


def _not_a_workflow(what: str) -> UserError:
    return UserError(what, code="workflow-unreadable", remedy="Name a workflow, as .github/workflows/ci.yml.")
