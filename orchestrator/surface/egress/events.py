"""Past events for the commands that learn from them: from the control plane, page by page, or from files of the record."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import msgspec
import zstandard

from orchestrator.audit import days
from orchestrator.core.errors import UserError
from orchestrator.core.flow import Event
from orchestrator.core.names import same_repo
from orchestrator.surface.api_client import ApiClient

PAGE = 10_000
_NAMES = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst")


class Wanted(msgspec.Struct, frozen=True):
    """``since`` and ``until`` are seconds since the epoch, 0 for no bound; ``repo`` empty for all."""

    repo: str = ""
    since: float = 0.0
    until: float = 0.0

    def takes(self, event: Event) -> bool:
        return (
            (not self.repo or same_repo(event.who.repo, self.repo))
            and event.ts >= self.since
            and (not self.until or event.ts < self.until)
        )


def from_control(client: ApiClient, wanted: Wanted) -> Iterator[Event]:
    """All that match; the newest page comes first, each page in the order of time."""
    cursor: str | None = None
    while True:
        asked: dict[str, str | int | float | None] = {
            "repo": wanted.repo or None,
            "since": wanted.since or None,
            "until": wanted.until or None,
            "limit": PAGE,
            "cursor": cursor,
        }
        page = client.get("egress", asked)
        yield from msgspec.convert(page["events"], list[Event])
        cursor = page.get("cursor") or None
        if cursor is None:
            return


def from_files(path: Path, wanted: Wanted) -> Iterator[Event]:
    """Of a file of events (JSON lines, compressed or not), or of all below a folder: a host's ledger, or the record.

    Lines that aren't events (checkpoints, a torn end) are passed over.  Raises UserError where there is no file, or no
    event in any.
    """
    decoder = msgspec.json.Decoder(Event)
    read = 0
    try:
        for line in _lines(path):
            try:
                event = decoder.decode(line)
            except msgspec.MsgspecError:
                continue
            read += 1
            if wanted.takes(event):
                yield event
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(
            f"cannot read {path}: {error}", code="file-unreadable", remedy="Name a file that can be read."
        ) from error
    if not read:
        raise UserError(
            f"there is no event in {path}",
            code="file-unreadable",
            remedy="Name a ledger's folder, or what `ironcd audit egress --json` printed.",
        )


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_dir():
        yield from _of_file(path)
        return
    for folder in [path, *sorted(below for below in path.rglob("*") if below.is_dir())]:
        known = days.days(folder)
        for day in known:
            yield from days.lines(folder, day)
        for file in sorted({file for name in _NAMES for file in folder.glob(name)}):
            if file.name.partition(".")[0] not in known or file.suffix == ".gz":
                yield from _of_file(file)


def _of_file(file: Path) -> Iterator[bytes]:
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as lines:
            yield from lines
    else:
        yield from (line.data for line in days.read(file))
