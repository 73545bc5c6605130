"""The agent's process: its threads, and the real things behind its parts.

Threads: one that turns the agent, one that waits for wishes, one that tells what is seen, one that ships the ledger, one
that watches the wall, and those of the steps.  None waits for another; the process may be killed at any moment.
"""

from __future__ import annotations

import importlib.metadata
import random
import threading
import time
from collections.abc import Callable

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.settings import HostSettings
from orchestrator.host.accelerator import Choice, choose, open_to_group, shared_user
from orchestrator.host.agent import TURN_S, Agent
from orchestrator.host.channels import Channels
from orchestrator.host.control import WAIT_S, HttpControl
from orchestrator.host.gateway import GatewaySocket
from orchestrator.host.hypervisor import Libvirt
from orchestrator.host.images import find_image, list_images
from orchestrator.host.links import Links, make_namespace
from orchestrator.host.nft import LibNft
from orchestrator.host.parts import Parts
from orchestrator.host.paths import host_paths, make_folders
from orchestrator.host.record import Records
from orchestrator.host.ruleset import Listeners
from orchestrator.host.ship import Shipper
from orchestrator.host.slots import Slots
from orchestrator.host.wall import Wall
from orchestrator.host.watch import EVERY_S

log = structlog.get_logger()

TELL_S = 10.0
"""The control plane hears from a host at least this often."""
WHOLE_S = 60.0
"""And is asked for the whole wish at least this often, whatever generation it is at."""
_COALESCE_S = 0.02


class Service:
    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        paths = host_paths(settings)
        make_folders(paths)
        self._thread = make_namespace(settings.netns)
        ports = Listeners(
            settings.tls_port, settings.tcp_port, settings.dns_port, settings.nflog_group, settings.echo_group
        )
        parts = Parts(
            settings=settings,
            paths=paths,
            hypervisor=Libvirt(settings.libvirt_uri, settings.netns),
            wall=Wall(self._thread, self._thread.call(LibNft), ports),
            wires=Links(self._thread),
            gateway=GatewaySocket(paths.gateway_socket),
            slots=Slots(settings.links_range),
            records=Records(paths.records),
        )
        self.agent = Agent(parts, Choice("", "not tried yet"), version=_version())
        self._channels = Channels(self.agent.heard, self.agent.channel_lost)
        parts.talk = self._channels

    def run(self) -> None:
        """Serve until `stop`.  VMs go on running without us."""
        self.agent.begin()
        loops: list[tuple[str, Callable[[], None]]] = [
            ("choose", self._choose),
            ("wishes", self._wishes),
            ("tell", self._tell),
            ("ship", self._ship),
            ("wall", self._watch),
        ]
        threads = [threading.Thread(target=self._guard(loop), name=name, daemon=True) for name, loop in loops]
        for thread in threads:
            thread.start()
        log.info("agent_started", host=self.settings.name, control=self.settings.control_url)
        while not self.stopping.is_set():
            self.agent.wake.wait(TURN_S)
            self.agent.wake.clear()
            self.agent.turn()
        self.agent.close()
        self._channels.stop()
        self._thread.close()
        log.info("agent_stopped")

    def stop(self) -> None:
        self.stopping.set()
        self.agent.wake.set()
        self.agent.dirty.set()

    def _guard(self, loop: Callable[[], None]) -> Callable[[], None]:
        """A loop that breaks ends the process: a supervisor starts it anew, whole."""

        def guarded() -> None:
            try:
                loop()
            except Exception:
                log.exception("loop_broke", loop=threading.current_thread().name)
                self.stop()

        return guarded

    def _choose(self) -> None:
        """Find out about KVM as soon as there is an image to try it with."""
        parts = self.agent.parts
        while not self.stopping.is_set():
            if self.settings.libvirt_uri.startswith("test:"):
                parts.domain_type = "test"
                self.agent.choice = Choice("tcg", "libvirt's in-memory driver runs no guest")
                break
            images = list_images(parts.paths.images)
            if images or self.settings.accelerator == "tcg":
                kernel = find_image(parts.paths.images, images[0].name).kernel if images else parts.paths.images
                choice = choose(self.settings, kernel, cache=parts.paths.cache)
                parts.domain_type = "kvm" if choice.accelerator == "kvm" else "qemu"
                parts.qemu_group = self._qemu_group(choice)
                self.agent.choice = choice
                log.info("accelerator_chosen", accelerator=choice.accelerator or "none", why=choice.why)
                break
            self.stopping.wait(2.0)
        self.agent.changed()
        self.agent.wake.set()

    def _qemu_group(self, choice: Choice) -> int | None:
        """The group for QEMUs with a user each; None where they couldn't open what they need."""
        while not self.stopping.is_set():
            try:
                group = self.agent.parts.hypervisor.group()
            except HostError:
                self.stopping.wait(1.0)
                continue
            if group is None or choice.accelerator != "kvm" or open_to_group(group):
                return group
            self.agent.problem(shared_user())
            return None
        return None

    def _wishes(self) -> None:
        control = HttpControl(self.settings)
        whole_at = patience = 0.0
        uptime = self.agent.parts.uptime
        while not self.stopping.is_set():
            whole = uptime() - whole_at >= WHOLE_S
            try:
                desired = control.desired(-1 if whole else self.agent.generation, 0 if whole else WAIT_S)
            except HostError as error:
                patience = self._back_off(error, patience)
                continue
            patience = 0.0
            if whole:
                whole_at = uptime()
            if desired is not None:
                self.agent.wished(desired)

    def _tell(self) -> None:
        control = HttpControl(self.settings)
        patience = took = 0.0
        while not self.stopping.is_set():
            self.agent.dirty.wait(TELL_S)
            self.stopping.wait(_COALESCE_S)  # marks come in bursts
            self.agent.dirty.clear()
            try:
                seen, began = msgspec.structs.replace(self.agent.observe(), took_s=took), time.monotonic()
                control.observed(seen)
                patience, took = 0.0, time.monotonic() - began
            except HostError as error:
                patience = self._back_off(error, patience)
                self.agent.dirty.set()

    def _ship(self) -> None:
        control = HttpControl(self.settings)
        shipper = Shipper(self.settings.name, self.agent.parts.paths, control)
        self.agent.lag = shipper.lag
        patience = 0.0
        while not self.stopping.is_set():
            try:
                sent = shipper.ship() or shipper.let_go(self.settings.ledger_days, time.time())
                patience = 0.0
            except HostError as error:
                patience = self._back_off(error, patience)
                continue
            except (OSError, ValueError):
                log.exception("ledger_unreadable")
                sent = 0
            if not sent:
                self.stopping.wait(0.25)

    def _watch(self) -> None:
        while not self.stopping.is_set():
            if not self._thread.is_current():
                log.error("namespace_gone", netns=self.settings.netns)
                self.stop()
                return
            self.agent.check_wall()
            self.stopping.wait(EVERY_S)

    def _back_off(self, error: HostError, patience: float) -> float:
        """Wait longer after each failure in a row, up to ten seconds and with some chance in it; how long it was."""
        patience = min(10.0, max(0.25, patience * 2))
        if patience <= 0.25 or patience >= 10.0:
            log.warning("control_trouble", code=error.code, error=error.message)
        self.stopping.wait(patience * random.uniform(0.7, 1.3))  # noqa: S311 - spreads retries, keeps nothing secret
        return patience


def _version() -> str:
    try:
        return importlib.metadata.version("ironcd")
    except importlib.metadata.PackageNotFoundError:
        return ""
