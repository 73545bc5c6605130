"""All benches, by the name that selects them on the command line, in the order in which they run."""

from __future__ import annotations

from importlib import import_module

from bench.rows import Bench

NAMES = (
    *("policy", "receiver", "control", "line", "durability", "record", "year", "egress", "egress_wall"),
    *("whole_job", "start", "start_clone"),
)


def bench(name: str) -> Bench:
    """Each stands as ``BENCH`` in the module of its name, imported when it is asked for."""
    found = import_module(f"bench.{name}").BENCH
    assert isinstance(found, Bench)
    return found
