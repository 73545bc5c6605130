"""The record: events a second that are safely on disk, what the proof costs, and finding events in a long history.

Writing: the ledger as the gateway uses it, beside SQLite (WAL, ``synchronous=FULL``) that keeps the same lines, in turns and
in batches of the same size.  Searching: ``BENCH_EVENTS`` events (a million unless set) go through the product's own sealing;
the questions are asked as the API asks them.  The peer is reading the compressed lines as ``zstd | grep`` would; SQLite with
an index for each question stands in the note.  `bench.year` asks ten million events on a year of days.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zstandard
from rich.console import Console

from bench.machine import scratch
from bench.rows import Bench, Figure, Row, middle, middles, row
from orchestrator.audit import Ledger as Record
from orchestrator.audit import Query
from orchestrator.audit.seal import seal_all
from orchestrator.audit.search import find
from orchestrator.core.flow import Event, Identity
from orchestrator.core.merkle import Frontier, leaf_hash
from orchestrator.egress.ledger import COMMIT_LINES, Ledger

WRITTEN = 40_000
ROUNDS = 5
APPENDS = 100_000
DAY_S = 86400
DAYS = 14
HOSTS = 4
NAMES = 2_000
ASKED = 7
LIMIT = 1000

EVENTS_PER_S = Figure("record_events_per_s", "events/s", bar=">= 0.5")
ONE_BY_ONE = Figure("record_one_by_one_per_s", "events/s", bar=">= 0.5")
TREE = Figure("record_tree_append", "us", bar="<= 2.0")
BY_HOST = Figure("record_query_by_host", "ms", bar="<= 0.3")
BY_JOB = Figure("record_query_by_job", "ms", bar="<= 0.1")
BY_DAY = Figure("record_query_by_day", "ms", bar="<= 3.0")  # both read one day, and the peer makes nothing of it
FIGURES = (EVENTS_PER_S, ONE_BY_ONE, TREE, BY_HOST, BY_JOB, BY_DAY)

WHO = Identity(
    "01JF0000000000000000000000", org="acme", repo="acme/shop", workflow="ci", run_id=17_000_000_001, attempt=1, job="build",
    job_id=48_000_000_001,
)  # fmt: skip
EVENT = Event(
    event="close", ts=1_700_000_000.123, seq=0, gateway="metal-1", who=WHO, protocol="tls", verdict="allowed", reason="rule",
    conn="01JF0000000000000000000001", host="registry.packages.example", host_source="sni", port=443, orig_dst="198.18.3.7",
    resolved="203.0.113.10", mode="enforce", rule="org#12", policy="sha256:0123456789abcdef", generation=3,
    bytes_up=1830, bytes_down=482_113, duration_ms=731, close_reason="client",
)  # fmt: skip


def measure(console: Console) -> Iterable[Row]:
    with scratch("record") as folder:
        yield from _writing(folder, console)
    yield _tree()
    with scratch("record") as folder:
        yield from _searching(folder, int(os.environ.get("BENCH_EVENTS", "1000000")), console)


def _writing(folder: Path, console: Console) -> Iterator[Row]:
    fresh = (folder / str(number) for number in itertools.count())
    for figure, batch, count in ((EVENTS_PER_S, COMMIT_LINES, WRITTEN), (ONE_BY_ONE, 1, 400)):
        takes: list[Callable[[], float]] = [
            lambda batch=batch, count=count: _ledger_rate(next(fresh), batch, count),
            lambda batch=batch, count=count: _sqlite_rate(next(fresh), batch, count),
        ]
        ours, theirs = middles(ROUNDS, takes)
        console.print(f"  batches of {batch}: {ours:,.0f} events/s, SQLite {theirs:,.0f}")
        note = f"batches of {batch}, each synced; median of {ROUNDS} rounds of {count}; ours with chain and tree"
        yield row(figure, ours, peer="SQLite, WAL, synchronous=FULL", peer_value=theirs, note=note)


def _ledger_rate(folder: Path, batch: int, count: int) -> float:
    ledger = Ledger(folder, gateway="metal-1")
    began = time.perf_counter()
    for _ in range(count // batch):
        for _ in range(batch):
            ledger.append(EVENT)
        ledger.commit()
    rate = count / (time.perf_counter() - began)
    assert ledger.seq == count
    ledger.close()
    return rate


def _sqlite_rate(path: Path, batch: int, count: int) -> float:
    """The same lines, numbered, in a table: no chain, no tree, no index."""
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE event (seq INTEGER PRIMARY KEY, line BLOB)")
    seq = 0
    began = time.perf_counter()
    for _ in range(count // batch):
        base.execute("BEGIN")
        for _ in range(batch):
            seq += 1
            line = msgspec.json.encode(msgspec.structs.replace(EVENT, seq=seq))
            base.execute("INSERT INTO event VALUES (?, ?)", (seq, line))
        base.execute("COMMIT")
    rate = count / (time.perf_counter() - began)
    base.close()
    return rate


def _tree() -> Row:
    """What chain and tree cost for one line, beside encoding it."""
    line = msgspec.json.encode(EVENT)

    def prove() -> float:
        tree = Frontier()
        began = time.perf_counter()
        for _ in range(APPENDS):
            leaf = leaf_hash(line)
            tree.append(leaf)
            leaf.hex()
        return (time.perf_counter() - began) / APPENDS * 1e6

    def encode() -> float:
        began = time.perf_counter()
        for seq in range(APPENDS):
            msgspec.json.encode(msgspec.structs.replace(EVENT, seq=seq))
        return (time.perf_counter() - began) / APPENDS * 1e6

    proving, encoding = middles(ROUNDS, [prove, encode])
    note = f"hash, chain and RFC 6962 frontier of a line of {len(line)} bytes; median of {ROUNDS} rounds of {APPENDS}"
    return row(TREE, proving, peer="encoding the line", peer_value=encoding, note=note)


def _searching(folder: Path, count: int, console: Console) -> Iterator[Row]:
    began = time.perf_counter()
    first_day = (int(time.time()) // DAY_S - DAYS - 2) * DAY_S
    history = History(folder / "audit", count, first_day)
    base = _indexed(folder / "sqlite", history.make())
    console.print(f"  {count:,} events made in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    record = Record(folder / "audit")
    sealed = seal_all(folder / "audit", record.engine, time.time())
    console.print(f"  {sealed} days sealed in {time.perf_counter() - began:.0f} s")
    parquet, compressed = (
        sum(p.stat().st_size for p in folder.rglob(f"*.{form}")) for form in ("parquet", "jsonl.zst")
    )
    sizes = f"lines {compressed >> 20} MiB and Parquet {parquet >> 20} MiB, SQLite {(folder / 'sqlite').stat().st_size >> 20} MiB"
    for figure, query, sql, values, needle in history.questions():
        engine, indexed = _times(record, query), _sqlite_times(base, sql, values)
        scanned = _scan(folder / "audit", needle, history, query)
        console.print(f"  {figure.name}: {engine:.1f} ms, scan {scanned:.0f} ms, SQLite with an index {indexed:.1f} ms")
        note = f"newest {LIMIT} of {count:,} events on {HOSTS} hosts, {DAYS} days; SQLite with an index for it {indexed:.1f} ms; {sizes}"
        yield row(figure, engine, peer="reading the compressed lines", peer_value=scanned, note=note)
    base.close()
    record.engine.close()


class History:
    """``count`` events over `DAYS` days: names by a long-tailed choice, a job for each 2,000 events, one in fifty blocked."""

    def __init__(self, folder: Path, count: int, first_day: int) -> None:
        self._folder = folder
        self._count = count
        self._first = first_day
        self.per_day = count // DAYS
        self._chance = random.Random(1)

    def day(self, number: int) -> str:
        return datetime.fromtimestamp(self._first + number * DAY_S, UTC).strftime("%Y-%m-%d")

    def make(self) -> Iterator[tuple[int, str, int, float, int, bytes]]:
        """Writes the lines; yields name, job, time, gateway and line of each for the peer."""
        chance = self._chance
        weights = [1 / (rank + 1) for rank in range(NAMES)]
        names = chance.choices(range(NAMES), weights, k=1 << 16)
        seqs = [0] * HOSTS
        prev = [b""] * HOSTS
        for number in range(DAYS):
            for gateway in range(HOSTS):
                folder = self._folder / f"metal-{gateway}"
                folder.mkdir(parents=True, exist_ok=True)
                part = self.per_day // HOSTS
                with (folder / f"{self.day(number)}.jsonl").open("wb", 1 << 20) as file:
                    for index in range(part):
                        seqs[gateway] += 1
                        name = names[(seqs[gateway] * 7919 + gateway) & 0xFFFF]
                        job = 48_000_000_000 + (number * self.per_day + gateway * part + index) // 2000
                        ts = round(self._first + number * DAY_S + index * DAY_S / part, 3)
                        line = _line(name, job, ts, gateway, seqs[gateway], prev[gateway])
                        prev[gateway] = hashlib.sha256(b"\0" + line).hexdigest().encode()
                        file.write(line + b"\n")
                        yield name, "blocked" if name % 50 == 7 else "allowed", job, ts, gateway, line

    def questions(self) -> Iterator[tuple[Figure, Query, str, tuple[object, ...], bytes]]:
        begin = self._first + (DAYS // 2) * DAY_S
        job = 48_000_000_000 + self._count // 4000
        rare = NAMES - 7
        columns = "SELECT line FROM event WHERE"
        newest = f"ORDER BY ts DESC, gateway DESC, seq DESC LIMIT {LIMIT}"
        yield BY_HOST, Query(host=_name(rare)), f"{columns} name = ? {newest}", (rare,), _name(rare).encode()
        yield BY_JOB, Query(job=job), f"{columns} job = ? {newest}", (job,), str(job).encode()
        yield (
            BY_DAY,
            Query(since=begin, until=begin + DAY_S, verdict="blocked"),
            f"{columns} ts >= ? AND ts < ? AND verdict = 'blocked' {newest}",
            (begin, begin + DAY_S),
            b'"blocked"',
        )


def _name(number: int) -> str:
    return f"host{number}.region{number % 7}.example"


def _line(name: int, job: int, ts: float, gateway: int, seq: int, prev: bytes) -> bytes:
    verdict = "blocked" if name % 50 == 7 else "allowed"
    return (
        f'{{"event":"close","ts":{ts},"seq":{seq},"gateway":"metal-{gateway}","who":{{"runner":"01JF{job % 10**11:022d}",'
        f'"org":"acme","repo":"acme/repo{job % 40}","workflow":"ci","run_id":{job // 3},"attempt":1,"job":"build","job_id":{job}}},'
        f'"protocol":"tls","verdict":"{verdict}","reason":"rule","conn":"{seq:026d}","host":"{_name(name)}","host_source":"sni",'
        f'"port":443,"orig_dst":"198.18.3.7","resolved":"203.0.113.{name % 250}","mode":"enforce","rule":"org#{name % 90}",'
        f'"policy":"sha256:0123456789abcdef","generation":3,"bytes_up":{seq % 9000},"bytes_down":{seq * 37 % 900000},'
        f'"duration_ms":{seq % 3000},"close_reason":"client","prev":"{prev.decode()}"}}'
    ).encode()


def _indexed(path: Path, events: Iterable[tuple[int, str, int, float, int, bytes]]) -> sqlite3.Connection:
    base = sqlite3.connect(path)
    base.execute("PRAGMA synchronous=OFF")
    base.execute(
        "CREATE TABLE event (seq INTEGER PRIMARY KEY, name INT, verdict TEXT, job INT, ts REAL, gateway INT, line BLOB)"
    )
    base.executemany("INSERT INTO event (name, verdict, job, ts, gateway, line) VALUES (?, ?, ?, ?, ?, ?)", events)
    for columns in ("name, ts", "job, ts", "verdict, ts"):
        base.execute(f"CREATE INDEX by_{columns.split(',')[0]} ON event ({columns})")
    base.commit()
    return base


def _times(record: Record, query: Query) -> float:
    """Milliseconds; the first question isn't counted, since it loads the engine."""
    assert find(record, query, limit=LIMIT).events
    took = []
    for _ in range(ASKED):
        began = time.perf_counter()
        find(record, query, limit=LIMIT)
        took.append((time.perf_counter() - began) * 1e3)
    return middle(took)


def _sqlite_times(base: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> float:
    took = []
    for _ in range(ASKED):
        began = time.perf_counter()
        decoder = msgspec.json.Decoder(Event)
        found = [decoder.decode(line) for (line,) in base.execute(sql, values)]
        assert found
        took.append((time.perf_counter() - began) * 1e3)
    return middle(took)


def _scan(folder: Path, needle: bytes, history: History, query: Query) -> float:
    """Decompress and look for the bytes, without making anything of them: milliseconds.  A day's question opens that day only."""
    wanted = {history.day(number) for number in range(DAYS)}
    if query.since:
        wanted = {datetime.fromtimestamp(query.since, UTC).strftime("%Y-%m-%d")}
    began = time.perf_counter()
    found = 0
    for path in sorted(folder.rglob("*.jsonl.zst")):
        if path.name.partition(".")[0] in wanted:
            with path.open("rb") as file:
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                while chunk := reader.read(1 << 20):
                    found += chunk.count(needle)
    assert found
    return (time.perf_counter() - began) * 1e3


BENCH = Bench(FIGURES, measure)
