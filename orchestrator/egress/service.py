"""The gateway's process: opens everything, runs until it is told to stop, and leaves the ledger whole.

It lives in the namespace with the uplink and dials from there.  Only its listeners and the NFLOG socket belong to the VMs'
namespace, from which nothing else leads out.  Where it dies, the kernel goes on redirecting to a port on which nobody
listens: every attempt fails, and none passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import structlog

from orchestrator.core.errors import HostError, OperationalError
from orchestrator.core.policy import Decision
from orchestrator.core.settings import HostSettings
from orchestrator.egress import sockets
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.control import Control
from orchestrator.egress.echo_relay import ECHO_BYTES, open_inner, open_outer
from orchestrator.egress.gateway import Gateway, GatewayOptions
from orchestrator.egress.ledger import Ledger, LedgerFull
from orchestrator.egress.links import Links
from orchestrator.egress.nflog import DropReader, open_nflog
from orchestrator.egress.own_addresses import OwnAddresses
from orchestrator.egress.recorder import Recorder
from orchestrator.egress.resolver import Resolver
from orchestrator.egress.upstream import Upstream
from orchestrator.system import netns

CHECKPOINT_S = 60
OWN_ADDRESSES_S = 10
_WAIT_S = 0.2

_log = structlog.get_logger()


class NamespaceReplaced(OperationalError):
    """The VMs' namespace is another one than the listeners are in: only a new process can open them there."""


@dataclass(frozen=True)
class _Parts:
    """What needs looking after while the gateway runs."""

    settings: HostSettings
    recorder: Recorder
    writing: asyncio.Task[None]
    gateway: Gateway
    drops: DropReader
    own: OwnAddresses


async def run(settings: HostSettings) -> None:
    """Serve until SIGTERM or SIGINT.  Waits for the VMs' namespace where the agent hasn't made it yet."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    netns.enter(settings.uplink_netns)
    if not await _wait_for_netns(settings.netns, stop):
        return
    folder = _folders(settings)
    ledger = Ledger(folder / "ledger", gateway=settings.name, signer=load_signer(settings.name, folder))
    recorder = Recorder(ledger, gateway=settings.name)
    writing = asyncio.create_task(ledger.run())
    try:
        async with contextlib.AsyncExitStack() as stack:
            await _serve(settings, recorder, writing, stop, stack)
    finally:
        recorder.flush()
        _mark(recorder, "gateway_stopped")
        ledger.stop()
        await writing
        ledger.close()


def _folders(settings: HostSettings) -> Path:
    Path(settings.run_dir, "links").mkdir(parents=True, exist_ok=True)
    folder = Path(settings.state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _serve(
    settings: HostSettings,
    recorder: Recorder,
    writing: asyncio.Task[None],
    stop: asyncio.Event,
    stack: contextlib.AsyncExitStack,
) -> None:
    own = OwnAddresses(settings.links_range)
    own.refresh()
    links = Links(Path(settings.run_dir, "links"))
    links.load(asyncio.get_running_loop().time())
    gateway = Gateway(
        links=links,
        recorder=recorder,
        upstream=Upstream(settings.upstream_dns),
        own=own,
        options=GatewayOptions(
            settings.hello_timeout_s, settings.idle_timeout_s, block_when_ledger_full=settings.block_when_ledger_full
        ),
    )
    resolver = Resolver(links=links, recorder=recorder)
    with netns.inside(settings.netns):
        gateway.serve(sockets.listen_tcp(settings.tls_port), "tls")
        gateway.serve(sockets.listen_tcp(settings.tcp_port), "tcp")
        resolver.serve(sockets.listen_udp(settings.dns_port), sockets.listen_tcp(settings.dns_port))
        drops = DropReader(open_nflog(settings.nflog_group), links=links, recorder=recorder)
        echoes = open_nflog(settings.echo_group, snap=ECHO_BYTES), open_inner()
    gateway.echo(*echoes, open_outer())
    stack.callback(drops.close)
    stack.push_async_callback(gateway.close)
    stack.push_async_callback(resolver.close)
    control = Control(links=links, gateway=gateway, recorder=recorder, ledger=recorder.ledger)
    await control.serve(Path(settings.run_dir, "gateway.sock"))
    stack.push_async_callback(control.close)
    _mark(recorder, "gateway_started")
    _log.info(
        "gateway_ready", netns=settings.netns, uplink=settings.uplink_netns, links=len(links), seq=recorder.ledger.seq
    )
    await _tend(_Parts(settings, recorder, writing, gateway, drops, own), stop)


async def _tend(parts: _Parts, stop: asyncio.Event) -> None:
    """What is done each second, until ``stop``."""
    name = parts.settings.netns
    born = _identity(name)
    second = 0
    while not await _stopped(stop, 1.0):
        second += 1
        parts.gateway.sweep()
        parts.drops.flush()
        parts.recorder.flush()
        if second % OWN_ADDRESSES_S == 0:
            await asyncio.get_running_loop().run_in_executor(None, parts.own.refresh)
        if second % CHECKPOINT_S == 0:
            _mark(parts.recorder, "alive")
            _checkpoint(parts.recorder.ledger)
        if parts.writing.done():
            parts.writing.result()  # nothing more will be recorded: end, and start anew
        if _identity(name) != born:
            raise NamespaceReplaced(
                f"network namespace {name!r} was made anew",
                code="netns-replaced",
                remedy="The supervisor starts the gateway again; nothing to do.",
            )


def _checkpoint(ledger: Ledger) -> None:
    try:
        ledger.checkpoint()
    except (OSError, LedgerFull) as error:
        _log.error("checkpoint_failed", error=str(error))


def _mark(recorder: Recorder, reason: str) -> None:
    """A line that says that the gateway was there: silence between two of them is provable."""
    recorder.always(recorder.event("mark", None, "other", Decision("allowed", reason)))


async def _wait_for_netns(name: str, stop: asyncio.Event) -> bool:
    """True once the namespace can be entered; False where we are told to stop before."""
    told = False
    while True:
        try:
            with netns.inside(name):
                return True
        except (HostError, OSError):  # not there, or its file is there and not mounted yet
            if not told:
                _log.info("waiting_for_netns", netns=name)
                told = True
        if await _stopped(stop, _WAIT_S):
            return False


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


def _identity(name: str) -> tuple[int, int] | None:
    if not name:
        return None
    try:
        status = os.stat(f"/run/netns/{name}")
    except FileNotFoundError:
        return (0, 0)
    return status.st_dev, status.st_ino
