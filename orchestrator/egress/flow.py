"""One connection of a VM (or one run of echoes) while it lives: what is known of it, and the events about it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from orchestrator.core.flow import Event, EventKind
from orchestrator.core.policy import Decision
from orchestrator.egress.connection import Connection
from orchestrator.egress.recorder import Recorder

LONG_S = 600.0
"""A flow that lasts longer is flagged in its progress: a tunnel looks like that, and so does a big download."""


class Moving(Protocol):
    """What moves a flow's bytes and counts them; ``active`` is when it last did, on the event loop's clock."""

    active: float

    @property
    def bytes_up(self) -> int: ...

    @property
    def bytes_down(self) -> int: ...

    def abort(self, reason: str) -> None: ...


class LiveFlow(ABC):
    """``began``, ``progressed`` and ``deadline`` (infinite where there is none) are on the event loop's clock."""

    __slots__ = (
        "_accounted",
        "_recorder",
        "began",
        "connection",
        "deadline",
        "ending",
        "half_open",
        "id",
        "opened",
        "progressed",
        "relay",
        "resolved",
    )

    def __init__(self, identifier: str, connection: Connection, recorder: Recorder, now: float) -> None:
        self.id = identifier
        self.connection = connection
        self.began = now
        self.progressed = now
        self.deadline = math.inf
        self.resolved = ""
        self.ending = ""
        """Why it is being ended from outside; empty while it isn't."""
        self.half_open = False
        self.opened = False
        self.relay: Moving | None = None
        self._recorder = recorder
        self._accounted = 0

    @abstractmethod
    def abort(self, reason: str) -> None:
        """End it now."""

    @abstractmethod
    def expire(self) -> None:
        """The deadline has passed."""

    @abstractmethod
    def recorded(self, ok: bool) -> None:
        """What was recorded of it outlives this process; or not, and then it must not go on."""

    @abstractmethod
    def keep_alive(self) -> None:
        """It is one that lasts."""

    @property
    def host(self) -> str:
        """The name that it is about, or the address where there was none."""
        return self.connection.name or self.connection.address

    def account(self) -> None:
        """Add what was sent since the last time to the host's sum; where that goes over its budget, say so, once."""
        if self.relay is None:
            return
        sent = self.relay.bytes_up - self._accounted
        self._accounted += sent
        state = self.connection.state
        if sent and state.send(self.host, sent):
            decision = msgspec.structs.replace(self.connection.decision, reason="bytes_up_budget")
            self._recorder.always(self._event("alert", decision, sent=state.sent[self.host]))

    def decided(self) -> None:
        """The hello is whole, or will never be: it no longer counts as half open."""
        if self.half_open:
            self.half_open = False
            self.connection.state.half_open -= 1

    def record_blocked(self, decision: Decision) -> None:
        state = self.connection.state
        event = self._event("open", decision, close_reason="blocked")
        self._recorder.limited(state.link.tap, event, per_second=state.link.limits.events_per_second)

    def record_open(self) -> None:
        self.opened = True
        self._recorder.always(self._event("open", self.connection.decision))

    def record_progress(self, now: float) -> None:
        self.progressed = now
        flags = ("long",) if now - self.began > LONG_S else ()
        self._recorder.always(self._event("progress", self.connection.decision, flags=flags, at=now))

    def record_close(self, now: float, reason: str) -> None:
        self.account()
        self._recorder.always(self._event("close", self.connection.decision, close_reason=reason, at=now))

    def _event(
        self,
        kind: EventKind,
        decision: Decision,
        *,
        flags: tuple[str, ...] = (),
        close_reason: str = "",
        at: float | None = None,
        sent: int = 0,
    ) -> Event:
        """``at`` (on the event loop's clock) where the event says what has moved by then; ``sent`` in place of that.

        Made in one go, and not by `Recorder.event`: every connection has two.
        """
        connection, recorder, relay = self.connection, self._recorder, self.relay
        state, hello, name = connection.state, connection.hello, connection.name
        link = state.link
        if self._accounted and state.over_budget(self.host):
            flags += ("bytes_up",)
        moved = at is not None and relay is not None
        return Event(
            kind,
            recorder.now(),
            0,
            recorder.gateway,
            link.identity,
            connection.protocol,
            decision.verdict,
            decision.reason,
            conn=self.id,
            host=name or "",
            host_source="ip" if not name else "dns" if connection.protocol == "icmp" else "sni",
            port=connection.port,
            orig_dst=connection.address,
            resolved=self.resolved,
            mode=link.policy.mode,
            would_block=decision.would_block,
            rule=decision.rule,
            policy=state.policy.digest,
            generation=link.generation,
            flags=(*decision.flags, *connection.flags, *flags),
            tls=hello.facts() if hello is not None and kind == "open" else {},
            bytes_up=relay.bytes_up if relay is not None and moved else sent,
            bytes_down=relay.bytes_down if relay is not None and moved else 0,
            duration_ms=round((at - self.began) * 1000) if at is not None else 0,
            close_reason=close_reason,
        )
