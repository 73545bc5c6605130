"""A year of sealed days, made as fast as they can be: ``python -m bench.year_make FOLDER FIRST DAYS PER_DAY GATEWAY...``.

Lines come out of one format string; compressing them and making the search engine's file is the product's own code.  Two of
these run at once, each for its gateways.  The chain in the lines is random: nothing here is verified, only searched.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.record import DAY_S, NAMES
from orchestrator.audit import days, frames
from orchestrator.audit.engine import Engine

JOB_EVENTS = 500
"""Each host runs one job after another, of so many events each."""
FIRST_JOB = 48_000_000_000
JOBS_APART = 100_000_000
"""Between the numbers of two hosts' jobs."""
BLOCKED = 7
REPOS = 40
_LINE = (
    '{"event":"close","ts":%.3f,"seq":%d,"gateway":"%s","who":{"runner":"01JF%022d","org":"acme","repo":"acme/repo%d",'
    '"workflow":"ci","run_id":%d,"attempt":1,"job":"build","job_id":%d},"protocol":"tls","verdict":"%s","reason":"rule",'
    '"conn":"%026d","host":"%s","host_source":"sni","port":443,"orig_dst":"198.18.3.7","resolved":"203.0.113.%d",'
    '"mode":"enforce","rule":"org#%d","policy":"sha256:0123456789abcdef","generation":3,"bytes_up":%d,"bytes_down":%d,'
    '"duration_ms":%d,"close_reason":"client","prev":"%s"}\n'
)


def name_of(rank: int) -> str:
    return f"host{rank}.region{rank % 7}.example"


def job_at(gateway: int, seq: int) -> int:
    return FIRST_JOB + gateway * JOBS_APART + seq // JOB_EVENTS


def runner_of(job: int) -> str:
    return f"01JF{job % 10**11:022d}"


def day_of(first: int, number: int) -> str:
    return datetime.fromtimestamp(first + number * DAY_S, UTC).strftime("%Y-%m-%d")


def lines(gateway: int, first: int, number: int, per_day: int, chance: random.Random) -> Iterator[bytes]:
    """A day's lines of one gateway: names by a long-tailed choice, every fiftieth name blocked."""
    ranks = chance.choices(range(NAMES), _WEIGHTS, k=per_day)
    hashes = chance.randbytes(32 * per_day).hex()
    begin, step, host = first + number * DAY_S, DAY_S / per_day, f"metal-{gateway}"
    for index, rank in enumerate(ranks):
        seq = number * per_day + index + 1
        job = job_at(gateway, seq)
        values = (
            begin + index * step, seq, host, job % 10**11, job % REPOS, job // 3, job, _VERDICTS[rank], seq, _NAMES[rank],
            rank % 250, rank % 90, seq % 9000, seq * 37 % 900_000, seq % 3000, hashes[index * 64 : index * 64 + 64],
        )  # fmt: skip
        yield (_LINE % values).encode()


_WEIGHTS = [1 / (rank + 1) for rank in range(NAMES)]
_NAMES = [name_of(rank) for rank in range(NAMES)]
_VERDICTS = ["blocked" if rank % 50 == BLOCKED else "allowed" for rank in range(NAMES)]


def make(folder: Path, first: int, count: int, per_day: int, gateways: list[int]) -> None:
    """Write ``count`` days of each of ``gateways`` below ``folder``, sealed and ready to be searched."""
    engine = Engine(folder, threads=1)
    for gateway in gateways:
        place = folder / f"metal-{gateway}"
        place.mkdir(parents=True)
        for number in range(count):
            day, chance = day_of(first, number), random.Random(gateway * 1000 + number)
            sealed = days.sealed_file(place, day)
            with sealed.open("wb") as file:
                for _ in frames.write(file, lines(gateway, first, number, per_day, chance)):
                    pass
            engine.make(sealed, days.parquet_file(place, day))
    engine.close()


if __name__ == "__main__":
    folder, first, count, per_day, *rest = sys.argv[1:]
    make(Path(folder), int(first), int(count), int(per_day), [int(gateway) for gateway in rest])
