"""The gateway beside HAProxy, nginx and plain kernel forwarding: bulk, new connections, added latency; and the hello's parse.

All three gateways run on one core and the load on another (`bench.egress_lab`).  ``cpu`` figures are the processor time
that the gateway's own process took: where the load's core is the slower one, the rates lie closer together than they do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.console import Console

from bench.egress_lab import Side, sides
from bench.egress_load import hello
from bench.machine import cores
from bench.rows import Bench, Figure, Row, in_turns, middle, middle_pair, percentile, row
from orchestrator.egress.hello import Hello, HelloReader

GATEWAYS = ("ironcd", "haproxy", "nginx")
FLOWS = (1, 8)
BULK_S = 1.0
BULK_ROUNDS = 5
COUNT = 2_000
AT_ONCE = 64
ROUNDS = 7
SERIAL = 300
PARSES = 5_000

BULK = {
    (flows, peer): Figure(
        f"egress_bulk_{flows}_flows_beside_{peer}", "Gbit/s", bar=">= 1.3" if peer == "haproxy" else ""
    )
    for flows in FLOWS
    for peer in ("haproxy", "nginx", "kernel")
}
CONNECTIONS = {
    peer: Figure(f"egress_new_connections_beside_{peer}", "1/s", bar=">= 0.6" if peer == "haproxy" else "")
    for peer in ("haproxy", "nginx")
}
CPU = {
    "haproxy": Figure("egress_connections_per_cpu_second", "1/s"),
    "bulk": Figure("egress_bulk_gigabytes_per_cpu_second", "GB/s"),
}
LATENCY = {percent: Figure(f"egress_added_latency_p{percent}", "ms") for percent in (50, 99)}
PARSE = Figure("egress_hello_parse", "us")


def measure(console: Console) -> Iterable[Row]:
    yield _parse()
    served, load = cores()
    with sides(served, load) as all_sides:
        for flows in FLOWS:
            yield from _bulk(all_sides, load, flows, console)
        yield from _connections(all_sides, load, console)
        yield from _latency(all_sides, load, console)


def _parse() -> Row:
    flight = hello("api.github.com")
    rounds = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(PARSES):
            read = HelloReader().feed(flight)
        rounds.append((time.perf_counter() - began) / PARSES * 1e6)
        assert isinstance(read, Hello)
    return row(
        PARSE, middle(rounds), note=f"OpenSSL's hello of {len(flight)} bytes, whole; median of 9 rounds of {PARSES}"
    )


def _bulk(all_sides: dict[str, Side], core: int, flows: int, console: Console) -> Iterator[Row]:
    names = (*GATEWAYS, "kernel")
    rates: dict[str, list[float]] = {name: [] for name in names}
    per_cpu: dict[str, list[float]] = {name: [] for name in names}
    takes = [lambda side=all_sides[name]: side.bulk(core, BULK_S, flows) for name in names]
    for index, got in in_turns(BULK_ROUNDS, takes):
        name = names[index]
        if got["flows"] != flows:
            raise RuntimeError(f"{name}: only {got['flows']} of {flows} flows got anything")
        rates[name].append(got["bytes"] * 8 / got["seconds"] / 1e9)
        if got["cpu"]:
            per_cpu[name].append(got["bytes"] / got["cpu"] / 1e9)
        console.print(f"  bulk, {flows} flows, {name}: {rates[name][-1]:.1f} Gbit/s")
    note = f"{BULK_ROUNDS} rounds of {BULK_S:.0f} s in turns, the one with the middle ratio; one gateway thread each, HAProxy splices"
    for peer in names[1:]:
        ours, theirs = middle_pair(rates["ironcd"], rates[peer])
        yield row(BULK[flows, peer], ours, peer=peer, peer_value=theirs, note=note)
    if flows == 1:
        ours, theirs = middle_pair(per_cpu["ironcd"], per_cpu["haproxy"])
        yield row(
            CPU["bulk"], ours, peer="haproxy", peer_value=theirs, note="one flow, by the gateway's processor time"
        )


def _connections(all_sides: dict[str, Side], core: int, console: Console) -> Iterator[Row]:
    rates: dict[str, list[float]] = {name: [] for name in GATEWAYS}
    per_cpu: dict[str, list[float]] = {name: [] for name in GATEWAYS}
    takes = [lambda side=all_sides[name]: side.connections(core, COUNT, AT_ONCE) for name in GATEWAYS]
    for take in takes:
        take()
    for index, got in in_turns(ROUNDS, takes):
        name = GATEWAYS[index]
        rates[name].append(got["done"] / got["seconds"])
        per_cpu[name].append(got["done"] / got["cpu"])
        console.print(
            f"  connections, {name}: {rates[name][-1]:.0f}/s, {1e6 / per_cpu[name][-1]:.0f} us of processor time each"
        )
    note = (
        f"{ROUNDS} rounds of {COUNT} connections, {AT_ONCE} at once, the one with the middle ratio; the peers log nothing and "
        "resolve nothing, ours has each connection on record before it dials"
    )
    for peer in GATEWAYS[1:]:
        ours, theirs = middle_pair(rates["ironcd"], rates[peer])
        yield row(CONNECTIONS[peer], ours, peer=peer, peer_value=theirs, note=note)
    ours, theirs = middle_pair(per_cpu["ironcd"], per_cpu["haproxy"])
    yield row(
        CPU["haproxy"], ours, peer="haproxy", peer_value=theirs, note="by the gateway's processor time, kernel included"
    )


def _latency(all_sides: dict[str, Side], core: int, console: Console) -> Iterator[Row]:
    """From the dial to the answer, one connection at a time; what the direct way takes is taken off."""
    names = ("ironcd", "haproxy", "kernel")
    took: dict[str, list[float]] = {name: [] for name in names}
    takes = [lambda side=all_sides[name]: side.connections(core, SERIAL, 1) for name in names]
    for index, got in in_turns(ROUNDS, takes):
        took[names[index]] += got["took"]
    for percent, figure in LATENCY.items():
        ours, theirs, direct = (percentile(took[name], percent) * 1000 for name in names)
        console.print(f"  p{percent}: ironcd {ours:.2f} ms, haproxy {theirs:.2f} ms, kernel {direct:.2f} ms")
        note = f"{ROUNDS} rounds of {SERIAL} connections, one at a time; {direct:.2f} ms of plain forwarding taken off"
        yield row(figure, ours - direct, peer="haproxy", peer_value=theirs - direct, note=note)


FIGURES: tuple[Figure, ...] = (
    PARSE,
    *BULK.values(),
    CPU["bulk"],
    *CONNECTIONS.values(),
    CPU["haproxy"],
    *LATENCY.values(),
)
BENCH = Bench(FIGURES, measure)
