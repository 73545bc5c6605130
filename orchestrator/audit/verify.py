"""Verifies ledgers: every line against its neighbours, the tree against every checkpoint, every checkpoint against the key.

It reads files only, so it can be run on a copy, by somebody who trusts neither host nor control plane: what it needs to be
sure of is the host's public key, and to see what was cut off or written anew everywhere, checkpoints that were kept
elsewhere (``against``, see `orchestrator.audit.copies`).  Roots over the same leaves are computed one after another, so any two checkpoints that pass are consistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator.audit import checkpoints as kept_checkpoints
from orchestrator.audit import copies, days
from orchestrator.audit.engine import Engine
from orchestrator.audit.findings import Finding, Report
from orchestrator.audit.ledger import gaps_of
from orchestrator.audit.notes import BadNote, Key, Note, parse_key, parse_note, verify
from orchestrator.audit.streams import about, host_of, streams
from orchestrator.audit.walk import Walk
from orchestrator.core.merkle import Frontier

UNSIGNED_S = 900.0
"""A gateway signs each minute; records that waited for so long were meant to be signed."""


class Start(msgspec.Struct, frozen=True):
    """Where the tree stood before a day's first line.  It needn't be trusted: with a wrong one no checkpoint fits."""

    size: int
    prev: str
    nodes: tuple[str, ...]


class Signed(msgspec.Struct, frozen=True):
    note: Note
    file: str
    line: int


class Ask(msgspec.Struct, frozen=True):
    """``since`` is a day (``2026-01-31``) or empty; ``keys`` are the hosts' trusted public keys, where any are known."""

    since: str = ""
    keys: Mapping[str, Sequence[str]] = {}
    cutoff: float = 0.0
    """Records that are younger may not have been deleted: now less the shortest time that records are kept."""
    against: tuple[Path, ...] = ()
    """Checkpoints that were kept elsewhere: files in the form of ``checkpoints.jsonl``, and folders of copies."""
    fresh_since: float = 0.0
    """A ledger that was begun later needn't have a copy of a checkpoint yet."""


def verify_all(folder: Path, ask: Ask, *, host: str = "", engine: Engine | None = None) -> list[Report]:
    """A report for each ledger in ``folder``, which is the control plane's record, or one host's own ledger."""
    if days.days(folder):
        return [verify_ledger(folder, ask)]
    there = streams(folder, host)
    return [*(verify_ledger(folder / name, ask, engine) for name in there), *_lost(there, ask, host)]


def _lost(there: Sequence[str], ask: Ask, host: str) -> list[Report]:
    """A report for each ledger that isn't in the record any more, and that there are copies of."""
    known = {name: path for path in ask.against if path.is_dir() for name in copies.ledgers(path)}
    reports = []
    for name in sorted(known.keys() - set(there)):
        if not host or host_of(name) == host:
            text = f"{known[name]} has checkpoints of this ledger, and the record has none of its records"
            report = Report(name, host_of(name), findings=[Finding("cut-off", text, str(known[name] / name))])
            reports.append(report)
    return reports


def verify_ledger(folder: Path, ask: Ask, engine: Engine | None = None) -> Report:
    """The report of the ledger in ``folder``.  With an engine its files are held against the lines too."""
    known = about(folder)
    key = known.key or _own_key(folder)
    host = host_of(folder.name) if known.key or not key else key.partition("+")[0].removeprefix("ironcd/")
    report = Report(folder.name, host, key, findings=[], notes=[])
    signed = _checkpoints(folder, ask, report)
    read = [day for day in days.days(folder) if day >= ask.since]
    start = _start(folder, read, report) if ask.since else Start(0, "", ())
    if start.size == 0:
        read = days.days(folder)
    _judge_key(report, signed, ask)
    walk = _walk(folder, read, start, signed, cutoff=ask.cutoff, report=report)
    _judge_end(walk, signed, ask, report)
    if engine is not None:
        _judge_index(folder, read, engine, report)
    return report


def _judge_index(folder: Path, read: Iterable[str], engine: Engine, report: Report) -> None:
    """Searching must not say another thing than the lines that were verified."""
    import duckdb

    for day in read:
        sealed, parquet = days.sealed_file(folder, day), days.parquet_file(folder, day)
        if not (sealed.exists() and parquet.exists()):
            continue
        try:
            agrees = engine.agrees(sealed, parquet)
        except duckdb.Error:
            agrees = False
        if not agrees:
            text = "the search engine's file isn't what the lines say; remove it, and it is made again"
            report.findings.append(Finding("index", text, str(parquet)))


def _walk(
    folder: Path,
    read: Iterable[str],
    start: Start,
    signed: Mapping[int, list[Signed]],
    *,
    cutoff: float,
    report: Report,
) -> Walk:
    wrong: list[int] = []

    def grown(size: int, root: bytes) -> None:
        if all(one.note.root == root for one in signed[size]):
            report.checkpoints += len(signed[size])
            report.signed = size
        else:
            wrong.append(size)

    tree = Frontier(start.size, tuple(bytes.fromhex(node) for node in start.nodes))
    stops, gaps = set(signed), [(gap.first, gap.last) for gap in gaps_of(folder.parent, folder.name)]
    walk = Walk(report, tree, start.prev, stops=stops, grown=grown, cutoff=cutoff, gaps=gaps)
    for day in read:
        for line in days.placed(folder, day):
            walk.take(line)
    walk.end()
    if wrong:
        _tell_wrong(report, wrong, signed)
    return walk


def _tell_wrong(report: Report, wrong: list[int], signed: Mapping[int, list[Signed]]) -> None:
    """The first checkpoint that doesn't fit: behind it none can."""
    good = max((size for size in signed if size < wrong[0] and size <= report.signed), default=0)
    one = signed[wrong[0]][0]
    text = (
        f"the host signed another root over {wrong[0]} records: record {wrong[0]}, or all from one of "
        f"{good + 1} to {wrong[0]} on, were written anew"
    )
    report.findings.append(Finding("rewritten", text, one.file, one.line, good + 1, wrong[0]))


def _checkpoints(folder: Path, ask: Ask, report: Report) -> dict[int, list[Signed]]:
    """The checkpoints with a good signature, by the size of their tree."""
    key = _key(report)
    found: dict[int, list[Signed]] = {}
    elsewhere = list(_elsewhere(folder, ask, report))
    for number, place in enumerate([*elsewhere, *kept_checkpoints.kept(folder)]):
        outside = number < len(elsewhere)
        try:
            if place.kept is None:
                raise BadNote("it can't be read")
            note = parse_note(place.kept.note)
            if outside and note.origin != f"ironcd/{report.host}":
                continue
            if key is not None:
                verify(note, key)
        except BadNote as error:
            text = f"a checkpoint is no good: {error}"
            report.findings.append(Finding("checkpoint", text, str(place.path), place.number))
            continue
        signed = Signed(note, str(place.path), place.number)
        report.elsewhere = max(report.elsewhere, note.size) if outside else report.elsewhere
        others = found.setdefault(note.size, [])
        if any(other.note.root != note.root for other in others):
            text = f"the host signed two different roots over {note.size} records"
            report.findings.append(Finding("checkpoint", text, signed.file, signed.line, note.size, note.size))
        others.append(signed)
    return found


def _elsewhere(folder: Path, ask: Ask, report: Report) -> Iterator[kept_checkpoints.Place]:
    """The checkpoints of this ledger that were kept elsewhere.  One that a crash cut short is a note: another was made."""
    for path in ask.against:
        if not path.is_dir():
            yield from kept_checkpoints.read(path)
            continue
        met = about(folder)
        found = list(copies.kept(path / (folder.name if met.since else report.host)))
        torn = sum(place.kept is None for place in found)
        if torn:
            report.notes.append(f"{torn} of the {len(found)} copies of its checkpoints in {path} aren't whole")
        if torn == len(found) and met.since > ask.fresh_since > 0.0:
            report.notes.append(f"{path} has no checkpoint of this ledger yet, which has just begun")
        elif torn == len(found):
            report.findings.append(Finding("elsewhere", f"{path} has no checkpoint of this ledger", str(path)))
        yield from (place for place in found if place.kept is not None)


def _key(report: Report) -> Key | None:
    try:
        return parse_key(report.key) if report.key else None
    except BadNote as error:
        report.findings.append(Finding("key", f"the pinned key is none: {error}"))
        return None


def _own_key(folder: Path) -> str:
    """Where the folder is a host's own ledger its key lies beside it."""
    try:
        return (folder.parent / "ledger-key.pub").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _judge_key(report: Report, signed: Mapping[int, list[Signed]], ask: Ask) -> None:
    if signed and not report.key:
        report.findings.append(Finding("key", "there are checkpoints and no key that they could be verified with"))
    trusted = ask.keys.get(report.host, ())
    if trusted and report.key not in trusted:
        report.findings.append(Finding("key", f"{report.key or 'no key'} isn't one that audit.host_keys has for it"))
    elif "~" in report.ledger and not trusted:
        text = "the host began another ledger, maybe with another key; put the keys that are right into audit.host_keys"
        report.findings.append(Finding("key", text))
    elif "~" in report.ledger:
        report.notes.append("the host began another ledger; its key is one that audit.host_keys has")


def _judge_end(walk: Walk, signed: Mapping[int, list[Signed]], ask: Ask, report: Report) -> None:
    newest = max(signed, default=0)
    file, line = (str(walk.place.path), walk.place.number) if walk.place is not None else ("", 0)
    if newest > report.last:
        text = f"the host signed {newest} records, and there are {report.last}: the last ones were cut off"
        report.findings.append(Finding("cut-off", text, file, line, report.last + 1, newest))
    behind = report.last - newest
    if ask.against and 0 < report.elsewhere < report.last:
        report.notes.append(f"checkpoints that were kept elsewhere cover records up to {report.elsewhere}")
    if behind > 0 and walk.latest - walk.unsigned_from > UNSIGNED_S:
        text = f"{behind} records up to {report.last} are covered by no checkpoint"
        report.findings.append(Finding("unsigned", text, file, line, newest + 1, report.last))
    elif behind > 0:
        report.notes.append(f"the last {behind} records wait for the next checkpoint")
    if walk.tree is None and any(size > report.signed for size in signed):
        report.notes.append("records are missing, so checkpoints behind them can't be held against the tree")


def _start(folder: Path, read: Sequence[str], report: Report) -> Start:
    """Where verifying may begin: at the first of the days that says where the tree stood."""
    for day in read[:1]:
        try:
            return msgspec.json.decode(days.tree_file(folder, day).read_bytes(), type=Start)
        except (OSError, msgspec.MsgspecError):
            break
    report.notes.append("the day that was asked for isn't sealed: verified from the first record on")
    return Start(0, "", ())
