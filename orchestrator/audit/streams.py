"""Which ledger a host's batch belongs to.  A host has one, until its key is another or it began a new one.

The first ledger of host ``h1`` lies in the folder ``h1``, the next ones in ``h1~2``, ``h1~3``: a host that was installed
anew, or somebody who speaks in its name, never writes into what is there, and each of them shows.  The public key that
comes first is pinned (``about.json``); whether it is the right one is for the configuration to say, or for a person.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from orchestrator.audit.notes import BadNote, parse_key
from orchestrator.core.merkle import leaf_hash
from orchestrator.core.wire import LedgerBatch
from orchestrator.system.files import write_atomic

LIMIT = 64
"""Ledgers of one host.  A host that begins more is refused: it could fill the disk's folders."""
ABOUT = "about.json"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_STREAM = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:~(\d{1,3}))?")

log = structlog.get_logger()


class BadBatch(ValueError):
    """A batch that can't be filed: a line that is no event, too long, or out of order."""


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """``key`` is pinned, or empty where none came yet; ``first`` is the first line's leaf hash, in hexadecimal."""

    key: str = ""
    since: float = 0.0
    first: str = ""


def host_of(stream: str) -> str:
    return stream.partition("~")[0]


def is_stream(name: str) -> bool:
    return _STREAM.fullmatch(name) is not None


def streams(folder: Path, host: str = "") -> list[str]:
    """The ledgers in ``folder``, of ``host`` or of all, each host's oldest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir() and is_stream(path.name)]
    return sorted((name for name in names if not host or host_of(name) == host), key=_order)


def about(folder: Path) -> About:
    """What is known of the ledger in ``folder``; nothing where it can't be read."""
    try:
        return msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except FileNotFoundError:
        return About()
    except (OSError, msgspec.MsgspecError) as error:
        log.error("ledger_about_unreadable", folder=str(folder), error=str(error))  # noqa: TRY400 - it says it all
        return About()


def stream_for(folder: Path, batch: LedgerBatch, now: float, alarm: Callable[[str], None] = lambda _kind: None) -> str:
    """The ledger that ``batch`` goes into; begun, and its key pinned, where that is new.  Raises `BadBatch`.

    ``alarm`` is told ``ledger_begun_anew`` where the host had another one before.
    """
    if not _HOST.fullmatch(batch.host):
        raise BadBatch("the host's name isn't one")
    _check_key(batch)
    known = streams(folder, batch.host)
    for name in reversed(known):
        met = about(folder / name)
        if not batch.public_key or met.key in ("", batch.public_key):
            if _begins_anew(batch, met):
                log.error("ledger_begun_anew", host=batch.host, after=name)
                break
            _remember(folder / name, met, batch, now)
            return name
    else:
        if known:
            log.error("ledger_key_changed", host=batch.host, known=about(folder / known[-1]).key, now=batch.public_key)
    if len(known) >= LIMIT:
        raise BadBatch(f"host {batch.host} began more than {LIMIT} ledgers")
    name = f"{batch.host}~{_order(known[-1])[1] + 1}" if known else batch.host
    if known:
        alarm("ledger_begun_anew")
    (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    _remember(folder / name, About(since=now), batch, now)
    return name


def _check_key(batch: LedgerBatch) -> None:
    if not batch.public_key:
        return
    try:
        key = parse_key(batch.public_key)
    except BadNote as error:
        raise BadBatch(str(error)) from error
    if key.name != f"ironcd/{batch.host}":
        raise BadBatch("the key has another host's name")


def _begins_anew(batch: LedgerBatch, met: About) -> bool:
    return batch.first_seq == 1 and bool(batch.lines) and bool(met.first) and _first_leaf(batch) != met.first


def _remember(folder: Path, met: About, batch: LedgerBatch, now: float) -> None:
    first = met.first or (_first_leaf(batch) if batch.first_seq == 1 and batch.lines else "")
    new = About(met.key or batch.public_key, met.since or now, first)
    if new != met or not (folder / ABOUT).exists():
        write_atomic(folder / ABOUT, msgspec.json.encode(new))


def _first_leaf(batch: LedgerBatch) -> str:
    return leaf_hash(batch.lines[0].encode()).hex()


def _order(name: str) -> tuple[str, int]:
    host, _, number = name.partition("~")
    return host, int(number or 1)
