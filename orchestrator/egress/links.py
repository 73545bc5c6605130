"""The links that the agent has told us of, and what each VM has in use.

The file is the truth (`orchestrator.core.link`): `apply` reads it anew.  A link whose file can't be read, or that claims an
address of another link, is not in force, and nothing of it passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from orchestrator.core.errors import OperationalError
from orchestrator.core.link import Link
from orchestrator.core.names import is_tap
from orchestrator.core.policy import CompiledPolicy, Decision, compile_policy
from orchestrator.egress.bucket import Bucket
from orchestrator.egress.fake_names import FakeNames

if TYPE_CHECKING:
    from orchestrator.egress.flow import LiveFlow

QUERIES_PER_SECOND = 500

_log = structlog.get_logger()
_decoder = msgspec.json.Decoder(Link)


class LinkRefused(OperationalError):
    """A link's file can't be put in force."""

    def __init__(self, tap: str, why: str) -> None:
        super().__init__(
            f"link {tap!r} is not in force: {why}",
            code="link-refused",
            remedy="The host agent writes this file; restart the agent, and report it if it comes back.",
        )


class LinkState:
    """One VM's link as it is in force, and what the VM has open."""

    __slots__ = ("fake_names", "flows", "half_open", "link", "new", "policy", "queries", "sent", "spent")

    def __init__(self, link: Link, policy: CompiledPolicy, now: float) -> None:
        self.link = link
        self.policy = policy
        self.flows: set[LiveFlow] = set()
        self.half_open = 0
        self.new = Bucket(link.limits.new_per_second, link.limits.new_per_second, now)
        self.queries = Bucket(QUERIES_PER_SECOND, QUERIES_PER_SECOND, now)
        self.fake_names = FakeNames()
        self.sent: dict[str, int] = {}
        """Bytes sent so far to each host, or address where there was no name."""
        self.spent: dict[str, set[str]] = {}
        """Names used under each rule, by its id; only a wildcard can have more than one."""

    def refusal(self, now: float) -> str:
        """Why one more connection must not be taken now; empty where it may be."""
        limits = self.link.limits
        if len(self.flows) >= limits.connections:
            return "limit_connections"
        if self.half_open >= limits.half_open:
            return "limit_half_open"
        return "" if self.new.take(now) else "limit_rate"

    def send(self, host: str, size: int) -> bool:
        """Add ``size`` bytes to what was sent to ``host``; True where that takes it over its budget."""
        before = self.sent.get(host, 0)
        self.sent[host] = before + size
        return before <= self.link.limits.bytes_up_per_host < before + size

    def over_budget(self, host: str) -> bool:
        return self.sent.get(host, 0) > self.link.limits.bytes_up_per_host

    def within_budget(self, decision: Decision, name: str) -> Decision:
        """``decision``, or a block where ``name`` is one too many under its wildcard rule.

        Names are data: without a bound, labels under an allowed wildcard carry a secret out a query at a time.
        """
        if decision.verdict != "allowed" or not decision.rule:
            return decision
        names = self.spent.setdefault(decision.rule, set())
        if name not in names:
            if len(names) >= self.link.limits.names_per_wildcard:
                return Decision("blocked", "name_budget", decision.rule)
            names.add(name)
        return decision


class Links:
    """All links in force, by tap and by the VM's address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_tap: dict[str, LinkState] = {}
        self._by_ip: dict[str, LinkState] = {}

    def __len__(self) -> int:
        return len(self._by_tap)

    def __iter__(self) -> Iterator[LinkState]:
        return iter(tuple(self._by_tap.values()))

    def of_guest(self, address: str) -> LinkState | None:
        return self._by_ip.get(address)

    def of_tap(self, tap: str) -> LinkState | None:
        return self._by_tap.get(tap)

    def read(self, tap: str) -> Link:
        """The link that ``tap``'s file tells of.  Raises LinkRefused."""
        if not is_tap(tap):
            raise LinkRefused(tap, "not a tap's name")
        try:
            link = _decoder.decode((self._folder / f"{tap}.json").read_bytes())
            IPv4Address(link.guest_ip)
            IPv4Address(link.gateway_ip)
        except FileNotFoundError as error:
            raise LinkRefused(tap, "it has no file") from error
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise LinkRefused(tap, str(error)) from error
        if link.tap != tap:
            raise LinkRefused(tap, f"its file is about {link.tap!r}")
        other = self._by_ip.get(link.guest_ip)
        if other is not None and other.link.tap != tap:
            raise LinkRefused(tap, f"{link.guest_ip} belongs to {other.link.tap}")
        return link

    def put(self, link: Link, now: float) -> LinkState:
        """Bring ``link`` in force.  Raises LinkRefused for a policy that can't be compiled; what was in force stays."""
        try:
            policy = compile_policy(link.policy)
        except ValueError as error:
            raise LinkRefused(link.tap, str(error)) from error
        state = self._by_tap.get(link.tap)
        if state is not None and state.link.guest_ip == link.guest_ip:
            state.link, state.policy = link, policy
            state.new.rate = state.new.burst = link.limits.new_per_second
            return state
        if state is not None:
            self.remove(link.tap)
        state = LinkState(link, policy, now)
        self._by_tap[link.tap] = self._by_ip[link.guest_ip] = state
        return state

    def remove(self, tap: str) -> LinkState | None:
        state = self._by_tap.pop(tap, None)
        if state is not None:
            del self._by_ip[state.link.guest_ip]
        return state

    def load(self, now: float) -> None:
        """Bring every link in the folder in force; one that is refused is logged and left out."""
        for path in sorted(self._folder.glob("*.json")):
            if not is_tap(path.stem):
                continue
            try:
                self.put(self.read(path.stem), now)
            except LinkRefused as error:
                _log.error("link_refused", tap=path.stem, error=error.message)
