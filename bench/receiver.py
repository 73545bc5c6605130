"""Accepted deliveries a second on one core, and how long an answer takes, beside Probot.

What is measured answers 202 once a delivery is flushed to disk; its Redis runs on the same core and counts against it.
Probot verifies, parses, calls a handler that does nothing, and answers; it stores nothing.  The load comes from the
other core and is the same bytes for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from rich.console import Console

from bench import peers
from bench.deliveries import Deliveries
from bench.installation import Installation, installation
from bench.load import Load, request, send
from bench.machine import cores, scratch, this_process_on
from bench.rows import Bench, Figure, Row, in_turns, middle, percentile, row

CONNECTIONS = 64
BURST = 2000
WARM_UP = 5000
ROUNDS = 9
OK = (200, 202)
PEER = "probot 14.3.2"

PER_SECOND = Figure("receiver_deliveries_per_second", "1/s", bar=">= 1.0")
ANSWER_P99 = Figure("receiver_answer_p99", "ms")


def measure(console: Console) -> Iterable[Row]:
    served, load = cores()
    with scratch("receiver") as folder, contextlib.ExitStack() as stack:
        with this_process_on(served):  # the supervisor's threads, and so what they start, stay there
            ours = stack.enter_context(installation(folder, only=("redis", "control")))
        peer = stack.enter_context(peers.probot(folder, ours.secret, served))
        stack.enter_context(this_process_on(load))
        bursts = Bursts(ours, peer)
        rates: tuple[list[float], list[float]] = ([], [])
        tails: tuple[list[float], list[float]] = ([], [])
        bursts.ours(WARM_UP)
        bursts.peers(WARM_UP)
        for index, done in in_turns(ROUNDS, [bursts.ours, bursts.peers]):
            rates[index].append(len(done.latencies) / done.seconds)
            tails[index].append(percentile(done.latencies, 99) * 1000)
            console.print(f"  {('receiver', PEER)[index]}: {rates[index][-1]:.0f}/s, p99 {tails[index][-1]:.1f} ms")
    note = (
        f"{CONNECTIONS} connections, {ROUNDS} rounds of {BURST} in turns, median; the receiver and its Redis share one core, "
        f"every accepted delivery was found stored; {PEER} stores nothing; "
        f"receiver {_spread(rates[0])}/s, {PEER} {_spread(rates[1])}/s"
    )
    yield row(PER_SECOND, middle(rates[0]), peer=PEER, peer_value=middle(rates[1]), note=note)
    yield row(ANSWER_P99, middle(tails[0]), peer=PEER, peer_value=middle(tails[1]), note="under the same load")


class Bursts:
    """The same load for both.  Raises RuntimeError where a delivery is refused, or was accepted and isn't stored."""

    def __init__(self, ours: Installation, peer: tuple[str, int]) -> None:
        self._ours = ours
        self._peer = peer
        self._deliveries = Deliveries(ours.secret)
        self._inbox = ours.settings.redis.prefix + "inbox"

    def ours(self, count: int = BURST) -> Load:
        done = self._send(self._ours.receiver, count)
        with self._ours.redis() as client:
            stored = client.xlen(self._inbox)
            client.delete(self._inbox)  # in the worker's place, which takes out what it has worked on
        if stored != count:
            raise RuntimeError(f"{count} deliveries were accepted and {stored} are stored")
        return done

    def peers(self, count: int = BURST) -> Load:
        return self._send(self._peer, count)

    def _send(self, address: tuple[str, int], count: int) -> Load:
        requests = [request(one, "127.0.0.1", "/webhook") for one in self._deliveries.make(count)]
        done = send(address, requests, connections=CONNECTIONS)
        if done.accepted(OK) != count:
            raise RuntimeError(f"{count - done.accepted(OK)} of {count} deliveries were not accepted: {done.statuses}")
        return done


def _spread(figures: list[float]) -> str:
    return f"{min(figures):.0f} to {max(figures):.0f}"


BENCH = Bench((PER_SECOND, ANSWER_P99), measure)
